"""bf16 matrix products on a CPU without instructions for them: operands and results in bf16, arithmetic in fp32.

There torch takes 2 (AVX-512 without BF16) to 40 times (AVX2) as long as in fp32. A product of two bf16 numbers is
exact in fp32 and oneDNN adds up in fp32, too, so the results are the same but for the order of the additions.
"""

import functools
import os
import platform
import warnings
from collections.abc import Callable
from typing import Any

import torch

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")  # all that linear layers and attention come down to
WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")  # values of ONEDNN_MAX_CPU_ISA
REMARK = (
    "this CPU has no instructions for bf16: matrix products round operands and results to bf16 and compute in fp32, at "
    "about the speed of fp32"
)
SLOW = "this CPU has no instructions for bf16, in which it is several times slower than in fp32"


@functools.cache
def has_instructions() -> bool:
    """Whether oneDNN multiplies bf16 matrices by the CPU's own instructions (AVX512-BF16, AMX, ARM's BF16)."""
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper() not in WITHOUT_BF16
    return allowed and torch.cpu._is_avx512_bf16_supported()


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The type that this CPU computes products of `dtype` in."""
    return torch.float32 if dtype == torch.bfloat16 and not has_instructions() else dtype


@functools.cache
def use_fp32_arithmetic() -> torch.library.Library | None:
    """From here on this process multiplies bf16 matrices in fp32. Nothing where the CPU has the instructions."""
    return replace_products() if not has_instructions() and can_replace() else None


def can_replace() -> bool:
    """Whether torch hands out its own kernels (2.9 and later), which those put in their place need."""
    return hasattr(torch.library, "get_kernel")


def remarks() -> list[str]:
    """What the user of bf16 should know of this CPU."""
    if has_instructions():
        return []
    return [REMARK if can_replace() else SLOW]


def replace_products() -> torch.library.Library:
    """Put products of bf16 matrices in fp32 arithmetic in the place of torch's, as long as the result is kept."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of every kernel that is replaced
        for name in PRODUCTS:
            library.impl(name, _in_fp32(torch.library.get_kernel(f"aten::{name}", "CPU")), "CPU", with_keyset=True)
            into = torch.library.get_kernel(f"aten::{name}.out", "CPU")
            library.impl(f"{name}.out", _into(into, getattr(torch, name)), "CPU", with_keyset=True)
    return library


def _in_fp32(kernel: Any) -> Callable[..., torch.Tensor]:
    def product(keys: Any, *tensors: torch.Tensor, **scales: float) -> torch.Tensor:
        if tensors[0].dtype != torch.bfloat16:
            return kernel.call_boxed(keys, *tensors, **scales)
        return kernel.call_boxed(keys, *(tensor.float() for tensor in tensors), **scales).to(torch.bfloat16)

    return product


def _into(kernel: Any, product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def product_into(keys: Any, *tensors: torch.Tensor, out: torch.Tensor, **scales: float) -> torch.Tensor:
        if tensors[0].dtype != torch.bfloat16:
            return kernel.call_boxed(keys, *tensors, out=out, **scales)
        return out.copy_(product(*tensors, **scales))

    return product_into
