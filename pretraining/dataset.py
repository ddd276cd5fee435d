"""HDF5 shards of pre-training rows, their order, and reading them ahead of the training loop.

Knows shards and rows, not the model. The order of rows is a pure function of (seed, epoch), the same for any number
of ranks, and a place in it is one integer: rows taken since the phase began, over all ranks.
"""

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import h5py
import numpy as np

from central.errors import rows_too_long
from central.files import SHARD_SUFFIXES, parse_json, shards_of, why_no_file
from central.runtime.exits import BadRequest
from pretraining.batches import Masking, Rows, Step, concatenate, flat_micro_batches, static_micro_batches
from pretraining.data.hdf5 import KEYS, attribute, member, outside
from pretraining.objective import Objective

PACKED_KEYS = ("positions", "next_sentence_positions", "next_sentence_weights")
SAME_SHAPE = {  # a column and the one it goes with, element by element
    "input_mask": "input_ids",
    "segment_ids": "input_ids",
    "positions": "input_ids",
    "masked_lm_ids": "masked_lm_positions",
    "next_sentence_positions": "next_sentence_labels",
    "next_sentence_weights": "next_sentence_labels",
}
Item = TypeVar("Item")

CACHE_BYTES = 1 << 30  # shards kept in memory, per process
CHECKED_BYTES = 1 << 28  # contents checked before the first step; later shards are checked as they are read


@dataclass(frozen=True)
class Limits:
    """What rows must fit into."""

    vocab_size: int
    max_seq_length: int
    max_position_embeddings: int
    max_predictions_per_seq: int
    columns: tuple[str, ...] = KEYS  # of a shard that must be there
    masks_drawn: bool = False  # masks are drawn anew at every step, and those of the rows do not count


@dataclass(frozen=True)
class Shard:
    path: Path
    num_rows: int
    seq_len: int
    num_predictions: int  # slots for masked tokens that are read of a row
    packed: bool
    attributes: dict[str, Any]
    stamp: tuple[int, ...]  # of the file when it was opened: another one later, and its rows are others

    @property
    def stored_bytes(self) -> int:
        return self.num_rows * self.seq_len * 6


def find_shards(folder: Path, split: str) -> list[Path]:
    """HDF5 files of `folder` with `split` ("training" or "test") in their names, in the order of their names."""
    if not folder.is_dir():
        raise BadRequest(f"{folder}: no such folder: give the folder that holds the {split} shards (*.hdf5)")
    try:
        files = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise BadRequest(f"{folder}: cannot be read ({error.strerror}): give a folder that you may read") from error
    shards = [folder / name for name in shards_of(files, split)]
    # Passed over in silence they would be missing from the training.
    if problems := [f"{path}: {what}" for path in shards if (what := why_no_file(path))]:
        raise BadRequest(problems)
    return shards


def open_shards(folder: Path, split: str, limits: Limits) -> list[Shard]:
    """Open and check all shards of a folder; every damaged one is named, none is passed over."""
    paths = find_shards(folder, split)
    if not paths:
        inside = sorted({path.parent for path in folder.glob(f"*/*{split}*") if path.suffix in SHARD_SUFFIXES})
        hint = f"; there are some in {inside[0]}" if inside else ": make them with pretraining/data/prepare.py"
        raise BadRequest(f"{folder}: no file *{split}*.hdf5 in this folder{hint}")
    shards, problems = [], []
    for path in paths:
        try:
            shards.append(_open_shard(path, limits))
        except ValueError as error:
            problems.append(str(error))
    widths = sorted({shard.seq_len for shard in shards})
    if len(widths) > 1:
        problems.append(f"{folder}: shards with rows of {widths} tokens side by side: keep one length per folder")
    slots = sorted({shard.num_predictions for shard in shards})
    if len(slots) > 1:
        problems.append(f"{folder}: shards with {slots} slots for masked tokens side by side: keep one per folder")
    if len({shard.packed for shard in shards}) > 1:
        packed = next(shard.path.name for shard in shards if shard.packed)
        problems.append(
            f"{folder}: packed shards ({packed}) and plain ones side by side: their rows hold different numbers of "
            "sequences; keep one kind per folder"
        )
    if problems:
        raise BadRequest(problems)
    return shards


def _open_shard(path: Path, limits: Limits) -> Shard:
    stamp = _stamp(path)
    try:
        with h5py.File(path, "r") as file:
            attributes = {key: value for key in file.attrs if (value := attribute(file, key)) is not None}
            unread = [key for key in file.attrs if key == "vocab_sha256" and not isinstance(attributes.get(key), str)]
            found = {key: member(file, key) for key in file}
            shapes = {key: (data.shape, data.dtype) for key, data in found.items() if isinstance(data, h5py.Dataset)}
            broken = [key for key, data in found.items() if data is None and key in (*KEYS, *PACKED_KEYS)]
    except PermissionError as error:
        raise ValueError(f"{path}: cannot be read (permission denied): allow it, or give another folder") from error
    except OSError as error:
        raise ValueError(f"{path}: not a whole HDF5 file ({error}): make or copy this shard again") from error
    if broken:
        raise ValueError(
            f"{path}: {', '.join(broken)}: a link to what is not there, or to another file: copy this shard whole"
        )
    if unread:
        raise ValueError(f"{path}: the attribute {unread[0]} is no text: make or copy this shard again")
    packed = "next_sentence_positions" in shapes
    missing = [key for key in (*limits.columns, *(PACKED_KEYS if packed else ())) if key not in shapes]
    if missing:
        raise ValueError(f"{path}: no dataset {', '.join(missing)}: not a shard for BERT pre-training, move it away")
    used = (*KEYS, *(PACKED_KEYS if packed else ()))
    wrong = [f"{key} {dtype}" for key, (_, dtype) in shapes.items() if key in used and not _holds_ids(dtype)]
    if wrong:
        raise ValueError(f"{path}: {', '.join(wrong)} where integers are due: make this shard again")
    num_rows = _length(shapes["input_ids"][0])
    shapes |= {key: ((num_rows, 1), np.dtype(np.int8)) for key in KEYS if key not in shapes}  # nothing will ask for it
    uneven = [key for key in used if _length(shapes[key][0]) != num_rows]
    uneven += [key for key, other in SAME_SHAPE.items() if key in used and shapes[key][0] != shapes[other][0]]
    if not packed and np.prod(shapes["next_sentence_labels"][0]) != num_rows:
        uneven.append("next_sentence_labels")
    if len(shapes["masked_lm_positions"][0]) != 2:
        uneven.append("masked_lm_positions")
    if uneven or len(shapes["input_ids"][0]) != 2:
        raise ValueError(
            f"{path}: {', '.join(dict.fromkeys(uneven)) or 'input_ids'} of the wrong shape: make this shard again"
        )
    if not num_rows:
        raise ValueError(f"{path}: holds no row: remove this shard")
    seq_len = shapes["input_ids"][0][1]
    if seq_len > limits.max_seq_length:
        raise ValueError(rows_too_long(path, seq_len, limits.max_seq_length))
    if seq_len > limits.max_position_embeddings:
        raise ValueError(
            f"{path}: rows of {seq_len} tokens, but the model has {limits.max_position_embeddings} positions: "
            "raise max_position_embeddings in --config_file"
        )
    stored = shapes["masked_lm_positions"][0][1]
    # A packed row has slots for the tokens of all its sequences, which a limit for one of them must not cut.
    num_predictions = stored if packed else min(stored, limits.max_predictions_per_seq)
    return Shard(path, num_rows, seq_len, num_predictions, packed, attributes, stamp)


def _holds_ids(dtype: np.dtype) -> bool:
    return np.issubdtype(dtype, np.integer) or np.issubdtype(dtype, np.bool_)


def _length(shape: tuple[int, ...] | None) -> int:
    return shape[0] if shape else 0


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or written to."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_shard(shard: Shard, limits: Limits) -> Rows:
    """All rows of a shard, checked; ValueError names file and fault."""
    columns = _read_columns(shard, limits)
    _check_values(columns, shard, limits)
    rows = _rows(columns, shard)
    _check_rows(rows, shard, limits)
    return rows


def _read_columns(shard: Shard, limits: Limits) -> dict[str, np.ndarray]:
    try:
        with h5py.File(shard.path, "r") as file:
            wanted = (*KEYS, *(PACKED_KEYS if shard.packed else ()))
            columns = {key: file[key][()] for key in wanted if key in file or key in limits.columns}
    except (OSError, KeyError) as error:
        raise ValueError(f"{shard.path}: cannot be read ({error}): make or copy this shard again") from error
    if _stamp(shard.path) != shard.stamp:
        raise ValueError(
            f"{shard.path}: was written to since this run began, so its rows are others: put the old file back, then "
            "--resume_from_checkpoint, or begin anew in another --output_dir"
        )
    return {key: np.zeros((shard.num_rows, 1), np.int8) for key in KEYS} | columns


def _rows(columns: dict[str, np.ndarray], shard: Shard) -> Rows:
    num_rows, seq_len = columns["input_ids"].shape
    masked_positions, masked_ids = columns["masked_lm_positions"], columns["masked_lm_ids"]
    if shard.packed:
        positions, cls = columns["positions"], columns["next_sentence_positions"]
        labels, weights = columns["next_sentence_labels"], columns["next_sentence_weights"]
        labels = np.where(weights != 0, labels, 0)
    else:
        masked_positions = masked_positions[:, : shard.num_predictions]
        masked_ids = masked_ids[:, : shard.num_predictions]
        positions = np.broadcast_to(np.arange(seq_len, dtype=np.int32), (num_rows, seq_len))
        cls = np.zeros((num_rows, 1), dtype=np.int32)
        labels = columns["next_sentence_labels"].reshape(num_rows, 1)
        weights = np.ones((num_rows, 1), dtype=np.int8)
    return Rows(
        _int32(columns["input_ids"]),
        columns["input_mask"].astype(np.int8, copy=False),
        columns["segment_ids"].astype(np.int8, copy=False),
        _int32(positions),
        _int32(masked_positions),
        _int32(masked_ids),
        _int32(cls),
        labels.astype(np.int8, copy=False),
        (weights != 0).astype(np.int8),
    )


def _int32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.int32, copy=False)


def _check_values(columns: dict[str, np.ndarray], shard: Shard, limits: Limits) -> None:
    """Values as they are stored, before a narrower type could wrap them."""
    ids, places = (limits.vocab_size, "ids outside the vocabulary"), (shard.seq_len, "positions outside the row")
    sequences = columns["next_sentence_positions"].shape[1] if shard.packed else 1
    bounds = {
        "input_ids": ids,
        "masked_lm_ids": ids,
        "masked_lm_positions": places,
        "segment_ids": (2, "segments other than 0 and 1"),
        "input_mask": (sequences + 1, "numbers of sequences that a row does not have" if shard.packed else "no 0 or 1"),
        "next_sentence_labels": (2, "labels other than 0 and 1"),
    }
    if shard.packed:
        bounds["positions"] = (limits.max_position_embeddings, "positions the model does not have")
        bounds["next_sentence_positions"] = places
        used = columns["next_sentence_weights"] != 0
    for name, (stop, fault) in bounds.items():
        values = columns[name]
        if name.startswith("masked_lm"):
            values = values[:, : shard.num_predictions]
        elif name == "next_sentence_labels" and shard.packed:
            values = values[used]  # the others hold -1
        if (worst := outside(values, stop)) is not None:
            raise ValueError(f"{shard.path}: {name} has {fault} ({worst}, limit {stop}): not made for this model")


def _check_rows(rows: Rows, shard: Shard, limits: Limits) -> None:
    """What columns say of each other."""
    if not rows.sequence_ids.any(axis=1).all() or not (rows.sequence_ids[:, 0] != 0).all():
        raise ValueError(f"{shard.path}: input_mask has rows without a token: make this shard again")
    row, column = np.nonzero(rows.masked_positions)
    if not rows.sequence_ids[row, rows.masked_positions[row, column]].all():
        raise ValueError(f"{shard.path}: masked_lm_positions point at padding: make this shard again")
    if not len(row) and not limits.masks_drawn:
        raise ValueError(
            f"{shard.path}: no token of its {len(rows)} rows is masked, there is nothing to learn: make this shard "
            "again, or give --dynamic_masking"
        )


def average_sequences_per_row(folder: Path, shards: list[Shard]) -> float:
    """1.0 for ordinary shards; for packed ones what their metadata says, else Habana's averages."""
    if not shards[0].packed:
        return 1.0
    folder = folder.absolute()
    for path in (folder.parent / f"{folder.name}_metadata.json", *sorted(folder.glob("*_metadata.json"))):
        if path.is_file():
            return _average_in(path)
    return 1.2 if shards[0].seq_len <= 128 else 2.0


def _average_in(path: Path) -> float:
    try:
        average = float(parse_json(path.read_text())["avg_seq_per_sample"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise BadRequest(f"{path}: no number avg_seq_per_sample in it ({error})") from error
    if not 1 <= average < float("inf"):
        raise BadRequest(f"{path}: avg_seq_per_sample is {average}, where a number from 1 is due: correct it")
    return average


class ShardReader:
    """Rows by their place in the order, through a cache of shards; the next shard is read while one is in use.

    One thread calls `read`; where places lie, `locate` and `describe` tell any thread meanwhile.
    """

    def __init__(self, shards: list[Shard], seed: int, limits: Limits):
        self.shards = shards
        self.seed = seed
        self.limits = limits
        self.rows_per_epoch = sum(shard.num_rows for shard in shards)
        self._background = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._cache: OrderedDict[int, Future[Rows]] = OrderedDict()
        none = np.empty(0, np.int64)
        self._plan = (-1, none, none)  # epoch, order of its shards, first row of each in the epoch
        self._row_order = ((-1, -1), none)  # epoch and shard, order of its rows

    @property
    def kept_bytes(self) -> int:
        """Most bytes of shards in memory at a time."""
        sizes = sorted(shard.stored_bytes for shard in self.shards)
        return min(sum(sizes), max(CACHE_BYTES, sum(sizes[-2:])))

    def locate(self, position: int) -> tuple[int, int, int]:
        """(epoch, index of the shard, row in the shard) at a place in the order."""
        epoch, shard, offset = self._shard_at(position)
        return epoch, shard, int(self._rows_of(epoch, shard)[offset])

    def describe(self, start: int, stop: int) -> str:
        """The rows at places start <= place < stop, by file: `a_0.hdf5 rows 3, 7-9; a_2.hdf5 rows 0`."""
        found: dict[str, set[int]] = {}
        for shard, rows, _ in self._pieces(start, stop):
            found.setdefault(self.shards[shard].path.name, set()).update(rows.tolist())
        return "; ".join(f"{name} rows {ranges(rows)}" for name, rows in sorted(found.items()))

    def read(self, start: int, stop: int) -> Rows:
        """The rows at places start <= place < stop."""
        parts = []
        for shard, rows, following in self._pieces(start, stop):
            loaded = self._load(shard).result()
            self._load(self._shard_at(following)[1])  # ahead of need
            parts.append(loaded.take(rows))
        return concatenate(parts)

    def check_first(self) -> list[str]:
        """Read and check shards before the first step, as far as that takes a few seconds only; lines to say."""
        seen, problems, without_mask = 0, [], 0
        for shard in self.shards:
            seen += shard.stored_bytes
            if seen > CHECKED_BYTES:
                break
            try:
                rows = read_shard(shard, self.limits)
                without_mask += int((rows.masked_positions == 0).all(axis=1).sum())
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise BadRequest(problems)
        if not without_mask or self.limits.masks_drawn:
            return []
        return [f"{without_mask} rows of the first shards have no masked token: only next sentence is learned of them"]

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray, int]]:
        """For start <= place < stop, shard by shard: its index, its rows at these places, the place after its last."""
        while start < stop:
            epoch, shard, offset = self._shard_at(start)
            rows = self._rows_of(epoch, shard)[offset : offset + stop - start]
            yield shard, rows, start - offset + self.shards[shard].num_rows
            start += len(rows)

    # The two orders kept are of the last epoch and shard asked for. Each is taken and put back as a whole: another
    # thread may ask for another epoch in between.

    def _shard_at(self, position: int) -> tuple[int, int, int]:
        """(epoch, index of the shard, place within the shard's own order)."""
        epoch, offset = divmod(position, self.rows_per_epoch)
        plan = self._plan
        if plan[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))
            sizes = [self.shards[index].num_rows for index in order]
            self._plan = plan = (epoch, order, np.concatenate([[0], np.cumsum(sizes)]))
        _, order, firsts = plan
        index = int(np.searchsorted(firsts, offset, side="right")) - 1
        return epoch, int(order[index]), int(offset - firsts[index])

    def _rows_of(self, epoch: int, shard: int) -> np.ndarray:
        kept = self._row_order
        if kept[0] != (epoch, shard):
            rng = np.random.default_rng([self.seed, epoch, shard])
            self._row_order = kept = ((epoch, shard), rng.permutation(self.shards[shard].num_rows))
        return kept[1]

    def _load(self, shard: int) -> Future[Rows]:
        if shard not in self._cache:
            self._cache[shard] = self._background.submit(read_shard, self.shards[shard], self.limits)
            held = sum(self.shards[index].stored_bytes for index in self._cache)
            while len(self._cache) > 2 and held > CACHE_BYTES:
                oldest, _ = self._cache.popitem(last=False)
                held -= self.shards[oldest].stored_bytes
        self._cache.move_to_end(shard)
        return self._cache[shard]


def ranges(numbers: Iterable[int]) -> str:
    """Numbers in order and compactly: `3, 7-9`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


@dataclass(frozen=True)
class BatchShape:
    """How many rows each rank takes of an optimizer step, and in how many micro-batches."""

    rank: int
    world_size: int
    rows_per_micro_batch: int
    num_micro_batches: int

    @property
    def rows_per_step(self) -> int:
        return self.rows_per_micro_batch * self.num_micro_batches

    @property
    def global_rows_per_step(self) -> int:
        return self.rows_per_step * self.world_size


def steps(
    reader: ShardReader,
    shape: BatchShape,
    rows_read: int,
    global_step: int,
    pads_rows: bool,
    masking: Masking | None,
    objective: Objective,
    tile: int = 1,
    pinned: bool = False,
) -> Iterator[Step]:
    """This rank's steps without end, the first one after `rows_read` rows of the phase and `global_step` steps.

    `tile` is of the flat layout. `pinned` puts them into memory from which a card copies while it computes.
    """
    make = static_micro_batches if pads_rows else partial(flat_micro_batches, tile=tile)
    while True:
        global_step += 1
        first = rows_read + shape.rank * shape.rows_per_step
        rows = reader.read(first, first + shape.rows_per_step)
        if masking is not None:
            rows = masking(rows, np.random.default_rng([reader.seed, global_step, shape.rank]))
        micro_batches = make(rows, shape.rows_per_micro_batch)
        yield Step(
            micro_batches=tuple(batch.pinned() if pinned else batch for batch in micro_batches),
            counts=objective.counts(rows),
            num_sequences=rows.num_sequences,
            num_tokens=rows.num_tokens,
        )
        rows_read += shape.global_rows_per_step


class Prefetch(Generic[Item]):
    """Runs an iterator in a thread, `depth` items ahead; an error there is raised here, in its turn."""

    def __init__(self, items: Iterator[Item], depth: int = 2):
        self._queue: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(items,), daemon=True, name="prefetch")
        self._thread.start()

    def __next__(self) -> Item:
        item, error = self._queue.get()
        if error is not None:
            raise error
        return item

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=5)

    def _fill(self, items: Iterator[Item]) -> None:
        try:
            for item in items:
                if not self._put((item, None)):
                    return
        except BaseException as error:
            self._put((None, BadRequest(str(error)) if isinstance(error, ValueError) else error))

    def _put(self, item: tuple[Any, BaseException | None]) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False
