"""Peak memory of one process from text to HDF5, for texts of different length: it should not grow.

python benchmarks/data_memory.py TEXT --vocab_file VOCAB [--megabytes 10 30 100]
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from data_common import PREPARE, machine, write_long_text
from data_prepare import arguments


def peak_megabytes(line: list[str]) -> float:
    """Peak resident memory of a command."""
    quiet = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    child = os.posix_spawn(line[0], line, os.environ, file_actions=quiet)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{line}: status {status}")
    return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--vocab_file", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[10.0, 30.0, 100.0])
    parser.add_argument("--temp_dir", type=Path)
    args = parser.parse_args()
    print(machine())
    for megabytes in args.megabytes:
        with tempfile.TemporaryDirectory(dir=args.temp_dir) as folder:
            text = Path(folder) / "text.txt"
            size = write_long_text(args.text, text, megabytes)
            words = arguments(text, args.vocab_file, Path(folder) / "out", 1)
            peak = peak_megabytes([sys.executable, str(PREPARE), *words])
        print(f"{size:.0f} MB of text: peak {peak:.0f} MB")


if __name__ == "__main__":
    main()
