"""How the network computes its steps on cards, and under torch.compile anywhere: plain torch under autocast.

Two layouts of a micro-batch reach the attention: static shapes (`batch.rows` x `batch.seq_len` tokens, padding masked)
and flat tokens of `batch.lengths` with no padding at all.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from central.runtime.device import Device
from central.runtime.dropout import fold


class Batch(Protocol):
    """What attention reads of a micro-batch. Static shapes have the first two of these, flat tokens the others."""

    @property
    def sequence_ids(self) -> Tensor | None: ...

    @property
    def attention_mask(self) -> Tensor | None: ...

    @property
    def offsets(self) -> Tensor | None: ...

    @property
    def lengths(self) -> tuple[int, ...] | None: ...

    def with_attention_mask(self, mask: Tensor) -> Self: ...


AnyBatch = TypeVar("AnyBatch", bound=Batch)
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]  # of query, key, value, additive mask and dropout


class PlainKernels:
    """`autocast` is a function that returns a context manager, `dtype` the type that scores have under it.

    `fused_sdpa` is Habana's kernel where asked for.
    """

    keeps_scores = True  # of attention, for the backward pass

    def __init__(
        self,
        autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
        fused_sdpa: Attend | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.autocast = autocast
        self.dtype = dtype
        self.fused_sdpa = fused_sdpa

    @classmethod
    def on(cls, device: Device, in_place: bool, fused_sdpa: Attend | None) -> Self:
        """The kernels for a device; `in_place` lets gradients grow in `.grad` where they can."""
        return cls(device.autocast, fused_sdpa, device.dtype)

    @staticmethod
    def bytes_kept(width: int, hidden_size: int, intermediate_size: int, scores: int) -> int:
        """Bytes kept per token and layer for the backward pass; `width` of a number, `scores` in number of a token."""
        return width * (17 * hidden_size + 2 * intermediate_size) + 5 * scores * width // 2

    def reseed(self, *integers: int) -> None:
        """Make dropout from here on a function of `integers` (seed, global step, rank)."""
        torch.manual_seed(fold(integers))

    def linear(self, x: Tensor, dense: nn.Linear) -> Tensor:
        return F.linear(x, dense.weight, dense.bias)

    def joint_linear(self, x: Tensor, denses: Sequence[nn.Linear]) -> Tensor:
        return torch.cat([F.linear(x, dense.weight, dense.bias) for dense in denses], dim=-1)

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return norm(x)

    def dropout(self, x: Tensor, p: float, training: bool) -> Tensor:
        return F.dropout(x, p, training)

    def dropout_add_norm(self, x: Tensor, residual: Tensor, norm: nn.LayerNorm, p: float, training: bool) -> Tensor:
        return norm(F.dropout(x, p, training) + residual)

    def feed_forward(self, x: Tensor, up: nn.Linear, down: nn.Linear) -> Tensor:
        return F.linear(F.gelu(F.linear(x, up.weight, up.bias)), down.weight, down.bias)

    def prepared(self, batch: AnyBatch) -> AnyBatch:
        """The batch with all that its layers share: the mask of the static layout."""
        if batch.sequence_ids is None:
            return batch
        return batch.with_attention_mask(attention_mask(batch.sequence_ids, self.dtype))

    def recomputed(self, layer: nn.Module, x: Tensor, batch: Batch) -> Tensor:
        return checkpoint(layer, x, batch, self, use_reentrant=False)

    def attention(self, qkv: Tensor, batch: Batch, num_heads: int, p: float, training: bool) -> Tensor:
        p = p if training else 0.0
        if batch.attention_mask is None:
            return _jagged_attention(qkv, batch, num_heads, p)
        return self._static_attention(qkv, batch.attention_mask, num_heads, p)

    def _static_attention(self, qkv: Tensor, mask: Tensor, num_heads: int, p: float) -> Tensor:
        rows, seq_len = len(mask), mask.shape[-1]
        q, k, v = qkv.view(rows, seq_len, 3, num_heads, -1).permute(2, 0, 3, 1, 4)  # each B x heads x S x d
        mask = mask.to(qkv.dtype)
        if self.fused_sdpa is not None:
            context = self.fused_sdpa(q, k, v, mask, p)
        else:
            # The query is scaled, not the scores: `div` would make these fp32, and they are the largest tensor of all.
            scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)) + mask
            context = torch.matmul(F.dropout(torch.softmax(scores, dim=-1), p), v)
        return context.transpose(1, 2).reshape(rows * seq_len, -1)

    def masked_lm_loss(
        self, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy and number of right answers over M positions; `weights` M is 0 at unused ones."""
        logits = F.linear(x, weight, bias).float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        with torch.no_grad():
            right = (logits.argmax(-1) == labels).float()
        return (losses.sum(), right.sum()) if weights is None else ((losses * weights).sum(), (right * weights).sum())


def attention_mask(sequence_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """B x 1 x S x S, 0 within a sequence and the type's lowest number elsewhere; id 0 is padding."""
    same = sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]
    seen = same & (sequence_ids != 0)[:, None, None, :]
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def flat_layout(batch: Batch) -> tuple[Tensor, tuple[int, ...]]:
    """Where the sequences of flat tokens start and the last one ends, and how long they are."""
    assert batch.offsets is not None and batch.lengths is not None
    return batch.offsets, batch.lengths


def _jagged_attention(qkv: Tensor, batch: Batch, num_heads: int, p: float) -> Tensor:
    """Attention within each sequence of flat tokens, by torch's kernels for sequences of different lengths."""
    offsets, lengths = flat_layout(batch)
    # Both extremes are said: torch would read either from the device, and wait for it, in every layer.
    shortest, longest = min(lengths), max(lengths)
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(
            part.contiguous(), offsets, min_seqlen=shortest, max_seqlen=longest
        ).transpose(1, 2)
        for part in qkv.view(len(qkv), 3, num_heads, -1).unbind(1)
    )
    context = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
    return context.transpose(1, 2).values().reshape(len(qkv), -1)
