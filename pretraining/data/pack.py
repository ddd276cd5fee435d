"""The step `pack`: a folder of HDF5 files to a folder of packed ones, file by file."""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from central.files import names_in, shards_of, whole_or_absent, why_no_file, write_synced
from central.runtime.exits import BadRequest
from pretraining.data import report
from pretraining.data.files import check_space, remove_unfinished
from pretraining.data.hdf5 import KEYS, attribute, member, outside, rows_per_chunk, write_rows
from pretraining.data.progress import Progress
from pretraining.data.shards import check_finished
from pretraining.data.workers import Workers
from pretraining.packing import MAX_SEQUENCES_PER_PACK, pack_lengths, pack_rows, predictions_needed

COPIED = ("vocab.txt", "tokenizer_config.json", "token_counts.npy", report.FILE)
WINDOW_POSITIONS = 1 << 25  # sequences x row length that are packed together: half a GB of memory at most
BLOCK_CHUNKS = 4  # HDF5 chunks made at once
MOST_IDS = 1 << 31  # of any vocabulary
STOPS = {  # values of a column are below; those of masked_lm_positions below the length of a row
    "input_ids": MOST_IDS,
    "masked_lm_ids": MOST_IDS,
    "input_mask": 2,
    "segment_ids": 2,
    "next_sentence_labels": 2,
}
BYTES_PER_POSITION = 2.0  # of a packed file, for each of rows x row length; measured 1.9


@dataclass(frozen=True)
class Plan:
    """What packing a file comes to."""

    path: Path
    sequences: int
    packs: int
    tokens: int
    seq_len: int
    predictions: int  # slots for masked tokens that its fullest pack needs


def pack_folder(source: Path, target: Path, seed: int, workers: Workers) -> None:
    """Pack every training file; test files and vocabulary are copied."""
    files, held_out = ([source / name for name in shards_of(names_in(source), split)] for split in ("training", "test"))
    if not files:
        raise BadRequest(f"--input_dir {source}: no *training*.hdf5 in it")
    if problems := [f"{path}: {what}" for path in files if (what := why_no_file(path))]:
        raise BadRequest(problems)
    if target.resolve() == source.resolve():
        raise BadRequest(f"--output_dir {target}: the folder to read from; choose another")
    plans = sorted(workers.map(plan_file, ((file,) for file in files)), key=lambda plan: plan.path)
    predictions = max(plan.predictions for plan in plans)
    sequences, packs, tokens = (sum(getattr(plan, name) for plan in plans) for name in ("sequences", "packs", "tokens"))
    positions = sum(plan.packs * plan.seq_len for plan in plans)
    target.mkdir(parents=True, exist_ok=True)
    remove_unfinished(target)
    there = sum(path.stat().st_size for path in target.glob("*.hdf5"))
    copies = [*held_out, *(source / name for name in COPIED if (source / name).exists())]
    needed = positions * BYTES_PER_POSITION + sum(path.stat().st_size for path in copies) - there
    check_space(target, "packed files", max(0.0, needed))
    for path in copies:
        with whole_or_absent(target / path.name) as unfinished:
            shutil.copyfile(path, unfinished)
    progress = Progress("packing", len(files), "files")
    tasks = ((plan, target / plan.path.name, predictions, seed, number) for number, plan in enumerate(plans))
    for done, _ in enumerate(workers.map(pack_file, tasks), 1):
        progress.update(done)
    progress.close()
    fill = tokens / positions
    metadata = {"avg_seq_per_sample": sequences / packs, "fill": fill, "sequences": sequences, "samples": packs}
    write_synced(metadata_file(target), (json.dumps(metadata, indent=1) + "\n").encode())
    print(f"{sequences} sequences in {packs} rows, {sequences / packs:.3f} a row, {fill:.2%} filled: {target}")


def metadata_file(folder: Path) -> Path:
    """Where Habana's training script looks for the mean number of sequences a row."""
    folder = folder.resolve()
    return folder.with_name(folder.name + "_metadata.json")


def plan_file(path: Path) -> Plan:
    """Decide how the sequences of a file go together."""
    with _open(path) as file:
        num_rows, seq_len = file["input_ids"].shape
        packs, tokens, predictions = 0, 0, file["masked_lm_positions"].shape[1] + MAX_SEQUENCES_PER_PACK
        for window in _windows(num_rows, seq_len):
            lengths = np.count_nonzero(_read(file, "input_mask", window), axis=1)
            masked = np.count_nonzero(_read(file, "masked_lm_positions", window), axis=1)
            chosen = pack_lengths(lengths, seq_len)
            packs += len(chosen)
            tokens += int(lengths.sum())
            predictions = max(predictions, predictions_needed(masked, chosen))
    return Plan(path, num_rows, packs, tokens, seq_len, predictions)


def pack_file(plan: Plan, target: Path, predictions: int, seed: int, number: int) -> None:
    """Write the packed file of one file, unless it is there."""
    with _open(plan.path) as file:
        ours: dict[str, object] = {"packed": 1, "rows": plan.packs, "sequences": plan.sequences, "pack_seed": seed}
        attributes: dict[str, object] = ours | {
            name: value for name in file.attrs if (value := attribute(file, name)) is not None
        }
        if target.exists():
            fault = check_finished(target, attributes)
            if fault:
                raise BadRequest(f"{fault}; remove it or choose another --output_dir")
            return
        rng = np.random.Generator(np.random.SFC64([seed, number]))
        chunk_rows = rows_per_chunk(plan.seq_len)
        blocks = _whole_chunks(_packed_blocks(file, plan, predictions, chunk_rows * BLOCK_CHUNKS, rng), chunk_rows)
        write_rows(target, plan.packs, chunk_rows, blocks, attributes)


def _windows(num_rows: int, seq_len: int) -> Iterator[slice]:
    """Rows that are packed together: a file may be larger than the memory."""
    step = max(1, WINDOW_POSITIONS // seq_len)
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


def _packed_blocks(
    file: h5py.File, plan: Plan, predictions: int, block_rows: int, rng: np.random.Generator
) -> Iterator[dict[str, np.ndarray]]:
    """Packed rows, some at a time, in random order within a window."""
    for window in _windows(plan.sequences, plan.seq_len):
        rows = {key: _read(file, key, window) for key in KEYS}
        packs = pack_lengths(np.count_nonzero(rows["input_mask"], axis=1), plan.seq_len)
        packs = packs[rng.permutation(len(packs))]
        for start in range(0, len(packs), block_rows):
            yield pack_rows(rows, packs[start : start + block_rows], predictions)


def _whole_chunks(blocks: Iterable[dict[str, np.ndarray]], chunk_rows: int) -> Iterator[dict[str, np.ndarray]]:
    """The same rows; each block but the last has a multiple of `chunk_rows`."""
    rest: dict[str, np.ndarray] = {}
    for block in blocks:
        joined = {name: np.concatenate([rest[name], rows]) if rest else rows for name, rows in block.items()}
        whole = len(joined["input_ids"]) // chunk_rows * chunk_rows
        if whole:
            yield {name: rows[:whole] for name, rows in joined.items()}
        rest = {name: rows[whole:] for name, rows in joined.items()}
    if len(rest["input_ids"]):
        yield rest


def _open(path: Path) -> h5py.File:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise BadRequest(f"{path}: damaged or not HDF5 ({error})") from error
    missing = [key for key in KEYS if member(file, key) is None]
    is_packed = "positions" in file
    if missing or is_packed or not len(file["input_ids"]):
        file.close()
        fault = "packed already" if is_packed else f"no {', '.join(missing) or 'sequences'} in it"
        raise BadRequest(f"{path}: {fault}")
    return file


def _read(file: h5py.File, key: str, rows: slice) -> np.ndarray:
    """Some rows of a column; its values are looked at before packing narrows their type."""
    try:
        values = file[key][rows]
    except OSError as error:
        raise BadRequest(f"{file.filename}: damaged ({error})") from error
    stop = STOPS.get(key, file["input_ids"].shape[1])
    if (worst := outside(values, stop)) is not None:
        raise BadRequest(f"{file.filename}: {key} has values outside of 0 to {stop - 1} ({worst}): make it again")
    return values
