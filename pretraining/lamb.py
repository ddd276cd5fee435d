"""LAMB as NVIDIA and Habana run it: Adam's direction plus decoupled decay, scaled per tensor by its trust ratio.

The state is laid out as Habana's FusedLamb lays it out (`exp_avg` and `exp_avg_sq` per parameter, `step` per group),
so that the two read each other's checkpoints. No step waits for the device: no `.item()`, no `if` on a tensor.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

CHUNK = 1 << 18  # elements that fit a cache
ROW = 1 << 10  # elements; a long fp32 sum of squares would be wrong in its third digit


@dataclass(frozen=True)
class Numbers:
    """What one step of all tensors of a group is made with; tensors are 0-dim, fp32."""

    step: Tensor  # this one, from 1
    lr: Tensor
    clip: Tensor  # what gradients are divided by
    finite: Tensor  # 1.0, or 0.0 where weights and moments stay as they are
    betas: tuple[float, float]
    eps: float
    weight_decay: float


def square_sum(x: Tensor) -> Tensor:
    """Sum of squares as a 0-dim tensor; on a CPU over rows, to about 2e-7.

    A function of the values alone, wherever they lie in memory: `torch.dot` gives other bits at another alignment, and
    DDP lays gradients elsewhere after the first step of a process.
    """
    if not x.is_cpu:
        return torch.linalg.vector_norm(x).square()
    x = x.reshape(-1)
    rest = x.numel() % ROW
    rows = x[: x.numel() - rest].view(-1, ROW)
    squares = torch.linalg.vector_norm(rows, dim=1).square().sum(dtype=torch.float64)
    return squares + torch.linalg.vector_norm(x[x.numel() - rest :]).square()


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Norm over all gradients together, a 0-dim fp32 tensor; non-finite when any of them is."""
    return torch.stack([square_sum(gradient) for gradient in gradients]).sum().sqrt().float()


def trust_ratio(weight_square: Tensor, update_square: Tensor) -> Tensor:
    """|weights| / |update| from sums of squares, 1 where either is zero."""
    ratio = (weight_square / update_square).sqrt()
    return torch.where((weight_square > 0) & (update_square > 0), ratio, torch.ones_like(ratio)).float()


def lamb_update(p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, by: Numbers, fused: bool) -> None:
    """One step of one tensor, in place; uses `grad` up."""
    direction = _fused_direction if fused else _plain_direction
    minus_update, weight_square, update_square = direction(p, grad, exp_avg, exp_avg_sq, by)
    scale = by.lr * trust_ratio(weight_square, update_square) if by.weight_decay else by.lr
    p.addcmul_(minus_update, torch.where(by.finite > 0, scale, torch.zeros_like(scale)))


def _plain_direction(
    p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, by: Numbers
) -> tuple[Tensor, Tensor, Tensor]:
    """-(Adam's direction + decay) and the squares of weights and update, in operations that every device has."""
    (beta, beta_sq), finite = by.betas, by.finite
    grad = torch.where(finite > 0, grad / by.clip, torch.zeros_like(grad))
    exp_avg.add_((grad - exp_avg) * (1 - beta) * finite)
    exp_avg_sq.add_((grad.square() - exp_avg_sq) * (1 - beta_sq) * finite)
    correction, correction_sq = 1 - torch.pow(beta, by.step), 1 - torch.pow(beta_sq, by.step)
    adam = (exp_avg / correction) / ((exp_avg_sq / correction_sq).sqrt() + by.eps)
    minus_update = -(adam + by.weight_decay * p)
    return minus_update, square_sum(p), square_sum(minus_update)


def _fused_direction(
    p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, by: Numbers
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by torch's fused AdamW, which turns s into s - adam(g): s starts as -weight_decay * p.

    The result takes the place of `grad`. A CPU goes through a tensor in chunks that stay in its cache.
    """
    chunk = min(p.numel(), CHUNK) if p.is_cpu else p.numel()
    scale, skip, squares, clipped = 1 / by.clip, 1 - by.finite, [], torch.empty(chunk, dtype=p.dtype, device=p.device)
    for w, s, m, v in zip(*(tensor.view(-1).split(chunk) for tensor in (p, grad, exp_avg, exp_avg_sq))):
        g = torch.mul(s, scale, out=clipped[: len(s)])
        torch.mul(w, -by.weight_decay, out=s)
        torch._fused_adamw_(
            [s], [g], [m], [v], max_exp_avg_sqs=[], state_steps=[by.step], lr=1.0, beta1=by.betas[0],
            beta2=by.betas[1], weight_decay=0.0, eps=by.eps, amsgrad=False, maximize=False, found_inf=skip,
        )  # fmt: skip
        squares.append(torch.stack([square_sum(w), square_sum(s)]) if by.weight_decay else by.step.expand(2))
    weight_square, update_square = torch.stack(squares).sum(0, dtype=torch.float64)
    return grad, weight_square, update_square


class Lamb(Optimizer):
    """Walks the groups. `step(norm)` takes the global gradient norm that the caller has computed for its report.

    `fused`: the device has torch's fused AdamW, which makes several passes over memory one.
    """

    moments: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
        fused: bool = True,
    ):
        defaults = {"lr": lr, "bias_correction": True, "betas": betas, "eps": eps}  # with FusedLamb's names
        super().__init__(
            params, {**defaults, "weight_decay": weight_decay, "grad_averaging": True, "max_grad_norm": max_grad_norm}
        )
        self._fused = fused

    def resume_at(self, step: int) -> None:
        """Count on from so many updates."""
        for group in self.param_groups:
            group["step"] = step

    @torch.no_grad()
    def step(self, norm: Tensor | None = None) -> Tensor:  # type: ignore[override]  # torch's takes a closure
        """Apply one update, which uses the gradients up; after a non-finite norm weights and moments stay as they are.

        Returns a tensor, 1.0 if the norm was finite, else 0.0.
        """
        if norm is None:
            norm = global_norm([p.grad for group in self.param_groups for p in group["params"] if p.grad is not None])
        finite = torch.isfinite(norm).float()
        clip = torch.clamp(norm / self.defaults["max_grad_norm"], min=1.0)
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            # Copied as a tensor: filled in as numbers they would make every step a new lazy graph.
            numbers = torch.tensor([group["step"], group["lr"]], dtype=norm.dtype)
            step, lr = numbers.to(norm.device, non_blocking=True).unbind()
            by = Numbers(step, lr, clip, finite, group["betas"], group["eps"], group["weight_decay"])
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                lamb_update(p, p.grad, state["exp_avg"], state["exp_avg_sq"], by, self._fused)
        return finite
