"""Test double: what PT_HPU_ENABLE_COMPILED_AUTOGRAD=1 switches on when the back end is loaded."""

import functools

import torch
from torch._dynamo import compiled_autograd


def enable_compiled_autograd(is_dynamic=False, **kwargs) -> None:
    """The backward pass is traced and compiled as a whole."""
    torch._dynamo.reset()  # Habana does it last, which in torch 2.13 takes the compiler away again
    compiler = functools.partial(torch.compile, backend="hpu_backend", **kwargs)
    torch._C._dynamo.compiled_autograd.set_autograd_compiler(
        functools.partial(compiled_autograd.AutogradCompilerInstance, compiler), is_dynamic
    )
    torch._dynamo.config.optimize_ddp = "python_reducer"
