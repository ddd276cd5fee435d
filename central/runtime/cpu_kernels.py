"""Dropout and attention with dropout at the speed a CPU has: for training Hugging Face models.

On a CPU torch draws dropout masks one number at a time, and attention with dropout falls back to its slowest form.
Here a mask is 16 (bf16) or 32 (fp32) bits of a fast counter per element, applied as a bit mask, and attention is two
matrix products with the backward pass written out. `exchange(model)` puts both into a model; its weights, its names
and, without dropout, its results stay as they are.
"""

import numpy as np
import torch
from torch import nn
from torch.autograd import Function
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "cpu_dropout"  # name under which transformers knows the attention below


def exchange(model: PreTrainedModel) -> "DropoutBits":
    """Exchange attention and dropout modules of a model in place; returns the stream that their masks come from."""
    bits = DropoutBits()
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        AttentionInterface.register(ATTENTION, bits.attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, BitDropout(child.p, bits))
    return bits


class DropoutBits:
    """A stream of dropout masks, a function of its seeds."""

    def __init__(self, *seeds: int):
        self.reseed(*seeds)

    def reseed(self, *seeds: int) -> None:
        """Begin the stream that belongs to these integers (seed, step, rank)."""
        self._stream = np.random.SFC64(seeds)

    def kept(self, like: torch.Tensor, p: float) -> torch.Tensor:
        """Integers as wide as `like`'s elements: 0 with probability p, else all bits set."""
        kind = torch.int16 if like.element_size() == 2 else torch.int32
        words = -(-like.numel() * like.element_size() // 8)
        raw = torch.from_numpy(self._stream.random_raw(words).view(np.int64))
        bits = raw.view(kind)[: like.numel()].view(like.shape)
        last_dropped = torch.iinfo(kind).min + round(p * 2 ** (8 * like.element_size())) - 1
        return bits.clamp_(last_dropped, last_dropped + 1).neg_().add_(last_dropped)

    def attention(self, module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
        """Attention in the form transformers asks for; without dropout torch's own kernel is the fastest."""
        is_plain = query.shape == key.shape and not module.is_causal and kwargs.get("position_bias") is None
        if not dropout or not is_plain:
            return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        return AttentionWithDropout.apply(self, query, key, value, attention_mask, dropout, scaling), None


class BitDropout(nn.Dropout):
    """nn.Dropout with masks of `DropoutBits`."""

    def __init__(self, p: float, bits: DropoutBits):
        super().__init__(p)
        self.bits = bits

    def forward(self, x):
        return Dropout.apply(self.bits, x, self.p) if self.training and 0 < self.p < 1 else super().forward(x)


def _zeroed(x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """x where `kept` has all bits set, zero where it is zero."""
    return torch.bitwise_and(x.view(kept.dtype), kept).view(x.dtype)


class Dropout(Function):
    @staticmethod
    def forward(ctx, bits, x, p):
        kept = bits.kept(x, p)
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - p)
        return _zeroed(x.contiguous(), kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, g):
        return None, _zeroed(g.contiguous(), *ctx.saved_tensors).mul_(ctx.scale), None


class AttentionWithDropout(Function):
    """softmax(scaling Q K^T) V with dropout on the probabilities. Q, K, V: [B, heads, S, d]; result [B, S, heads, d].

    A probability is never negative, so the sign bit of the stored ones remembers which were dropped.
    """

    @staticmethod
    def forward(ctx, bits, query, key, value, mask, p, scaling):
        batch, heads, length, size = query.shape
        q, k, v = (x.reshape(batch * heads, length, size) for x in (query * scaling, key, value))
        scores = torch.bmm(q, k.transpose(1, 2))
        if mask is not None:  # [B, 1, S, S], False where there is padding, which is the same for all queries
            lowest = torch.finfo(scores.dtype).min
            bias = torch.zeros_like(mask[:, :, :1], dtype=scores.dtype).masked_fill_(~mask[:, :, :1], lowest)
            scores.view(batch, heads, length, -1).add_(bias)
        probabilities = torch.softmax(scores, dim=-1)
        kept = bits.kept(probabilities, p)
        sign = torch.iinfo(kept.dtype).min
        probabilities.view(kept.dtype).bitwise_or_(kept.bitwise_not_().bitwise_and_(sign))
        ctx.save_for_backward(q, k, v, probabilities)
        ctx.p, ctx.scaling, ctx.heads = p, scaling, heads
        out = torch.bmm(probabilities.relu(), v).mul_(1 / (1 - p))
        return out.view(batch, heads, length, size).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx, g):
        q, k, v, signed = ctx.saved_tensors
        shape = (len(q) // ctx.heads, ctx.heads, -1, q.shape[-1])
        g = (g * (1 / (1 - ctx.p))).transpose(1, 2).reshape(v.shape[0], -1, v.shape[-1])
        d_value = torch.bmm(signed.relu().transpose(1, 2), g)
        d_probabilities = torch.bmm(g, v.transpose(1, 2))
        bits = signed.view(torch.int16 if signed.element_size() == 2 else torch.int32)
        kept = (bits >> (8 * signed.element_size() - 1)).bitwise_not_()
        d_probabilities = _zeroed(d_probabilities, kept)
        d_scores = torch.ops.aten._softmax_backward_data(d_probabilities, signed.abs(), -1, signed.dtype)
        d_query = torch.bmm(d_scores, k).mul_(ctx.scaling)
        d_key = torch.bmm(d_scores.transpose(1, 2), q)
        return None, d_query.view(shape), d_key.view(shape), d_value.view(shape), None, None, None
