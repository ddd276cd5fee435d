"""How the network computes its steps on a CPU: the same mathematics as `plain.py`, with the backward passes written
out, because on a CPU the time that is not matrix products is memory traffic and random numbers.

- Tokens are flat, without padding; attention runs over sequences of equal length at a time, so it needs no mask.
- bf16 copies of the fp32 weights are made once per optimizer step (seen by the parameter's version), not per forward.
- Where the CPU has no instructions for bf16, an operand is widened to fp32 once, however many products it is in.
- Dropout masks are bits of a fast counter (central/runtime/dropout.py).
- Weight gradients of later micro-steps are added straight into `.grad` (not under DDP, which must see them).
"""

import contextlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from central.runtime import cpu_bf16
from central.runtime.device import Device
from central.runtime.dropout import Dropout, DropoutBits, kept_by_sign, sign_dropped, zeroed
from pretraining.kernels.plain import AnyBatch, Batch, flat_layout

LOSS_ROWS = 512  # rows of logits computed at a time

Run = tuple[int, int, int]  # first token, sequences, and their length
Gradients = tuple[Tensor | None, ...]  # of each argument of a forward pass; None where it has none


class CpuKernels:
    """Kernels for flat batches: operands and results of matrix products are rounded to `dtype`.

    `in_place` lets gradients grow in `.grad`.
    """

    keeps_scores = True

    def __init__(self, dtype: torch.dtype = torch.float32, in_place: bool = True):
        self.dtype = dtype
        self.arithmetic = cpu_bf16.arithmetic(dtype)
        self.in_place = in_place
        self.bits = DropoutBits()
        self.autocast = contextlib.nullcontext
        self._copies: dict[tuple[int, ...], tuple[tuple[int, ...], Tensor]] = {}  # by parameters: versions, copy

    @classmethod
    def on(cls, device: Device, in_place: bool, fused_sdpa: object) -> Self:
        return cls(device.dtype, in_place)

    @staticmethod
    def bytes_kept(width: int, hidden_size: int, intermediate_size: int, scores: int) -> int:
        return width * (10 * hidden_size + intermediate_size + scores)

    def reseed(self, *integers: int) -> None:
        """Make dropout from here on a function of `integers` (seed, global step, rank)."""
        self.bits.reseed(*integers)

    def prepared(self, batch: AnyBatch) -> AnyBatch:
        """The batch as it is: its layers share nothing."""
        return batch

    def operand(self, x: Tensor) -> Tensor:
        """A tensor of `dtype` in the type that products are computed in."""
        return x.to(self.arithmetic)

    def result(self, product: Tensor) -> Tensor:
        return product.to(self.dtype)

    def copy(self, *parameters: Tensor) -> Tensor:
        """The parameters, joined along the first dimension, as an operand."""
        if len(parameters) == 1 and parameters[0].dtype == self.dtype:
            return parameters[0].detach()
        key = tuple(map(id, parameters))
        versions = tuple(parameter._version for parameter in parameters)
        kept = self._copies.get(key)
        if kept is None or kept[0] != versions:
            with torch.no_grad():
                joined = self.operand(torch.cat([parameter.to(self.dtype) for parameter in parameters]))
            kept = self._copies[key] = (versions, joined)
        return kept[1]

    def linear(self, x: Tensor, dense: nn.Linear) -> Tensor:
        return self.joint_linear(x, (dense,))

    def joint_linear(self, x: Tensor, denses: Sequence[nn.Linear]) -> Tensor:
        weights, biases = [dense.weight for dense in denses], [dense.bias for dense in denses]
        return Linear.apply(self, x.to(self.dtype), len(denses), *weights, *biases)

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return F.layer_norm(x.to(self.dtype), norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    def dropout(self, x: Tensor, p: float, training: bool) -> Tensor:
        return Dropout.apply(self.bits, x, p) if training and p else x

    def dropout_add_norm(self, x: Tensor, residual: Tensor, norm: nn.LayerNorm, p: float, training: bool) -> Tensor:
        return DropoutAddNorm.apply(self.bits, x, residual, norm.weight, norm.bias, norm.eps, p if training else 0.0)

    def feed_forward(self, x: Tensor, up: nn.Linear, down: nn.Linear) -> Tensor:
        return FeedForward.apply(self, x, up.weight, up.bias, down.weight, down.bias)

    def attention(self, qkv: Tensor, batch: Batch, num_heads: int, p: float, training: bool) -> Tensor:
        _, lengths = flat_layout(batch)
        return Attention.apply(self.bits, qkv, equal_runs(lengths), num_heads, p if training else 0.0)

    def recomputed(self, layer: nn.Module, x: Tensor, batch: Batch) -> Tensor:
        state = self.bits.state
        contexts = lambda: (contextlib.nullcontext(), self.bits.replay(state))  # noqa: E731
        return checkpoint(layer, x, batch, self, use_reentrant=False, context_fn=contexts, preserve_rng_state=False)

    def masked_lm_loss(
        self, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy and number of right answers over M masked positions."""
        if weights is not None:
            raise ValueError("flat batches hold used positions only")
        return MaskedLoss.apply(self, x, weight, bias, labels)

    def weight_grad(self, parameter: Tensor, g: Tensor, x: Tensor) -> Tensor | None:
        """g^T x of two operands as the gradient of `parameter`; None when it went into `parameter.grad` in place."""
        if not self.in_place or parameter.grad is None:
            return g.t() @ x
        if g.dtype == parameter.dtype:
            parameter.grad.addmm_(g.t(), x)
        else:
            parameter.grad.add_(g.t() @ x)
        return None


class DropoutAddNorm(Function):
    """layer_norm(dropout(x) + residual)."""

    @staticmethod
    def forward(
        ctx: Any, bits: DropoutBits, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, p: float
    ) -> Tensor:
        kept, ctx.scale = None, 1 / (1 - p)
        if p:
            kept = bits.kept(x, p)
            x = zeroed(x, kept)
        total = torch.add(residual, x, alpha=ctx.scale)
        out, mean, rstd = torch.native_layer_norm(total, weight.shape, weight, bias, eps)
        ctx.save_for_backward(total, mean, rstd, weight, bias, kept)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        total, mean, rstd, weight, bias, kept = ctx.saved_tensors
        d_total, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
            g.contiguous(), total, weight.shape, mean, rstd, weight, bias, [True, True, True]
        )
        d_x = d_total if kept is None else zeroed(d_total, kept).mul_(ctx.scale)
        return None, d_x, d_total, d_weight, d_bias, None, None


class Linear(Function):
    """x W^T + b, with W and b joined from one parameter or several."""

    @staticmethod
    def forward(ctx: Any, kernels: CpuKernels, x: Tensor, count: int, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[:count], parameters[count:]
        ctx.kernels, ctx.weights = kernels, weights
        ctx.save_for_backward(x)
        return kernels.result(F.linear(kernels.operand(x), kernels.copy(*weights), kernels.copy(*biases)))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        (x,), weights, kernels = ctx.saved_tensors, ctx.weights, ctx.kernels
        g, x = kernels.operand(g), kernels.operand(x)
        parts = g.split([len(weight) for weight in weights], dim=1)
        d_weights = [kernels.weight_grad(weight, part, x) for weight, part in zip(weights, parts)]
        d_biases = [part.sum(0, dtype=torch.float32) for part in parts]
        return None, kernels.result(g @ kernels.copy(*weights)), None, *d_weights, *d_biases


class FeedForward(Function):
    """gelu(x U^T + a) D^T + b; the wide activation is computed again in the backward pass rather than kept."""

    @staticmethod
    def forward(
        ctx: Any, kernels: CpuKernels, x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor
    ) -> Tensor:
        wide = kernels.result(F.linear(kernels.operand(x), kernels.copy(up), kernels.copy(up_bias)))
        ctx.kernels, ctx.parameters = kernels, (up, down)
        ctx.save_for_backward(x, wide)
        active = kernels.operand(F.gelu(wide))
        return kernels.result(F.linear(active, kernels.copy(down), kernels.copy(down_bias)))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        (x, wide), (up, down), kernels = ctx.saved_tensors, ctx.parameters, ctx.kernels
        g, x = kernels.operand(g), kernels.operand(x)
        d_down = kernels.weight_grad(down, g, kernels.operand(F.gelu(wide)))
        d_wide = torch.ops.aten.gelu_backward(kernels.result(g @ kernels.copy(down)), wide)
        d_wide = kernels.operand(d_wide)
        d_up = kernels.weight_grad(up, d_wide, x)
        d_up_bias, d_down_bias = d_wide.sum(0, dtype=torch.float32), g.sum(0, dtype=torch.float32)
        return None, kernels.result(d_wide @ kernels.copy(up)), d_up, d_up_bias, d_down, d_down_bias


def equal_runs(lengths: Iterable[int]) -> list[Run]:
    """The runs of neighbours of one length."""
    runs: list[Run] = []
    start = 0
    for length in lengths:
        if runs and runs[-1][2] == length:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, length)
        else:
            runs.append((start, 1, length))
        start += length
    return runs


class Attention(Function):
    """softmax(Q K^T / sqrt(d)) V within each sequence, with dropout on the probabilities."""

    @staticmethod
    def forward(ctx: Any, bits: DropoutBits, qkv: Tensor, runs: list[Run], num_heads: int, p: float) -> Tensor:
        tokens, width = qkv.shape
        out = qkv.new_empty(tokens, width // 3)
        ctx.runs, ctx.num_heads, ctx.p = runs, num_heads, p
        signed = []
        for start, count, length in runs:
            q, k, v = _heads(qkv, start, count, length, num_heads)
            probabilities = torch.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1)
            if p:
                sign_dropped(probabilities, bits.kept(probabilities, p))
            signed.append(probabilities)
            context = torch.bmm(probabilities.relu() if p else probabilities, v)
            _tokens(out, start, count, length, num_heads).copy_(context.view(count, num_heads, length, -1))
        ctx.save_for_backward(qkv, *signed)
        return out.mul_(1 / (1 - p)) if p else out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        (qkv, *signed), num_heads, p = ctx.saved_tensors, ctx.num_heads, ctx.p
        g = g * (1 / (1 - p)) if p else g
        d_qkv = torch.empty_like(qkv)
        for (start, count, length), probabilities in zip(ctx.runs, signed):
            q, k, v = _heads(qkv, start, count, length, num_heads)
            d_context = _tokens(g, start, count, length, num_heads).reshape(count * num_heads, length, -1)
            d_v = torch.bmm((probabilities.relu() if p else probabilities).transpose(1, 2), d_context)
            d_probabilities = torch.bmm(d_context, v.transpose(1, 2))
            if p:
                d_probabilities = zeroed(d_probabilities, kept_by_sign(probabilities))
                probabilities = probabilities.abs()
            d_scores = torch.ops.aten._softmax_backward_data(d_probabilities, probabilities, -1, g.dtype)
            d_q = torch.bmm(d_scores, k).mul_(1 / math.sqrt(k.shape[-1]))
            d_k = torch.bmm(d_scores.transpose(1, 2), q)
            joined = d_qkv[start : start + count * length].view(count, length, 3, num_heads, -1)
            for part, gradient in enumerate((d_q, d_k, d_v)):
                joined[:, :, part].copy_(gradient.view(count, num_heads, length, -1).transpose(1, 2))
        return None, d_qkv, None, None, None


def _heads(qkv: Tensor, start: int, count: int, length: int, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries, keys and values of a run, each (sequences * heads) x length x head size."""
    block = qkv[start : start + count * length].view(count, length, 3, num_heads, -1)
    q, k, v = block.permute(2, 0, 3, 1, 4).contiguous().view(3, count * num_heads, length, -1)
    return q.mul_(1 / math.sqrt(q.shape[-1])), k, v


def _tokens(flat: Tensor, start: int, count: int, length: int, num_heads: int) -> Tensor:
    """View of a run of T x h as sequences x heads x length x head size."""
    return flat[start : start + count * length].view(count, length, num_heads, -1).transpose(1, 2)


class MaskedLoss(Function):
    """Summed cross-entropy of x W^T + b and the number of rows whose label scores highest.

    The gradient of the logits is made in the forward pass, some rows at a time, so that the M x V logits never
    exist in fp32 as a whole.
    """

    @staticmethod
    def forward(
        ctx: Any, kernels: CpuKernels, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        low, low_bias = kernels.copy(weight), kernels.copy(bias)
        loss, right = x.new_zeros((), dtype=torch.float32), x.new_zeros((), dtype=torch.int64)
        d_logits = []
        for rows in range(0, len(x), LOSS_ROWS):
            label = labels[rows : rows + LOSS_ROWS, None]
            part = kernels.operand(x[rows : rows + LOSS_ROWS])
            logits = kernels.result(F.linear(part, low, low_bias)).float()
            highest = logits.amax(1, keepdim=True)
            picked = logits.gather(1, label)
            right += (picked >= highest).sum()
            exponentials = logits.sub_(highest).exp_()
            total = exponentials.sum(1, keepdim=True)
            loss += (total.log() + highest - picked).sum()
            if any(ctx.needs_input_grad):
                gradient = exponentials.div_(total)
                gradient.scatter_add_(1, label, gradient.new_full((), -1.0).expand_as(label))
                d_logits.append(gradient.to(x.dtype))
        ctx.kernels, ctx.weight = kernels, weight
        ctx.save_for_backward(x, *d_logits)
        return loss, right.float()

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> Gradients:
        x, *parts = ctx.saved_tensors
        d_logits = parts[0] if len(parts) == 1 else torch.cat(parts) if parts else x.new_empty(0, len(ctx.weight))
        kernels, low = ctx.kernels, ctx.kernels.copy(ctx.weight)
        d_logits = kernels.operand(d_logits)
        d_weight = kernels.weight_grad(ctx.weight, d_logits, kernels.operand((x * g).to(x.dtype)))
        d_bias = d_logits.sum(0, dtype=torch.float32) * g
        return None, kernels.result(d_logits @ low) * g.to(x.dtype), d_weight, d_bias, None
