"""LAMB as NVIDIA and Habana run it: Adam's direction plus decoupled decay, scaled per tensor by its trust ratio.

The state is laid out as Habana's FusedLamb lays it out (`exp_avg` and `exp_avg_sq` per parameter, `step` per group),
so that the two read each other's checkpoints. No step waits for the device: no `.item()`, no `if` on a tensor.
"""

import torch
from torch.optim import Optimizer

CHUNK = 1 << 16  # elements summed in fp32 at a time; one long fp32 sum of squares is wrong in its third digit


def square_sum(x):
    """Sum of squares as a 0-dim tensor; on a CPU in fp64 over chunks, to about 2e-7."""
    if x.device.type != "cpu":
        return torch.linalg.vector_norm(x).square()
    return torch.stack([torch.dot(chunk, chunk) for chunk in x.reshape(-1).split(CHUNK)]).sum(dtype=torch.float64)


def global_norm(gradients):
    """Norm over all gradients together, a 0-dim fp32 tensor; non-finite when any of them is."""
    return torch.stack([square_sum(gradient) for gradient in gradients]).sum().sqrt().float()


def trust_ratio(weights, update):
    """|weights| / |update|, 1 where either is zero."""
    weight_norm, update_norm = square_sum(weights).sqrt(), square_sum(update).sqrt()
    ratio = weight_norm / update_norm
    return torch.where((weight_norm > 0) & (update_norm > 0), ratio, torch.ones_like(ratio)).float()


def lamb_update(p, grad, exp_avg, exp_avg_sq, *, step, lr, betas, eps, weight_decay, bias_correction, clip, finite):
    """One step of one tensor, in place.

    `step`, `lr`, `clip` (the number gradients are divided by) and `finite` (1.0 or 0.0) are 0-dim fp32 tensors.
    """
    if p.device.type == "hpu":
        moments = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "betas": betas, "finite": finite}
        update = adam_direction(grad / clip, step=step, eps=eps, bias_correction=bias_correction, **moments)
        minus_update = -(update + weight_decay * p)
    else:
        minus_update = _minus_update(
            p, grad, exp_avg, exp_avg_sq, step, betas, eps, weight_decay, bias_correction, clip, finite
        )
    scale = lr * trust_ratio(p, minus_update) if weight_decay else lr
    p.addcmul_(minus_update, torch.where(finite > 0, scale, torch.zeros_like(scale)))


def adam_direction(grad, *, exp_avg, exp_avg_sq, step, betas, eps, bias_correction, finite):
    """Adam's direction in plain operations, for hpu, which has no kernel for torch's fused AdamW.

    Moments change in place, and stay as they are where `finite` is 0.
    """
    grad = torch.where(finite > 0, grad, torch.zeros_like(grad))
    exp_avg.add_((grad - exp_avg) * (1 - betas[0]) * finite)
    exp_avg_sq.add_((grad.square() - exp_avg_sq) * (1 - betas[1]) * finite)
    if not bias_correction:
        return exp_avg / (exp_avg_sq.sqrt() + eps)
    correction, correction_sq = (1 - torch.pow(beta, step) for beta in betas)
    return (exp_avg / correction) / ((exp_avg_sq / correction_sq).sqrt() + eps)


def _minus_update(p, grad, exp_avg, exp_avg_sq, step, betas, eps, weight_decay, bias_correction, clip, finite):
    # torch's fused AdamW turns s into s - adam(grad); s starts as -weight_decay * p, so it ends as minus the update.
    minus_update = torch.mul(p, -weight_decay)
    correction = {} if bias_correction else {"state_steps": [torch.full_like(step, 1e9)]}
    torch._fused_adamw_(
        [minus_update],
        [grad],
        [exp_avg],
        [exp_avg_sq],
        max_exp_avg_sqs=[],
        lr=1.0,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
        grad_scale=clip,
        found_inf=1.0 - finite,
        **({"state_steps": [step]} | correction),
    )
    return minus_update


class Lamb(Optimizer):
    """Walks the groups. `step(norm)` takes the global gradient norm that the caller has computed for its report."""

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, bias_correction=True, max_grad_norm=1.0
    ):
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        super().__init__(
            params, {**defaults, "weight_decay": weight_decay, "grad_averaging": True, "max_grad_norm": max_grad_norm}
        )

    @torch.no_grad()
    def step(self, norm=None):
        """Apply one update; a non-finite norm leaves weights and moments as they are. Returns 1.0 if it was finite."""
        if norm is None:
            norm = global_norm([p.grad for group in self.param_groups for p in group["params"] if p.grad is not None])
        finite = torch.isfinite(norm).float()
        clip = torch.clamp(norm / self.defaults["max_grad_norm"], min=1.0)
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            # Copied as a tensor: filled in as numbers they would make every step a new lazy graph.
            step, lr = torch.tensor([group["step"], group["lr"]], dtype=norm.dtype).to(norm.device).unbind()
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                options = {name: group[name] for name in ("betas", "eps", "weight_decay", "bias_correction")}
                moments = state["exp_avg"], state["exp_avg_sq"]
                lamb_update(p, p.grad, *moments, step=step, lr=lr, clip=clip, finite=finite, **options)
        return finite
