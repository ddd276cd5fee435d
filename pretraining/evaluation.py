"""Held-out evaluation: masked-LM loss and accuracy, next-sentence accuracy, and the baseline of each beside it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from central.runtime.exits import BadRequest
from central.runtime.rank import StopRequest
from pretraining.batches import Rows, concatenate, flat_micro_batch, static_micro_batch
from pretraining.dataset import Limits, Shard, read_shard

MAX_ROWS = 1024  # of the test shards, evenly spaced, the same ones at every evaluation
MAX_COUNTED_ROWS = 200_000  # training rows read for the unigram counts of foreign shards
COUNTS_REMEDY = "delete it, and the tokens of the training shards are counted instead"


@dataclass(frozen=True)
class HeldOut:
    rows: Rows  # this rank's share
    unigram_loss: float
    nsp_majority: float


def load_held_out(shards: list[Shard], limits: Limits, rank: int, world_size: int, counts) -> HeldOut:
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
    share = rows.take(np.arange(rank, len(rows), world_size))
    return HeldOut(share, unigram_loss(rows, counts), nsp_majority(rows))


def unigram_loss(rows: Rows, counts) -> float:
    """Mean cross-entropy of the masked ids under add-one counts of the training ids."""
    masked = rows.masked_ids[rows.masked_positions != 0]
    probabilities = (counts[masked] + 1) / (counts.sum() + len(counts))
    return float(-np.log(probabilities).mean()) if len(masked) else 0.0


def nsp_majority(rows: Rows) -> float:
    """Next-sentence accuracy of giving every sequence the commoner label."""
    labels = rows.next_sentence_labels[rows.next_sentence_weights != 0]
    random_share = float(np.mean(labels)) if len(labels) else 0.0
    return max(random_share, 1 - random_share)


def training_counts(folder: Path, shards: list[Shard], limits: Limits):
    """Occurrences of each id in the training documents: from token_counts.npy, else counted over the shards."""
    stored = folder / "token_counts.npy"
    if stored.is_file():
        try:
            counts = np.load(stored, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BadRequest(f"{stored}: cannot be read ({error}): {COUNTS_REMEDY}") from error
        if counts.shape != (limits.vocab_size,) or counts.dtype.kind not in "iu" or counts.min() < 0:
            raise BadRequest(f"{stored}: not {limits.vocab_size} counts, one for each token: {COUNTS_REMEDY}")
        return counts
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
    model, held_out: HeldOut, micro_batch_size: int, device, exchange, mark: Callable[[str], None], stop: StopRequest
) -> dict[str, float] | None:
    """The eval_* numbers of a report, over all ranks' shares. The model is left in training mode.

    `mark` is told how far it is. Returns None where the ranks agreed to stop on the way.
    """
    rows = held_out.rows
    shared = exchange.sum([len(rows)])[0] // exchange.world_size  # rows that every rank has: one may have one more
    make = static_micro_batch if device.pads_rows else partial(flat_micro_batch, tile=device.tile)
    sums = torch.zeros(4, device=device.device)
    model.eval()
    for start in range(0, len(rows), micro_batch_size):
        mark(f"evaluation, row {start}")
        if start < shared and exchange.sum([stop.requested])[0]:
            model.train()
            return None
        part = rows.take(np.arange(start, min(start + micro_batch_size, len(rows))))
        if device.compiles and len(part) < micro_batch_size:
            part = _filled(part, micro_batch_size)
        sums += model(make(part).to(device.device))
        device.mark_step()
    model.train()
    mark("evaluation, waiting for all ranks")
    counts = [rows.num_masked, rows.num_sequences]
    *sums, masked, sequences = exchange.sum([*sums.tolist(), *counts])  # a host sync, once per evaluation
    return {
        "eval_mlm_loss": sums[0] / max(masked, 1),
        "eval_nsp_loss": sums[1] / max(sequences, 1),
        "eval_mlm_accuracy": sums[2] / max(masked, 1),
        "eval_nsp_accuracy": sums[3] / max(sequences, 1),
        "eval_unigram_loss": held_out.unigram_loss,
        "eval_nsp_majority": held_out.nsp_majority,
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
