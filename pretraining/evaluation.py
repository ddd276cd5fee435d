"""Held-out evaluation: loss and accuracy of each part of the objective, and the baseline of each beside it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from central.runtime.device import Device
from central.runtime.exits import BadRequest
from central.runtime.rank import StopRequest
from pretraining.batches import Rows, concatenate, flat_micro_batch, static_micro_batch
from pretraining.dataset import Limits, Shard, read_shard
from pretraining.distributed import Alone
from pretraining.objective import Objective

MAX_ROWS = 1024  # of the test shards, evenly spaced, the same ones at every evaluation
MAX_COUNTED_ROWS = 200_000  # training rows read for the unigram counts of foreign shards
COUNTS_REMEDY = "delete it, and the tokens of the training shards are counted instead"


@dataclass(frozen=True)
class HeldOut:
    rows: Rows  # those of this rank
    baselines: dict[str, float]  # of the rows of all ranks


def load_held_out(
    shards: list[Shard], limits: Limits, rank: int, world_size: int, counts: np.ndarray, objective: Objective
) -> HeldOut:
    """Rows spread over all test shards; `counts` are the training ids behind the unigram baseline."""
    total = sum(shard.num_rows for shard in shards)
    chosen = np.unique(np.linspace(0, total - 1, min(total, MAX_ROWS)).astype(np.int64))
    firsts = np.concatenate([[0], np.cumsum([shard.num_rows for shard in shards])])
    parts = []
    for shard, first, last in zip(shards, firsts, firsts[1:]):
        index = chosen[(chosen >= first) & (chosen < last)] - first
        if len(index):
            parts.append(read_shard(shard, limits).take(index))
    rows = concatenate(parts)
    return HeldOut(rows.take(np.arange(rank, len(rows), world_size)), objective.baselines(rows, counts))


def stored_counts(folder: Path, vocab_size: int) -> np.ndarray | None:
    """Content of token_counts.npy, None where a folder has none; raises BadRequest for one that is no such thing."""
    stored = folder / "token_counts.npy"
    if not stored.is_file():
        return None
    try:
        counts = np.load(stored, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadRequest(f"{stored}: cannot be read ({error}): {COUNTS_REMEDY}") from error
    if counts.shape != (vocab_size,) or counts.dtype.kind not in "iu" or counts.min() < 0:
        raise BadRequest(f"{stored}: not {vocab_size} counts, one for each token: {COUNTS_REMEDY}")
    return counts


def count_tokens(shards: list[Shard], limits: Limits) -> np.ndarray:
    """Occurrences of each id in the training documents, counted over the shards: where no token_counts.npy tells."""
    counts, seen = np.zeros(limits.vocab_size, dtype=np.int64), 0
    for shard in shards:
        rows = read_shard(shard, limits)
        ids = rows.unmasked_ids()
        ids[:, 0] = 0  # [CLS] and [SEP] are no words of the documents
        real = (rows.sequence_ids != 0) & (ids != 0)
        counts += np.bincount(ids[real], minlength=limits.vocab_size)
        seen += len(rows)
        if seen >= MAX_COUNTED_ROWS:
            break
    return counts


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    objective: Objective,
    held_out: HeldOut,
    micro_batch_size: int,
    device: Device,
    exchange: Alone,
    mark: Callable[[str], None],
    stop: StopRequest,
) -> dict[str, float] | None:
    """The eval_* numbers of a report, over the rows of all ranks. The model is left in training mode.

    `mark` is told how far it is. Returns None where the ranks agreed to stop on the way.
    """
    rows = held_out.rows
    shared = exchange.sum([len(rows)])[0] // exchange.world_size  # rows that every rank has: one may have one more
    make = static_micro_batch if device.pads_rows else partial(flat_micro_batch, tile=device.tile)
    counts = objective.counts(rows)
    totals = torch.zeros(2 * len(counts), device=device.device)
    model.eval()
    for start in range(0, len(rows), micro_batch_size):
        mark(f"evaluation, row {start}")
        if start < shared and exchange.sum([stop.requested])[0]:
            model.train()
            return None
        part = rows.take(np.arange(start, min(start + micro_batch_size, len(rows))))
        if device.compiles and len(part) < micro_batch_size:
            part = _filled(part, micro_batch_size)
        totals += model(make(part).to(device.device))
        device.mark_step()
    model.train()
    mark("evaluation, waiting for all ranks")
    numbers = [*totals.tolist(), *counts, rows.num_sequences]  # a host sync, once per evaluation
    *found, sequences = exchange.sum(numbers)
    means = objective.means(found[: len(totals)], found[len(totals) :])
    return {
        **{f"eval_{name}": mean for name, mean in means.items()},
        **held_out.baselines,
        "eval_sequences": int(sequences),
    }


def _filled(rows: Rows, size: int) -> Rows:
    """Rows brought to `size` by repeating the first one with nothing to predict in it."""
    index = np.concatenate([np.arange(len(rows)), np.zeros(size - len(rows), dtype=np.int64)])
    filled = rows.take(index)
    masked_positions, weights = filled.masked_positions.copy(), filled.next_sentence_weights.copy()
    masked_positions[len(rows) :] = 0
    weights[len(rows) :] = 0
    return replace(filled, masked_positions=masked_positions, next_sentence_weights=weights)
