"""What an NVIDIA card computes in another way than `plain.py`: attention over flat tokens, and joined projections.

torch's nested tensors reach the same attention kernels, but their Python costs more in every layer than the kernels
themselves take: on an H200 `large` ran at a third of the speed of padded batches (64 rows of 128, 2026-11-26).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretraining.kernels.plain import Batch, PlainKernels, flat_layout


class CudaKernels(PlainKernels):
    """PlainKernels for flat batches, with few launches: the host must stay ahead of the card."""

    keeps_scores = False

    def joint_linear(self, x: Tensor, denses: Sequence[nn.Linear]) -> Tensor:
        weight, bias = (torch.cat([getattr(dense, name) for dense in denses]) for name in ("weight", "bias"))
        return F.linear(x, weight, bias)

    def attention(self, qkv: Tensor, batch: Batch, num_heads: int, p: float, training: bool) -> Tensor:
        q, k, v = qkv.view(len(qkv), 3, num_heads, -1).unbind(1)  # each T x heads x d
        if q.shape[-1] % 8:  # the kernels take sizes of whole 8
            return super().attention(qkv, batch, num_heads, p, training)
        offsets, lengths = flat_layout(batch)
        p, longest = p if training else 0.0, max(lengths)
        bounds = offsets, offsets, longest, longest
        if takes_flash(q):
            out = torch.ops.aten._flash_attention_forward(q, k, v, *bounds, p, False, False)[0]
        else:
            one_row = (x.unsqueeze(0) for x in (q, k, v))
            out = torch.ops.aten._efficient_attention_forward(*one_row, None, *bounds, p, 0, True)[0].squeeze(0)
        return out.reshape(len(qkv), -1)


def takes_flash(q: Tensor) -> bool:
    """Whether flash attention computes this: 16 bits, cards since Ampere; else memory-efficient attention does."""
    half = q.dtype in (torch.float16, torch.bfloat16)
    built = torch.backends.cuda.is_flash_attention_available()
    return half and built and torch.cuda.get_device_capability(q.device) >= (8, 0)
