"""Packing: how full rows become, and seconds a million sequences.

    python benchmarks/data_pack.py HDF5_FOLDER [--rounds 3]

The folder is a corpus folder of prepare.py, such as that of phase 2.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from data_common import machine, told

from pretraining.data.pack import pack_folder, plan_file
from pretraining.data.workers import Workers
from pretraining.packing import pack_lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    plans = [plan_file(path) for path in sorted(args.folder.glob("*training*.hdf5"))]
    sequences, packs = sum(plan.sequences for plan in plans), sum(plan.packs for plan in plans)
    fill = sum(plan.tokens for plan in plans) / sum(plan.packs * plan.seq_len for plan in plans)
    before = sum(plan.tokens for plan in plans) / sum(plan.sequences * plan.seq_len for plan in plans)
    print(machine())
    print(f"{sequences} sequences in {packs} rows: filled {before:.2%} before, {fill:.2%} packed")
    whole, choosing = [], []
    rng = np.random.default_rng(0)
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            pack_folder(args.folder, Path(folder) / "packed", 1, Workers(None, 1))
            whole.append((time.process_time() - start) / sequences * 1e6)
        lengths = rng.integers(5, 513, 1_000_000)
        start = time.process_time()
        pack_lengths(lengths, 512)
        choosing.append(time.process_time() - start)
    print(f"reading, packing and writing: {told(whole, 's a million sequences')}")
    print(f"choosing alone, a million of random lengths: {told(choosing, 's')}")


if __name__ == "__main__":
    main()
