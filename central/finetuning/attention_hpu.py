"""Attention whose graph is the same for every batch of a shape, for hpu: transformers' own forms read the mask on the
host to choose between two graphs, which costs a synchronisation a step and a compilation more.
"""

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

ATTENTION = "static"  # name under which transformers knows it


def exchange(model: PreTrainedModel) -> None:
    """Let a bidirectional model attend in the static form."""
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, additive_mask)
    model.set_attn_implementation(ATTENTION)


def additive_mask(batch_size: int, kv_length: int, attention_mask: torch.Tensor | None, dtype: torch.dtype, **kwargs):
    """[B, 1, 1, S]: 0 at tokens, the lowest number of `dtype` at padding; `attention_mask` [B, S] is True at tokens."""
    if attention_mask is None:
        return None
    padding = ~attention_mask[:, None, None, :kv_length]
    return torch.zeros_like(padding, dtype=dtype).masked_fill(padding, torch.finfo(dtype).min)


def attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """softmax(scaling Q K^T + mask) V; Q, K, V: [B, heads, S, d], result [B, S, heads, d]."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask.to(scores.dtype)
    probabilities = F.dropout(torch.softmax(scores, dim=-1), dropout, module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), None
