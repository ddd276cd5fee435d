"""Batches of examples of about the same length, so that little or nothing is padded.

The order of an epoch is a pure function of (lengths, batch size, seed, epoch). Examples are shuffled, sorted by length
within pools of many batches, cut into batches, and the batches are shuffled: every batch is a random sample of its
length, and their sequence has no trend.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler

# Sorted together. On MRPC and SQuAD 2.5 % is padding, and 1 of 7 pairs in a batch meets again in the next epoch.
POOL_BATCHES = 32


def epoch_order(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, ranks: int = 1, fill: bool = False
) -> np.ndarray:
    """Indices of one epoch, to be cut into batches of `batch_size // ranks` which the ranks take in turn.

    `batch_size` is that of all ranks together; the ranks of one step get batches of equal cost. The examples that
    fill no whole batch come last; with `fill` they are completed by examples drawn from the rest.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    if fill and len(order) % batch_size:
        order = np.concatenate([order, np.resize(order, -len(order) % batch_size)])
    whole = len(order) // batch_size * batch_size
    batches = []
    for pool in np.split(order[:whole], range(POOL_BATCHES * batch_size, whole, POOL_BATCHES * batch_size)):
        by_length = pool[np.argsort(lengths[pool], kind="stable")].reshape(-1, batch_size)
        batches.append(by_length.reshape(-1, batch_size // ranks, ranks).swapaxes(1, 2).reshape(-1, batch_size))
    batches = np.concatenate(batches)
    return np.concatenate([batches[rng.permutation(len(batches))].ravel(), order[whole:]])


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
    """The few lengths that batches have on hpu, where every new shape is a new graph: 32 64 96 128."""
    return tuple(sorted({max(8, -(-max_seq_length * quarter // 4)) for quarter in (1, 2, 3)} | {max_seq_length}))


@dataclass(frozen=True)
class Collator:
    """Pads a batch to its longest example, or to the smallest bucket that holds it."""

    pad_token_id: int
    padding_side: str = "right"
    buckets: tuple[int, ...] = ()
    multiple: int = 1  # lengths are rounded up to it

    def __call__(self, rows: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        length = next(
            (bucket for bucket in self.buckets if bucket >= longest), -(-longest // self.multiple) * self.multiple
        )
        batch = {"attention_mask": torch.zeros(len(rows), length, dtype=torch.int64)}
        starts = [length - len(row["input_ids"]) if self.padding_side == "left" else 0 for row in rows]
        for name in rows[0]:
            if np.ndim(rows[0][name]) == 0:
                batch[name] = torch.as_tensor(np.array([row[name] for row in rows]))
                continue
            padded = np.full((len(rows), length), self.pad_token_id if name == "input_ids" else 0, np.int64)
            for out, start, row in zip(padded, starts, rows):
                out[start : start + len(row[name])] = row[name]
            batch[name] = torch.from_numpy(padded)
        for mask, start, row in zip(batch["attention_mask"], starts, rows):
            mask[start : start + len(row["input_ids"])] = 1
        return batch
