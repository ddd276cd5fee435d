"""Batch arithmetic of pre-training: what one rank sees, exact or refused."""

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Batch:
    """One optimizer step of a phase. `per_rank` sequences a rank, in `grad_accum_steps` micro-steps."""

    global_batch_size: int
    world_size: int
    per_rank: int
    micro_batch_size: int
    grad_accum_steps: int

    def __str__(self):
        return (
            f"{self.global_batch_size} sequences a step = {self.world_size} ranks"
            f" x {self.grad_accum_steps} micro-steps x {self.micro_batch_size} sequences"
        )


def split(global_batch_size, world_size, micro_batch_size, accumulate) -> Batch:
    """Divide a step among ranks and micro-steps; ValueError with the nearest exact sizes where it does not divide.

    Without `accumulate` a rank's share is one micro-batch and must be `micro_batch_size`: a silent other size would
    be another experiment, or out of memory.
    """
    one_micro_step = world_size * micro_batch_size
    if global_batch_size % one_micro_step:
        raise ValueError(
            f"--train_batch_size {global_batch_size} is not a multiple of {world_size} ranks x --batch_size"
            f" {micro_batch_size} = {one_micro_step}; nearest exact: {_nearest_multiples(global_batch_size, one_micro_step)}"
        )
    grad_accum_steps = global_batch_size // one_micro_step
    if grad_accum_steps > 1 and not accumulate:
        raise ValueError(
            f"--train_batch_size {global_batch_size} over {world_size} ranks is {global_batch_size // world_size} a rank,"
            f" but --batch_size is {micro_batch_size}; add --accumulate_gradients ({grad_accum_steps} micro-steps),"
            f" or give --train_batch_size {one_micro_step}"
        )
    return Batch(
        global_batch_size, world_size, global_batch_size // world_size, micro_batch_size, grad_accum_steps
    )


def _nearest_multiples(value, unit):
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit}"
