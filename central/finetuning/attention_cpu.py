"""Dropout and attention with dropout at the speed a CPU has: for training Hugging Face models.

On a CPU torch's dropout is slow, and attention with it falls back to torch's slowest form. Here masks are bits of a
fast counter (dropout.py), and attention is two matrix products with the backward pass written out.
`replace_attention(model)` puts both into a model; its weights, its names and, without dropout, its results stay as they
are.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from central.runtime.dropout import Dropout, DropoutBits, kept_by_sign, sign_dropped, zeroed

ATTENTION = "cpu_dropout"  # name under which transformers knows the attention below


def replace_attention(model: PreTrainedModel) -> DropoutBits:
    """Replace attention and dropout modules of a model in place; returns the stream that their masks come from."""
    bits = DropoutBits()
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        AttentionInterface.register(ATTENTION, Attention(bits))
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, BitDropout(child.p, bits))
    return bits


class Attention:
    """Attention in the form transformers asks for, with dropout masks of `bits`."""

    def __init__(self, bits: DropoutBits):
        self.bits = bits

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        one_mask = kwargs.get("position_bias") is None and kwargs.get("sliding_window") is None  # for all queries
        is_plain = query.shape == key.shape and not module.is_causal and one_mask
        if not dropout or not is_plain:  # without dropout torch's own kernel is the fastest
            return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        return AttentionWithDropout.apply(self.bits, query, key, value, attention_mask, dropout, scaling), None


class BitDropout(nn.Dropout):
    """nn.Dropout with masks of `DropoutBits`."""

    def __init__(self, p: float, bits: DropoutBits):
        super().__init__(p)
        self.bits = bits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Dropout.apply(self.bits, x, self.p) if self.training and 0 < self.p < 1 else super().forward(x)


class AttentionWithDropout(Function):
    """softmax(scaling Q K^T) V with dropout on the probabilities. Q, K, V: [B, heads, S, d]; gives [B, S, heads, d]."""

    @staticmethod
    def forward(
        ctx: Any,
        bits: DropoutBits,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        p: float,
        scaling: float,
    ) -> torch.Tensor:
        batch, heads, length, size = query.shape
        q, k, v = (x.reshape(batch * heads, length, size) for x in (query * scaling, key, value))
        scores = torch.bmm(q, k.transpose(1, 2))
        if mask is not None:  # [B, 1, S, S], False where there is padding, which is the same for all queries
            lowest = torch.finfo(scores.dtype).min
            bias = torch.zeros_like(mask[:, :, :1], dtype=scores.dtype).masked_fill_(~mask[:, :, :1], lowest)
            scores.view(batch, heads, length, -1).add_(bias)
        probabilities = torch.softmax(scores, dim=-1)
        sign_dropped(probabilities, bits.kept(probabilities, p))
        ctx.save_for_backward(q, k, v, probabilities)
        ctx.p, ctx.scaling, ctx.heads = p, scaling, heads
        out = torch.bmm(probabilities.relu(), v).mul_(1 / (1 - p))
        return out.view(batch, heads, length, size).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, signed = ctx.saved_tensors
        shape = (len(q) // ctx.heads, ctx.heads, -1, q.shape[-1])
        g = (g * (1 / (1 - ctx.p))).transpose(1, 2).reshape(v.shape[0], -1, v.shape[-1])
        d_value = torch.bmm(signed.relu().transpose(1, 2), g)
        d_probabilities = torch.bmm(g, v.transpose(1, 2))
        d_probabilities = zeroed(d_probabilities, kept_by_sign(signed))
        d_scores = torch.ops.aten._softmax_backward_data(d_probabilities, signed.abs(), -1, signed.dtype)
        d_query = torch.bmm(d_scores, k).mul_(ctx.scaling)
        d_key = torch.bmm(d_scores.transpose(1, 2), q)
        return None, d_query.view(shape), d_key.view(shape), d_value.view(shape), None, None, None
