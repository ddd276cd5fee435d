"""Test double of FusedSDPA: attention as one autograd.Function, positional arguments only, not on the first Gaudi."""

import math

import torch

from hpu_emulator import state


class FusedSDPA(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        q,
        k,
        v,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        softmax_mode="None",
        recompute_mode=None,
        valid_seq_len=None,
        seq_padding_type="left",
        return_dropout_mask=False,
        return_attn_probs=False,
    ):
        state.acquire()
        if state.generation == 1:
            raise RuntimeError("FusedSDPA is not supported on Gaudi")
        if is_causal or return_dropout_mask or return_attn_probs or valid_seq_len is not None:
            raise NotImplementedError("this test double has only what training BERT needs")
        ctx.scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        scores = (q @ k.transpose(-2, -1)) * ctx.scale
        if attn_mask is not None:
            masked = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -math.inf) if masked else scores + attn_mask.to(scores.dtype)
        probabilities = torch.softmax(scores, -1)
        kept = torch.nn.functional.dropout(torch.ones_like(probabilities), dropout_p, dropout_p > 0)
        ctx.save_for_backward(q, k, v, probabilities, kept)
        return (probabilities * kept) @ v

    @staticmethod
    def backward(ctx, grad):
        q, k, v, probabilities, kept = ctx.saved_tensors
        grad_v = (probabilities * kept).transpose(-2, -1) @ grad
        grad_p = (grad @ v.transpose(-2, -1)) * kept
        grad_scores = probabilities * (grad_p - (grad_p * probabilities).sum(-1, keepdim=True)) * ctx.scale
        return grad_scores @ k, grad_scores.transpose(-2, -1) @ q, grad_v, *([None] * 10)
