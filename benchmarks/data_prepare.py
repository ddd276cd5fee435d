"""Text with one sentence a line to the HDF5 files of both phases, dupe factor 5, and where the time goes.

    python benchmarks/data_prepare.py TEXT --vocab_file VOCAB [--megabytes 50] [--processes 1 2]

The text is repeated with its documents shuffled until it is long enough. Speed is MB of text a second of CPU time of
all processes (and of wall time, which tells something on a quiet machine only); memory is that of the largest process.
"""

import argparse
import contextlib
import io
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from data_common import PREPARE, machine, told, write_long_text

from pretraining.data import hdf5, shards, tokens, wordpiece

# Stage: whose function it is.
STAGES = {
    "read and sentences": (tokens, "canonical_text"),
    "words to ids": (wordpiece.Tokenizer, "encode"),
    "pairs": (shards, "make_pairs"),
    "rows": (shards, "token_rows"),
    "masks": (shards, "mask_rows"),
    "compression": (hdf5, "deflate_planes"),
}


def arguments(text: Path, vocab: Path, out: Path, processes: int) -> list[str]:
    paths = ["--input", str(text), "--vocab_file", str(vocab), "--output_dir", str(out)]
    return [*paths, "--sentences", "line", "--corpus", "c", "--num_processes", str(processes)]


def run(text: Path, vocab: Path, processes: int) -> tuple[float, float, float]:
    """(CPU seconds, wall seconds, peak MB of the largest process so far) of a whole run in processes of its own."""
    with tempfile.TemporaryDirectory(dir=text.parent) as out:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.monotonic()
        line = [sys.executable, str(PREPARE), *arguments(text, vocab, Path(out), processes)]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall = time.monotonic() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, wall, after.ru_maxrss / 1024


def timed(function: Callable, seconds: list[float]) -> Callable:
    """The function, its CPU time added to `seconds`."""

    def call(*args, **kwargs):
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.process_time() - start)

    return call


def profile(text: Path, vocab: Path, size: float) -> None:
    """One run in this process, its time by stage."""
    spent = {stage: [] for stage in STAGES}
    for stage, (owner, name) in STAGES.items():
        setattr(owner, name, timed(getattr(owner, name), spent[stage]))
    with tempfile.TemporaryDirectory(dir=text.parent) as out, contextlib.redirect_stdout(io.StringIO()):
        start = time.process_time()
        runpy.run_path(str(PREPARE))["main"](arguments(text, vocab, Path(out), 1))
        total = time.process_time() - start
    print(f"where the time goes, CPU ms a MB of text, {total / size * 1000:.0f} in all:")
    for stage, seconds in spent.items():
        print(f"  {stage}: {sum(seconds) / size * 1000:.1f}")
    print(f"  everything else (HDF5, files, checks): {(total - sum(map(sum, spent.values()))) / size * 1000:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--vocab_file", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=50.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--temp_dir", type=Path, help="where the text and the HDF5 files go for the time being")
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(dir=args.temp_dir) as folder:
        text = Path(folder) / "text.txt"
        size = write_long_text(args.text, text, args.megabytes)
        print(f"{size:.1f} MB: documents of {args.text.name}, repeated in shuffled order")
        walls = {processes: [] for processes in args.processes}
        speeds = {processes: [] for processes in args.processes}
        for _ in range(args.rounds):
            for processes in args.processes:
                cpu, wall, peak = run(text, args.vocab_file, processes)
                walls[processes].append(wall)
                speeds[processes].append(size / cpu)
        for processes in args.processes:
            print(f"{processes} processes: {told(speeds[processes], 'MB a CPU second')}")
            print(f"{processes} processes: {told([size / wall for wall in walls[processes]], 'MB a second')}")
        first = walls[args.processes[0]]
        for processes in args.processes[1:]:
            ratios = [a / b for a, b in zip(first, walls[processes], strict=True)]
            print(f"{processes} processes over {args.processes[0]}: {told(ratios, 'x')}")
        print(f"peak memory of the largest process: {peak:.0f} MB")
        profile(text, args.vocab_file, size)


if __name__ == "__main__":
    main()
