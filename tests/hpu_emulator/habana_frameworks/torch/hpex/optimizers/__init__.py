"""Test double of Habana's fused optimizers: their signatures, state and arithmetic, in plain torch operations."""

import math

import habana_frameworks.torch.core as htcore
import torch

from hpu_emulator import state as watched


def _on_hpu(param_groups) -> torch.device:
    device = param_groups[0]["params"][0].device
    if device.type != "hpu":
        raise RuntimeError(
            f"fused optimizers are made after the model has moved to hpu, and its parameters are on {device}"
        )
    return device


def _scalar(value: float, device: torch.device) -> torch.Tensor:
    """A number that may change every step without a new graph."""
    return torch.tensor([value]).to(device, non_blocking=True)


class FusedLamb(torch.optim.Optimizer):
    def __init__(
        self,
        params,
        lr=1e-3,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=0.01,
        amsgrad=False,
        adam_w_mode=True,
        grad_averaging=True,
        set_grad_none=True,
        max_grad_norm=1.0,
        use_lamb=False,
        fused=False,
        dtype=None,
    ):
        if amsgrad:
            raise RuntimeError("FusedLamb does not support the AMSGrad variant.")
        defaults = dict(
            lr=lr,
            bias_correction=bias_correction,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            grad_averaging=grad_averaging,
            max_grad_norm=max_grad_norm,
        )
        super().__init__(params, defaults)
        self.device = _on_hpu(self.param_groups)
        self.use_lamb = use_lamb
        self.set_grad_none = set_grad_none

    def zero_grad(self):
        if not self.set_grad_none:
            return super().zero_grad(set_to_none=False)
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = None

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            closure()
        htcore.mark_step()
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        clip = torch.ones(1, device=self.device)
        limit = self.defaults["max_grad_norm"]
        if limit is not None:
            norm = torch.stack([grad.float().pow(2).sum() for grad in grads]).sum().sqrt()
            clip = torch.where(norm > limit, norm / limit, clip)
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            beta1, beta2 = group["betas"]
            beta3 = 1 - beta1 if group["grad_averaging"] else 1.0
            corrected = group["bias_correction"]
            lr = _scalar(group["lr"], self.device)
            correction1 = _scalar(1 - beta1 ** group["step"] if corrected else 1.0, self.device)
            correction2 = _scalar(1 - beta2 ** group["step"] if corrected else 1.0, self.device)
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["exp_avg"] = torch.zeros_like(param)
                    state["exp_avg_sq"] = torch.zeros_like(param)
                grad = param.grad / clip
                state["exp_avg"].mul_(beta1).add_(grad, alpha=beta3)
                state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                update = (state["exp_avg"] / correction1) / ((state["exp_avg_sq"] / correction2).sqrt() + group["eps"])
                ratio = 1.0
                if group["weight_decay"] != 0 or self.use_lamb:
                    update.add_(param, alpha=group["weight_decay"])
                    length = update.norm()
                    # Only the update's norm is tested: a decayed weight of norm 0 never moves.
                    ratio = torch.where(length > 0, param.norm() / length, torch.ones_like(length))
                param.sub_(lr * ratio * update)
        htcore.mark_step()


class FusedAdamW(torch.optim.Optimizer):
    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=0.0,
        bias_correction=True,
        moments_dtype=None,
    ):
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, bias_correction=bias_correction)
        super().__init__(params, defaults)
        self.device = _on_hpu(self.param_groups)
        self.moments_dtype = moments_dtype

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure is not None else None
        htcore.mark_step()
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            beta1, beta2 = group["betas"]
            size = group["lr"]
            if group["bias_correction"]:
                size *= math.sqrt(1 - beta2 ** group["step"]) / (1 - beta1 ** group["step"])
            size = _scalar(size, self.device)
            # In lazy mode the decay is a number baked into the graph, in the others a tensor.
            decay = 1 - group["weight_decay"] * group["lr"]
            if not watched.lazy:
                decay = _scalar(decay, self.device)
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(param, dtype=self.moments_dtype)
                    state["exp_avg_sq"] = torch.zeros_like(param, dtype=self.moments_dtype)
                state["exp_avg"].mul_(beta1).add_(param.grad, alpha=1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(param.grad, param.grad, value=1 - beta2)
                if group["weight_decay"] != 0:
                    param.mul_(decay)
                param.sub_(size * state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"]))
        htcore.mark_step()
        return loss
