"""From rows of shards to the micro-batches of one optimizer step, in numpy; the device sees them last.

Two layouts: flat (cpu, cuda), where every real token is one row and padding does not exist, and static (hpu,
torch.compile), where every shape is the same at every step and unused masked positions have weight 0.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Rows:
    """Rows as the shards hold them. n rows of S tokens, P masked positions, Q sequences (1 where not packed)."""

    input_ids: np.ndarray  # n x S
    sequence_ids: np.ndarray  # n x S, 1, 2, ... per sequence, 0 is padding
    segment_ids: np.ndarray  # n x S
    positions: np.ndarray  # n x S
    masked_positions: np.ndarray  # n x P, 0 where unused: position 0 holds [CLS], which is never masked
    masked_ids: np.ndarray  # n x P
    cls_positions: np.ndarray  # n x Q
    next_sentence_labels: np.ndarray  # n x Q
    next_sentence_weights: np.ndarray  # n x Q, 0 where a row holds fewer sequences

    def __len__(self) -> int:
        return len(self.input_ids)

    def take(self, index: slice | np.ndarray) -> "Rows":
        """Rows chosen by a slice (as views) or by an array of numbers (as copies)."""
        return Rows(*(_taken(getattr(self, field.name), index) for field in fields(self)))

    @property
    def num_masked(self) -> int:
        return int(np.count_nonzero(self.masked_positions))

    @property
    def num_sequences(self) -> int:
        return int(np.count_nonzero(self.next_sentence_weights))

    @property
    def num_tokens(self) -> int:
        return int(np.count_nonzero(self.sequence_ids))

    def unmasked_ids(self) -> np.ndarray:
        """A copy of `input_ids` with the ids that were there before masking."""
        ids = self.input_ids.copy()
        row, column = np.nonzero(self.masked_positions)
        ids[row, self.masked_positions[row, column]] = self.masked_ids[row, column]
        return ids


def _taken(values: np.ndarray, index: slice | np.ndarray) -> np.ndarray:
    if isinstance(index, slice):
        return values[index]
    if values.strides[0] == 0:  # positions of rows that are not packed: one row stands for all
        return np.broadcast_to(values[0], (len(index), *values.shape[1:]))
    return np.take(values, index, axis=0)


def concatenate(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return Rows(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Rows)))


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one forward: T tokens, M masked positions, N sequences; ids int32, labels int64."""

    input_ids: torch.Tensor  # T
    segment_ids: torch.Tensor  # T
    positions: torch.Tensor  # T
    masked_positions: torch.Tensor  # M, indices into the T tokens
    masked_labels: torch.Tensor  # M
    masked_weights: torch.Tensor | None  # M, static layout only
    cls_positions: torch.Tensor  # N, indices into the T tokens
    next_sentence_labels: torch.Tensor  # N
    next_sentence_weights: torch.Tensor | None  # N, static layout only
    sequence_ids: torch.Tensor | None  # rows x S, static layout only
    offsets: torch.Tensor | None  # flat layout only: where sequences start and the last one ends
    lengths: tuple[int, ...] | None  # flat layout only: N, and one more where tokens fill the last tile
    attention_mask: torch.Tensor | None = None  # rows x 1 x S x S, static layout only, made where it is needed

    def to(self, device: torch.device) -> "MicroBatch":
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "MicroBatch":
        return self._with(torch.Tensor.pin_memory)

    def with_attention_mask(self, mask: torch.Tensor) -> "MicroBatch":
        return replace(self, attention_mask=mask)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "MicroBatch":
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **changed)


@dataclass(frozen=True)
class Step:
    """What one rank feeds to one optimizer step."""

    micro_batches: tuple[MicroBatch, ...]
    counts: tuple[int, ...]  # what the sums of its losses are divided by
    num_sequences: int
    num_tokens: int


def flat_micro_batches(rows: Rows, rows_per_micro_batch: int, tile: int = 1) -> Iterator[MicroBatch]:
    """Rows regrouped by their number of tokens: neighbours in a micro-batch are then of one length, or nearly.

    The longest come first: what they took is then room enough for all that follow, and a quarter less memory in all.
    """
    order = np.argsort(-np.count_nonzero(rows.sequence_ids, axis=1), kind="stable")
    for start in range(0, len(rows), rows_per_micro_batch):
        yield flat_micro_batch(rows.take(order[start : start + rows_per_micro_batch]), tile)


def flat_micro_batch(rows: Rows, tile: int = 1) -> MicroBatch:
    """Real tokens only, and where `tile` asks for it some more, so that their number is a multiple of it."""
    seq_len = rows.input_ids.shape[1]
    real = rows.sequence_ids.reshape(-1) != 0
    index = np.flatnonzero(real)  # of the real tokens in the padded rows
    flat_of = np.cumsum(real, dtype=np.int32) - 1  # padded index -> flat index
    sequence = (rows.sequence_ids.astype(np.int64) + 256 * np.arange(len(rows))[:, None]).reshape(-1)[index]
    starts = np.flatnonzero(np.diff(sequence, prepend=-1))
    lengths = np.diff(starts, append=len(index))
    fill = -len(index) % tile
    if fill:
        lengths = np.append(lengths, fill)  # one more sequence, which no loss asks for

    def tokens(values: np.ndarray) -> torch.Tensor:
        return _int32(np.append(values.reshape(-1)[index], np.zeros(fill, np.int32)))

    row_start = (np.arange(len(rows)) * seq_len)[:, None]
    used = rows.masked_positions != 0
    present = rows.next_sentence_weights != 0
    return MicroBatch(
        input_ids=tokens(rows.input_ids),
        segment_ids=tokens(rows.segment_ids),
        positions=tokens(rows.positions),
        masked_positions=_int32(flat_of[(rows.masked_positions + row_start)[used]]),
        masked_labels=_int64(rows.masked_ids[used]),
        masked_weights=None,
        cls_positions=_int32(flat_of[(rows.cls_positions + row_start)[present]]),
        next_sentence_labels=_int64(rows.next_sentence_labels[present]),
        next_sentence_weights=None,
        sequence_ids=None,
        offsets=_int32(np.append(0, np.cumsum(lengths))),
        lengths=tuple(lengths.tolist()),
    )


def static_micro_batches(rows: Rows, rows_per_micro_batch: int) -> Iterator[MicroBatch]:
    for start in range(0, len(rows), rows_per_micro_batch):
        yield static_micro_batch(rows.take(slice(start, start + rows_per_micro_batch)))


def static_micro_batch(rows: Rows) -> MicroBatch:
    row_start = (np.arange(len(rows)) * rows.input_ids.shape[1])[:, None]
    return MicroBatch(
        input_ids=_int32(rows.input_ids.reshape(-1)),
        segment_ids=_int32(rows.segment_ids.reshape(-1)),
        positions=_int32(rows.positions.reshape(-1)),
        masked_positions=_int32((rows.masked_positions + row_start).reshape(-1)),
        masked_labels=_int64(rows.masked_ids.reshape(-1)),
        masked_weights=torch.from_numpy((rows.masked_positions != 0).astype(np.float32).reshape(-1)),
        cls_positions=_int32((rows.cls_positions + row_start).reshape(-1)),
        next_sentence_labels=_int64(rows.next_sentence_labels.reshape(-1)),
        next_sentence_weights=torch.from_numpy(rows.next_sentence_weights.astype(np.float32).reshape(-1)),
        sequence_ids=_int32(rows.sequence_ids),
        offsets=None,
        lengths=None,
    )


def _int32(array: np.ndarray) -> torch.Tensor:
    return _tensor(array, np.int32)


def _int64(array: np.ndarray) -> torch.Tensor:
    return _tensor(array, np.int64)


def _tensor(array: np.ndarray, dtype: type[np.integer]) -> torch.Tensor:
    """The array's own memory where that can be: one that may not be written to (the places in a row) is copied."""
    return torch.from_numpy(np.require(array, dtype, ("C", "W")))


@dataclass(frozen=True)
class Masking:
    """Masks drawn anew at every step instead of those stored in the shards."""

    vocab_size: int
    mask_id: int
    special_ids: tuple[int, ...]  # never masked
    masked_lm_prob: float = 0.15

    def __call__(self, rows: Rows, rng: np.random.Generator) -> Rows:
        """Restore the stored masks, then choose 15 % of each sequence: 80 % [MASK], 10 % random, 10 % unchanged."""
        ids = rows.unmasked_ids()
        open_to_mask = (rows.sequence_ids != 0) & ~np.isin(ids, self.special_ids)
        lengths = np.count_nonzero(rows.sequence_ids, axis=1)
        limit = rows.masked_positions.shape[1]
        wanted = np.clip(np.rint(lengths * self.masked_lm_prob).astype(np.int64), 1, limit)
        wanted = np.minimum(wanted, open_to_mask.sum(axis=1))
        keys = np.where(open_to_mask, rng.random(ids.shape), np.inf)
        chosen = np.argsort(keys, axis=1, kind="stable")[:, :limit]
        used = np.arange(limit) < wanted[:, None]
        positions = np.where(used, chosen, 0)
        masked_ids = np.where(used, np.take_along_axis(ids, positions, axis=1), 0)
        draw = rng.random(positions.shape)
        random_ids = rng.integers(self.vocab_size, size=positions.shape)
        replacement = np.where(draw < 0.8, self.mask_id, np.where(draw < 0.9, random_ids, masked_ids))
        row, column = np.nonzero(used)
        ids[row, positions[row, column]] = replacement[row, column]
        stored = rows.masked_positions.dtype, rows.masked_ids.dtype
        return replace(
            rows, input_ids=ids, masked_positions=positions.astype(stored[0]), masked_ids=masked_ids.astype(stored[1])
        )
