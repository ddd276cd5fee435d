"""The step `pack`: a folder of HDF5 files to a folder of packed ones, file by file."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from central.runtime.exits import BadRequest
from pretraining.data.hdf5 import KEYS, replace_synced, rows_per_chunk, write_rows
from pretraining.data.progress import Progress
from pretraining.data.shards import check_finished
from pretraining.data.workers import Workers
from pretraining.packing import MAX_SEQUENCES_PER_PACK, pack_lengths, pack_rows, predictions_needed

COPIED = ("vocab.txt", "tokenizer_config.json", "token_counts.npy")
BLOCK_CHUNKS = 4  # HDF5 chunks made at once


@dataclass(frozen=True)
class Plan:
    """What packing a file comes to."""

    sequences: int
    packs: int
    tokens: int
    seq_len: int
    predictions: int  # slots for masked tokens that its fullest pack needs


def pack_folder(source: Path, target: Path, seed: int, workers: Workers) -> None:
    """Pack every training file; test files and vocabulary are copied."""
    files = sorted(source.glob("*training*.hdf5"))
    if not files:
        raise BadRequest(f"--input_dir {source}: no *training*.hdf5 in it")
    if target.resolve() == source.resolve():
        raise BadRequest(f"--output_dir {target}: the folder to read from; choose another")
    plans = list(workers.map(plan_file, ((file,) for file in files)))
    predictions = max(plan.predictions for plan in plans)
    target.mkdir(parents=True, exist_ok=True)
    for path in (*source.glob("*test*.hdf5"), *(source / name for name in COPIED if (source / name).exists())):
        _copy(path, target / path.name)
    progress = Progress("packing", len(files), "files")
    tasks = ((file, target / file.name, predictions, seed, number) for number, file in enumerate(files))
    for done, _ in enumerate(workers.map(pack_file, tasks), 1):
        progress.update(done)
    progress.close()
    sequences, packs = sum(plan.sequences for plan in plans), sum(plan.packs for plan in plans)
    fill = sum(plan.tokens for plan in plans) / sum(plan.packs * plan.seq_len for plan in plans)
    metadata = {"avg_seq_per_sample": sequences / packs, "fill": fill, "sequences": sequences, "samples": packs}
    metadata_file(target).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    print(f"{sequences} sequences in {packs} rows, {sequences / packs:.3f} a row, {fill:.2%} filled: {target}")


def metadata_file(folder: Path) -> Path:
    """Where Habana's training script looks for the mean number of sequences a row."""
    folder = folder.resolve()
    return folder.with_name(folder.name + "_metadata.json")


def plan_file(path: Path) -> Plan:
    """Decide how the sequences of a file go together."""
    with _open(path) as file:
        lengths, predictions, seq_len = _measure(file)
        width = file["masked_lm_positions"].shape[1] + MAX_SEQUENCES_PER_PACK
    packs = pack_lengths(lengths, seq_len)
    needed = max(width, predictions_needed(predictions, packs))
    return Plan(len(lengths), len(packs), int(lengths.sum()), seq_len, needed)


def pack_file(source: Path, target: Path, predictions: int, seed: int, number: int) -> None:
    """Write the packed file of one file, unless it is there."""
    with _open(source) as file:
        lengths, _, seq_len = _measure(file)
        packs = pack_lengths(lengths, seq_len)
        rng = np.random.Generator(np.random.SFC64([seed, number]))
        packs = packs[rng.permutation(len(packs))]
        attributes = dict(file.attrs) | {"packed": 1, "rows": len(packs), "sequences": len(lengths), "pack_seed": seed}
        if target.exists():
            fault = check_finished(target, attributes)
            if fault:
                raise BadRequest(f"{fault}; remove it or choose another --output_dir")
            return
        rows = {key: file[key][:] for key in KEYS}
    chunk_rows = rows_per_chunk(seq_len)
    write_rows(target, len(packs), chunk_rows, _blocks(rows, packs, chunk_rows * BLOCK_CHUNKS, predictions), attributes)


def _blocks(
    rows: dict[str, np.ndarray], packs: np.ndarray, block_rows: int, predictions: int
) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(packs), block_rows):
        yield pack_rows(rows, packs[start : start + block_rows], predictions)


def _open(path: Path) -> h5py.File:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise BadRequest(f"{path}: damaged or not HDF5 ({error})") from error
    missing = [key for key in KEYS if key not in file]
    is_packed = "positions" in file
    if missing or is_packed:
        file.close()
        raise BadRequest(f"{path}: " + ("packed already" if is_packed else f"no {', '.join(missing)} in it"))
    return file


def _measure(file: h5py.File) -> tuple[np.ndarray, np.ndarray, int]:
    """(tokens of each sequence, masked tokens of each, length of a row)."""
    lengths = np.count_nonzero(file["input_mask"][:], axis=1)
    predictions = np.count_nonzero(file["masked_lm_positions"][:], axis=1)
    return lengths, predictions, file["input_ids"].shape[1]


def _copy(source: Path, target: Path) -> None:
    unfinished = target.with_name(target.name + ".tmp")
    shutil.copyfile(source, unfinished)
    replace_synced(unfinished, target)
