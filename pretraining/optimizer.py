"""The optimizers of pre-training by name, one of which a run takes.

One more is a class like `Lamb`, in a file of its own, and a line in OPTIMIZERS: it groups nothing, is told the norm of
all gradients, clips by it, and counts its updates as `step` in its groups.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from central.runtime.device import Device
from pretraining.lamb import Lamb
from pretraining.modeling import decays

WEIGHT_DECAY = 0.01


class Optimizer(Protocol):
    """What training and checkpoints need of an optimizer."""

    param_groups: list[dict[str, Any]]  # with `lr`, and `step`: how many updates there have been
    state: Any  # parameter -> its tensors by name
    moments: tuple[str, ...]  # names of those that a checkpoint holds, each of its parameter's shape

    def step(self, norm: torch.Tensor) -> object:
        """One update by the gradients, whose global norm is `norm`; nothing changes where that is not finite.

        It must show in the version of each parameter, by which kernels know that their copies are old.
        """

    def zero_grad(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def resume_at(self, step: int) -> None:
        """Count on from so many updates; their moments have been put into `state`."""


def build(name: str, model: torch.nn.Module, lr: float, device: Device) -> Optimizer:
    """The optimizer of a model that is on its device; weight decay goes to matrices only."""
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if decays(name)], "weight_decay": WEIGHT_DECAY},
        {"params": [p for name, p in named if not decays(name)], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[name](groups, lr, device)


def lamb(groups: list[dict[str, Any]], lr: float, device: Device) -> Optimizer:
    return Lamb(groups, lr=lr, fused=device.has_fused_adamw)


def fused_lamb(groups: list[dict[str, Any]], lr: float, device: Device) -> Optimizer:
    """Habana's, with the state of ours; ours where the device has no such kernel."""
    habanas: Any = device.fused_lamb()
    if habanas is None:
        return lamb(groups, lr, device)

    class FusedLamb(habanas):
        moments = Lamb.moments
        resume_at = Lamb.resume_at

        def step(self, norm: torch.Tensor) -> None:
            super().step()  # it clips by itself

    return FusedLamb(groups, lr=lr)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float, Device], Optimizer]] = {
    "lamb": lamb,
    "fused_lamb": fused_lamb,
}
