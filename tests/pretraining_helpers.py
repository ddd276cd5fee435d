"""Small HDF5 shards, a small model and ways to run the entry script, for the tests of the pre-training engine."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "pretraining" / "run_pretraining.py"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB_SIZE = 101  # no multiple of 8: padded rows are there


def write_vocabulary(folder: Path, size: int = VOCAB_SIZE) -> Path:
    path = folder / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in [*SPECIAL, *(f"w{i}" for i in range(size - len(SPECIAL)))]))
    return path


def make_columns(
    num_rows: int, seq_len: int, max_predictions: int, vocab_size: int = VOCAB_SIZE, seed: int = 0
) -> dict:
    """Rows of two segments in the layout of NVIDIA's shards; lengths vary, half the rows are full.

    A token is the one before it plus one, most of the time, so that there is something to learn.
    """
    rng = np.random.default_rng(seed)
    columns = {
        "input_ids": np.zeros((num_rows, seq_len), np.int32),
        "input_mask": np.zeros((num_rows, seq_len), np.int8),
        "segment_ids": np.zeros((num_rows, seq_len), np.int8),
        "masked_lm_positions": np.zeros((num_rows, max_predictions), np.int32),
        "masked_lm_ids": np.zeros((num_rows, max_predictions), np.int32),
        "next_sentence_labels": rng.integers(0, 2, num_rows).astype(np.int8),
    }
    words = vocab_size - len(SPECIAL)
    for row in range(num_rows):
        length = seq_len if rng.random() < 0.5 else int(rng.integers(seq_len // 3, seq_len + 1))
        ids = (rng.integers(words) + np.arange(length)) % words + len(SPECIAL)
        half = length // 2
        ids[[0, half, length - 1]] = (2, 3, 3)
        inner = np.setdiff1d(np.arange(1, length - 1), [half])
        chosen = np.sort(rng.permutation(inner)[: max(1, min(max_predictions, round(0.15 * length)))])
        columns["masked_lm_positions"][row, : len(chosen)] = chosen
        columns["masked_lm_ids"][row, : len(chosen)] = ids[chosen]
        ids[chosen] = np.where(rng.random(len(chosen)) < 0.8, 4, ids[chosen])
        columns["input_ids"][row, :length] = ids
        columns["input_mask"][row, :length] = 1
        columns["segment_ids"][row, half + 1 : length] = 1
    return columns


def write_shard(path: Path, columns: dict, **attributes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values)
        file.attrs.update(attributes)
    return path


def make_corpus(
    folder: Path, shards: int = 2, rows: int = 24, seq_len: int = 16, max_predictions: int = 3, test: int = 8
):
    """A corpus folder with training shards, one test shard and a vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    write_vocabulary(folder)
    for index in range(shards):
        columns = make_columns(rows, seq_len, max_predictions, seed=100 * seq_len + index)
        write_shard(folder / f"{folder.name}_training_{index}.hdf5", columns)
    if test:
        write_shard(folder / f"{folder.name}_test_0.hdf5", make_columns(test, seq_len, max_predictions, seed=7))
    return folder


def write_config(path: Path, **changes) -> Path:
    config = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
    }
    path.write_text(json.dumps({**config, **changes}))
    return path


def script_argv(corpus: Path, config: Path, out: Path, **flags) -> list[str]:
    """Words for run_pretraining.py; `flags` override, False leaves one out, True gives a bare switch."""
    chosen = {
        "do_train": True,
        "no_cuda": True,
        "input_dir": corpus,
        "config_file": config,
        "output_dir": out / "results" / "checkpoints",
        "json-summary": out / "results" / "dllogger.json",
        "train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "max_steps": 6,
        "warmup_proportion": 0.25,
        "num_steps_per_checkpoint": 2,
        "max_seq_length": 32,
        "max_predictions_per_seq": 5,
        "seed": 5,
        **{key.replace("json_summary", "json-summary"): value for key, value in flags.items()},
    }
    words = []
    for name, value in chosen.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not False and value is not None:
            words.append(f"--{name}={value}")
    return words


def environment(**extra) -> dict:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_COMM", "PMIX", "SLURM_", "PT_HPU"))}
    set_here = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")  # by a script that ran in this process
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *set_here):
        clean.pop(name, None)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    return {**clean, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "MASTER_PORT": port, **extra}


def run_script(argv: list[str], prefix=(), timeout: float = 240, **extra) -> subprocess.CompletedProcess:
    command = [*map(str, prefix), sys.executable, str(SCRIPT), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment(**extra))


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int):
    """A file system of its own, in memory; the test is skipped where the machine lets us mount none."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def logged(out: Path) -> tuple[dict, dict]:
    """From the run's log: training lines by global step, evaluation lines by (phase, global step)."""
    from pretraining.reports import read_log

    training, held_out = {}, {}
    for (_, step), data in read_log(out / "results" / "dllogger.json"):
        if "eval_mlm_loss" in data:
            held_out[data["phase"], step] = data
        else:
            training[step] = data
    return training, held_out


def checkpoints(out: Path) -> list[Path]:
    from central.runtime.checkpoints import list_checkpoints

    return list_checkpoints(out / "results" / "checkpoints")


def call(argv):
    """The entry script's main in this process, for requests that are refused before any work."""
    import pretraining.run_pretraining as script

    return script.main(argv)


def as_earlier_version(checkpoint, **changes):
    """A checkpoint without checksums, as earlier versions wrote them; `changes` are of its state."""
    file = checkpoint / "state.json"
    state = {key: value for key, value in json.loads(file.read_text()).items() if "sha256" not in key}
    sizes = {name: (checkpoint / name).stat().st_size for name in state["files"]}
    file.write_text(json.dumps({**state, "files": sizes, **changes}))
