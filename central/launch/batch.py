"""Batch arithmetic of pre-training: what one rank sees, exact or refused."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Batch:
    """One optimizer step of a phase. `per_rank` sequences a rank, in `grad_accum_steps` micro-steps."""

    global_batch_size: int
    world_size: int
    per_rank: int
    micro_batch_size: int
    grad_accum_steps: int

    def __str__(self) -> str:
        return (
            f"{self.global_batch_size} sequences a step = {ranks(self.world_size)}"
            f" x {self.grad_accum_steps} micro-steps x {self.micro_batch_size} sequences"
        )


def split(global_batch_size: int, world_size: int, micro_batch_size: int, accumulate: bool) -> Batch:
    """Divide a step among ranks and micro-steps; ValueError with the nearest exact sizes where it does not divide.

    Without `accumulate` a rank's share is one micro-batch and must be `micro_batch_size`: a silent other size would
    be another experiment, or out of memory.
    """
    unit = world_size * micro_batch_size
    if global_batch_size % unit:
        raise ValueError(
            f"--train_batch_size {global_batch_size} does not divide into {ranks(world_size)} with --batch_size"
            f" {micro_batch_size}; nearest exact: {' or '.join(map(str, nearest_multiples(global_batch_size, unit)))}"
        )
    grad_accum_steps = global_batch_size // unit
    per_rank = global_batch_size // world_size
    if grad_accum_steps > 1 and not accumulate:
        raise ValueError(
            f"--train_batch_size {global_batch_size} is {per_rank} for each of {ranks(world_size)}, and --batch_size is"
            f" {micro_batch_size}; add --accumulate_gradients ({grad_accum_steps} micro-steps), or give"
            f" --train_batch_size {unit}"
        )
    return Batch(global_batch_size, world_size, per_rank, micro_batch_size, grad_accum_steps)


def nearest_multiples(value: int, unit: int) -> list[int]:
    """The multiples of `unit` just below and above a value, from 1 x unit on."""
    below = value // unit * unit
    return [multiple for multiple in (below, below + unit) if multiple]


def ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"
