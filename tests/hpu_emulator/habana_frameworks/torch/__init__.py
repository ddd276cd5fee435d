"""Test double: importing it loads the device, registers torch.hpu and hccl, and changes torch as Habana's does."""

import torch

from hpu_emulator import state

state.start()

from habana_frameworks.torch import hpu

torch._register_device_module("hpu", hpu)

from habana_frameworks.torch import core
from habana_frameworks.torch.core import torch_overwrites

torch_overwrites._overwrite()

import habana_frameworks.torch.distributed.hccl
