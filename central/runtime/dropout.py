"""Dropout at the speed a CPU has.

torch draws dropout masks on a CPU one number at a time. Here a mask is 16 (bf16) or 32 (fp32) bits of a fast counter
per element, compared with a threshold and applied as a bit mask: dropping with probability p to within 2^-16.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.autograd import Function


def fold(integers: Iterable[int]) -> int:
    """One 63-bit seed out of several integers, different ones far apart (the finaliser of splitmix64)."""
    state = 0
    for integer in integers:
        state = (state + integer + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state >> 1


class DropoutBits:
    """A stream of dropout masks, a function of the integers that seed it, such as (seed, step, rank)."""

    def __init__(self, *seeds: int):
        self.reseed(*seeds)

    def reseed(self, *seeds: int) -> None:
        """Begin the stream that belongs to these integers."""
        self._stream = np.random.SFC64(seeds)

    @property
    def state(self) -> Any:
        return self._stream.state

    @contextlib.contextmanager
    def replay(self, state: Any) -> Iterator[None]:
        """Repeat the masks drawn since `state`, then go on where the stream was."""
        here, self._stream.state = self._stream.state, state
        try:
            yield
        finally:
            self._stream.state = here

    def kept(self, like: torch.Tensor, p: float) -> torch.Tensor:
        """Integers as wide as `like`'s elements: 0 with probability p, else all bits set."""
        width = 8 * like.element_size()
        words = -(-like.numel() * width // 64)
        raw = torch.from_numpy(self._stream.random_raw(words).view(np.int64))
        bits = raw.view(_integers(like))[: like.numel()].view(like.shape)
        count = min(max(round(p * 2**width), 1), 2**width - 1)  # of the values that mean "dropped"
        last_dropped = torch.iinfo(bits.dtype).min + count - 1
        return bits.clamp_(last_dropped, last_dropped + 1).neg_().add_(last_dropped)


def zeroed(x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """x where `kept` has all bits set, zero where it is zero."""
    return torch.bitwise_and(x.view(kept.dtype), kept).view(x.dtype)


def sign_dropped(probabilities: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Give the sign bit to the dropped ones, in place: a probability has none, so it remembers them for nothing.

    `relu()` of the result is the probabilities after dropout, `abs()` those before it.
    """
    sign = torch.iinfo(kept.dtype).min
    probabilities.view(kept.dtype).bitwise_or_(kept.bitwise_not_().bitwise_and_(sign))
    return probabilities


def kept_by_sign(signed: torch.Tensor) -> torch.Tensor:
    """The `kept` that `sign_dropped` was given."""
    return (signed.view(_integers(signed)) >> (8 * signed.element_size() - 1)).bitwise_not_()


class Dropout(Function):
    """Dropout of x with masks of a `DropoutBits`."""

    @staticmethod
    def forward(ctx: Any, bits: DropoutBits, x: torch.Tensor, p: float) -> torch.Tensor:
        kept = bits.kept(x, p)
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - p)
        return zeroed(x.contiguous(), kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        return None, zeroed(g.contiguous(), *ctx.saved_tensors).mul_(ctx.scale), None


def _integers(x: torch.Tensor) -> torch.dtype:
    """The integer type as wide as x's elements."""
    return torch.int16 if x.element_size() == 2 else torch.int32
