"""Random batches, computed in parts of examples of about the same length, so that little is padded.

A batch is a random sample of all examples. Batches of one length would pad as little, but learn less (SQuAD, two seeds:
1.3 of F1), as answers go with lengths and make the gradients of such batches differ. Parts add up to their batch's.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch.utils.data import Sampler

from central.runtime.device import Device

CPU_PART = 128  # tokens: as much as a part costs beside its tokens (Python, small kernels, gradients added up)
HPU_ROWS = 8  # of a part in hpu's eager mode: one shape for each bucket


def epoch_order(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, ranks: int = 1, fill: bool = False
) -> np.ndarray:
    """Indices of one epoch, to be cut into batches of `batch_size // ranks` which the ranks take in turn.

    A pure function of its arguments. `batch_size` is that of all ranks together; the ranks of one step get batches of
    equal cost, the shortest examples first. The examples that fill no whole batch come last; with `fill` they are
    completed by examples drawn from the rest.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    if fill and len(order) % batch_size:
        order = np.concatenate([order, np.resize(order, -len(order) % batch_size)])
    whole = len(order) // batch_size * batch_size
    batches, rest = order[:whole].reshape(-1, batch_size), order[whole:]
    batches = np.take_along_axis(batches, np.argsort(lengths[batches], axis=1, kind="stable"), axis=1)
    dealt = batches.reshape(-1, batch_size // ranks, ranks)
    dealt[:, 1::2] = dealt[:, 1::2, ::-1].copy()  # to and fro, so that no rank has the longer one of every turn
    return np.concatenate([dealt.swapaxes(1, 2).ravel(), rest[np.argsort(lengths[rest], kind="stable")]])


def to_longest(rows: int, longest: int) -> int:
    """Length to which the rows of a part are padded: not at all beyond the longest of them."""
    return longest


def to_multiple(rows: int, longest: int, multiple: int, limit: int) -> int:
    """A multiple of `multiple`; never more than `limit`, which no row exceeds and a model may not take more than."""
    return min(-(-longest // multiple) * multiple, limit)


def to_tiles(rows: int, longest: int, tile: int, limit: int) -> int:
    """A length with which the part has a multiple of `tile` tokens, so that few different shapes occur."""
    return to_multiple(rows, longest, tile // math.gcd(tile, rows), limit)


def to_bucket(rows: int, longest: int, buckets: Sequence[int]) -> int:
    """The smallest of the ascending `buckets` that holds the part."""
    return next(bucket for bucket in buckets if bucket >= longest)


def cheapest_parts(
    lengths: Sequence[int], padded: Callable[[int, int], int] = to_longest, cost: int = CPU_PART
) -> list[slice]:
    """Parts of rows in ascending order of length that cost least in all; a part costs its tokens, padded, and `cost`.

    The cheapest parts of the rows before `end` are those of the rows before some `begin`, and the others as one part.
    """
    cheapest: list[tuple[int, list[slice]]] = [(0, [])]  # cost and parts of the rows before each one
    for end, longest in enumerate(lengths, start=1):
        total, begin = min(
            (cheapest[begin][0] + (end - begin) * padded(end - begin, longest) + cost, begin) for begin in range(end)
        )
        cheapest.append((total, [*cheapest[begin][1], slice(begin, end)]))
    return cheapest[-1][1]


def parts_of_rows(lengths: Sequence[int], rows: int = HPU_ROWS) -> list[slice]:
    """Parts of `rows` rows; the last one may have fewer."""
    return [slice(begin, min(begin + rows, len(lengths))) for begin in range(0, len(lengths), rows)]


def one_part(lengths: Sequence[int]) -> list[slice]:
    return [slice(0, len(lengths))]


def layout(
    device: Device, max_seq_length: int, pad_to_max_length: bool
) -> tuple[Callable[[int, int], int], Callable[[Sequence[int]], list[slice]]]:
    """How a device likes its batches: the length for so many rows and their longest, and the parts of a batch.

    A graph costs the host as much for few rows as for many, so that a batch of the modes with graphs is one part.
    """
    if pad_to_max_length:
        return partial(to_bucket, buckets=(max_seq_length,)), one_part
    if device.compiles:
        padded = partial(to_bucket, buckets=buckets_of(max_seq_length))
        return padded, parts_of_rows if device.mode == "eager" else one_part
    if device.uses_host_memory:
        padded = partial(to_tiles, tile=device.tile, limit=max_seq_length)
        return padded, partial(cheapest_parts, padded=padded)
    return partial(to_multiple, multiple=8, limit=max_seq_length), one_part  # tensor cores take multiples of 8


class LengthBatches(Sampler[int]):
    """`epoch_order` as a torch sampler."""

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, ranks: int = 1, fill: bool = False):
        self.lengths, self.batch_size, self.seed, self.ranks, self.fill = lengths, batch_size, seed, ranks, fill
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        count = len(self.lengths)
        return count + (-count % self.batch_size if self.fill else 0)

    def __iter__(self) -> Iterator[int]:
        order = epoch_order(self.lengths, self.batch_size, self.seed, self.epoch, self.ranks, self.fill)
        return iter(order.tolist())


def buckets_of(max_seq_length: int) -> tuple[int, ...]:
    """The few lengths that batches have where every new shape is a new graph: 32 64 96 128."""
    return tuple(sorted({max(8, -(-max_seq_length * quarter // 4)) for quarter in (1, 2, 3)} | {max_seq_length}))


@dataclass(frozen=True)
class Collator:
    """Pads the examples of a batch to the length that `padded` gives for their number and the longest of them.

    `padding` holds the values of inputs that are padded with another one than 0.
    """

    pad_token_id: int
    padding_side: str = "right"
    padded: Callable[[int, int], int] = to_longest
    padding: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, rows: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        length = self.padded(len(rows), max(len(row["input_ids"]) for row in rows))
        batch = {"attention_mask": torch.zeros(len(rows), length, dtype=torch.int64)}
        starts = [length - len(row["input_ids"]) if self.padding_side == "left" else 0 for row in rows]
        values = {"input_ids": self.pad_token_id, **self.padding}
        for name in rows[0]:
            if np.ndim(rows[0][name]) == 0:
                batch[name] = torch.as_tensor(np.array([row[name] for row in rows]))
                continue
            padded = np.full((len(rows), length), values.get(name, 0), np.int64)
            for out, start, row in zip(padded, starts, rows):
                out[start : start + len(row[name])] = row[name]
            batch[name] = torch.from_numpy(padded)
        for mask, start, row in zip(batch["attention_mask"], starts, rows):
            mask[start : start + len(row["input_ids"])] = 1
        return batch


@dataclass(frozen=True)
class PartsCollator:
    """A training batch as `{"parts": [...]}`, each padded by itself."""

    collate: Collator
    cut: Callable[[Sequence[int]], list[slice]]

    def __call__(self, rows: Sequence[dict[str, np.ndarray]]) -> dict[str, list[dict[str, torch.Tensor]]]:
        return {"parts": [self.collate(rows[part]) for part in self.cut([len(row["input_ids"]) for row in rows])]}
