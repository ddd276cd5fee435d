"""One class a device: which is found, how it is run, and that nobody else asks which one it is."""

import ast
from types import SimpleNamespace

import pytest
import torch
from test_house_imports import ROOT, modules

from central.runtime import device as devices
from central.runtime.device import DEVICES, Cpu, Device, open_device
from central.runtime.exits import BadRequest
from central.runtime.rank import Rank
from pretraining.kernels.choice import KERNELS, open_kernels
from pretraining.kernels.cpu import CpuKernels
from pretraining.kernels.cuda import CudaKernels
from pretraining.kernels.plain import PlainKernels


def cards(count: int) -> SimpleNamespace:
    """What torch tells of so many cards."""
    return SimpleNamespace(
        is_available=lambda: count > 0,
        device_count=lambda: count,
        set_device=lambda device: None,
        get_device_capability=lambda device: (9, 0),
        mem_get_info=lambda: (5 << 30, 8 << 30),
        max_memory_allocated=lambda: 3,
        synchronize=lambda: None,
    )


@pytest.fixture
def found(monkeypatch):
    """Stand in for so many cards of each type."""

    def stand_in(cuda: int = 0, xpu: int = 0, hip: str | None = None) -> None:
        monkeypatch.setattr(torch, "cuda", cards(cuda))
        monkeypatch.setattr(torch, "xpu", cards(xpu))
        monkeypatch.setattr(torch.version, "hip", hip)

    return stand_in


@pytest.mark.parametrize(
    ("here", "name", "kernels"),
    [
        ({}, "cpu", CpuKernels),
        ({"cuda": 1}, "cuda", CudaKernels),
        ({"cuda": 1, "xpu": 1}, "cuda", CudaKernels),
        ({"cuda": 1, "hip": "6.4"}, "cuda", PlainKernels),
        ({"xpu": 1}, "xpu", PlainKernels),
    ],
    ids=["no card", "NVIDIA", "NVIDIA and Intel", "ROCm", "Intel"],
)
def test_the_card_that_is_there_is_found_and_gets_its_kernels(found, here, name, kernels):
    found(**here)
    device = open_device("auto", "lazy", "bf16", Rank())
    assert (device.type, device.device.type, device.mode) == (name, name, "eager")
    assert type(open_kernels(device)) is kernels
    assert device.pads_rows == (kernels is PlainKernels) and not device.compiles
    assert device.has_instructions and device.remarks() == [] or name == "cpu"
    assert name == "cpu" or (device.available_memory(), device.peak_memory()) == (5 << 30, 3)


@pytest.mark.parametrize("name", ["cpu", "cuda", "xpu"])
def test_compiled_shapes_are_static_and_their_kernels_plain(found, name):
    found(cuda=1, xpu=1)
    device = open_device(name, "compile", "fp32", Rank())
    assert device.compiles and device.pads_rows and type(open_kernels(device)) is PlainKernels


def test_an_absent_device_is_named_with_what_was_found(found):
    found()
    for name in ("cuda", "xpu"):
        with pytest.raises(ValueError, match=f"device {name}: 0 GPUs found for 1 ranks on this host"):
            open_device(name, "eager", "fp32", Rank())
    found(cuda=2)
    with pytest.raises(ValueError, match="device cuda: 2 GPUs found for 4 ranks"):
        open_device("cuda", "eager", "fp32", Rank(0, 0, 4, 4))
    with pytest.raises(ValueError, match="device 'tpu': choose hpu, cuda, xpu, cpu"):
        open_device("tpu", "eager", "fp32", Rank())


def test_ranks_on_intel_gpus_need_their_exchange(found, monkeypatch):
    found(xpu=2)
    monkeypatch.setattr(torch.distributed, "is_xccl_available", lambda: False, raising=False)
    with pytest.raises(ValueError, match="no xccl"):
        open_device("xpu", "eager", "fp32", Rank(0, 0, 2, 2))
    monkeypatch.setattr(torch.distributed, "is_xccl_available", lambda: True, raising=False)
    assert open_device("xpu", "eager", "fp32", Rank(1, 1, 2, 2)).device == torch.device("xpu", 1)


def test_one_more_device_is_one_more_class(monkeypatch):
    class Toy(Device):
        type = "toy"
        backend = "gloo"
        peak_sizes = (8,)

        @classmethod
        def open(cls, mode, data_type, rank):
            return cls(torch.device("cpu"), mode, data_type)

        def synchronize(self):
            pass

    monkeypatch.setitem(DEVICES, "toy", Toy)
    device = open_device("toy", "eager", "fp32", Rank())
    assert type(open_kernels(device)) is PlainKernels and device.pads_rows and device.matrix_peak() > 0
    assert device.fused_lamb() is None and device.fused_sdpa() is None and not device.checks_every_step


def test_attention_of_the_device_is_taken_where_it_is_asked_for():
    device = Cpu(torch.device("cpu"), "compile", "fp32")
    device.fused_sdpa = lambda: "its own"
    assert [open_kernels(device, fused_sdpa=asked).fused_sdpa for asked in (True, False)] == ["its own", None]
    assert open_kernels(device).fused_sdpa is None

    def refuse():
        raise ValueError("it has none")

    device.fused_sdpa = refuse
    with pytest.raises(BadRequest, match="it has none"):
        open_kernels(device, fused_sdpa=True)


def test_every_device_names_kernels_that_there_are():
    for cls in DEVICES.values():
        for mode in cls.modes:
            assert cls(torch.device("cpu"), mode, "fp32").kernels in KERNELS


def compared_names(source: str) -> list[str]:
    """Names of devices that a file compares something with, in conditions and in `match`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        sides += [node.value] if isinstance(node, ast.MatchValue) else []
        for part in (part for side in sides for part in ast.walk(side) if isinstance(part, ast.Constant)):
            found += [part.value] if part.value in DEVICES else []
    return found


def test_the_search_for_compared_names_finds_them():
    assert compared_names("if device.type == 'hpu' or x in ('cpu', 'cuda'): pass") == ["hpu", "cpu", "cuda"]
    assert compared_names("match name:\n    case 'xpu': pass") == ["xpu"]


ROOMS = ("pretraining", "central/runtime", "central/finetuning")


@pytest.mark.parametrize("path", modules(*ROOMS), ids=lambda p: str(p.relative_to(ROOT)))
def test_names_of_devices_are_compared_by_their_classes_only(path):
    assert path == ROOT / "central/runtime/device.py" or not compared_names(path.read_text())


def test_a_cpu_keeps_its_memory_and_its_few_kernels(monkeypatch):
    done = []
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: done.append("memory"))
    monkeypatch.setattr(devices, "keep_few_kernels", lambda: done.append("kernels"))
    assert isinstance(open_device("cpu", "lazy", "fp32", Rank()), Cpu) and done == ["memory", "kernels"]
