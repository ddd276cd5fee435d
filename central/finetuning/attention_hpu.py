"""Attention whose graph is the same for every batch of a shape, for hpu: transformers' own forms read the mask on the
host to choose between two graphs, which costs a synchronisation a step and a compilation more.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

ATTENTION = "static"  # name under which transformers knows it


def replace_attention(model: PreTrainedModel, fused: Callable[..., torch.Tensor] | None = None) -> None:
    """Let a bidirectional model attend in the static form; `fused` is Habana's kernel where asked for."""
    AttentionInterface.register(ATTENTION, partial(attention, fused=fused))
    AttentionMaskInterface.register(ATTENTION, partial(additive_mask, whole=fused is not None))
    model.set_attn_implementation(ATTENTION)


def additive_mask(
    batch_size: int,
    kv_length: int,
    attention_mask: torch.Tensor | None,
    dtype: torch.dtype,
    whole: bool = False,
    **kwargs: Any,
) -> torch.Tensor | None:
    """[B, 1, 1, S], or `whole` [B, 1, S, S]: 0 at tokens, the lowest number at padding, in the type of the scores.

    Made once for all layers. `attention_mask` [B, S] is True at tokens.
    """
    if attention_mask is None:
        return None
    device_type = attention_mask.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    padding = ~attention_mask[:, None, None, :kv_length]
    if whole:
        padding = padding.expand(-1, -1, kv_length, -1)
    return torch.zeros_like(padding, dtype=dtype).masked_fill(padding, torch.finfo(dtype).min)


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    fused: Callable[..., torch.Tensor] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(scaling Q K^T + mask) V; Q, K, V: [B, heads, S, d], result [B, S, heads, d]."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is not None:
        attention_mask = attention_mask.to(query.dtype)
    if fused is not None:
        dropout = dropout if module.training else 0.0
        return fused(query, key, value, attention_mask, dropout, False, scaling).transpose(1, 2).contiguous(), None
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.dropout(torch.softmax(scores, dim=-1), dropout, module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), None
