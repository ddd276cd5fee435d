"""Micro-batches of shards against torch's DataLoader row by row, and the longest wait for a batch where shards change.

python benchmarks/pretraining_loader.py --input_dir SHARDS
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from pretraining_common import config_of, load_rows, machine, spread
from torch.utils.data import DataLoader, Dataset

from central.runtime.device import open_device
from central.runtime.rank import Rank
from pretraining.dataset import KEYS, BatchShape, Limits, Prefetch, ShardReader, open_shards, steps
from pretraining.objective import OBJECTIVES


class RowByRow(Dataset):
    """What the reference does: columns in memory, one row at a time as tensors, labels over the whole row."""

    def __init__(self, path: Path, rows: int):
        with h5py.File(path) as file:
            self.columns = [file[key][:rows] for key in KEYS]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, row: int):
        ids, mask, segments, positions, labels, next_sentence = (
            torch.from_numpy(np.asarray(column[row]).astype(np.int64)) for column in self.columns
        )
        masked = torch.full(ids.shape, -1, dtype=torch.long)
        used = int((positions != 0).sum())
        masked[positions[:used]] = labels[:used]
        return ids, segments, mask, masked, next_sentence


def row_by_row(dataset: RowByRow) -> float:
    """Seconds a row of torch's loader in this process, rows in random order, batches of 64."""
    loader = DataLoader(dataset, batch_size=64, shuffle=True)
    start = time.perf_counter()
    for _ in loader:
        pass
    return (time.perf_counter() - start) / len(dataset)


def write_shards(folder: Path, seq_len: int, count: int, rows: int) -> Path:
    config = config_of("base")
    made = load_rows(None, rows, config, seq_len, 20 if seq_len <= 128 else 80)
    arrays = (made.input_ids, made.sequence_ids, made.segment_ids, made.masked_positions, made.masked_ids)
    for index in range(count):
        with h5py.File(folder / f"made_training_{index}.hdf5", "w") as file:
            for key, values in zip(KEYS, (*arrays, made.next_sentence_labels[:, 0].astype(np.int8))):
                file.create_dataset(key, data=values, compression="gzip", compression_opts=1, shuffle=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_dir", help="folder of training shards (default: four are made)")
    parser.add_argument("--seq_len", type=int, default=128)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8192, help="rows of a made shard")
    parser.add_argument(
        "--step_time", type=float, default=0.1, help="s of training pretended for each step of 256 rows"
    )
    args = parser.parse_args()
    open_device("cpu", "eager", "fp32", Rank())  # memory is kept as in a run, for both sides
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.input_dir or write_shards(Path(temporary), args.seq_len, args.shards, args.rows))
        limits = Limits(30522, args.seq_len, 512, 20 if args.seq_len <= 128 else 80)
        shards = open_shards(folder, "training", limits)
        slow, fast, shape = [], [], BatchShape(0, 1, 64, 4)
        dataset = RowByRow(shards[0].path, 2048)
        for _ in range(5):
            slow.append(row_by_row(dataset))
            reader = ShardReader(shards, 1, limits)
            reader.read(0, shape.rows_per_step)  # the first shard is in memory, as it is for row_by_row
            stream = steps(reader, shape, 0, 0, True, None, OBJECTIVES["mlm_nsp"])
            count = max(1, min(2048, shards[0].num_rows) // shape.rows_per_step)
            start = time.perf_counter()
            for _ in range(count):
                next(stream)
            fast.append((time.perf_counter() - start) / (count * shape.rows_per_step))
        print(f"row by row, a row: {spread(slow)}")
        print(f"batches, a row: {spread(fast)}")
        print(f"batches are {statistics.median(slow) / statistics.median(fast):.1f} times faster")
        batches = Prefetch(steps(ShardReader(shards, 1, limits), shape, 0, 0, False, None, OBJECTIVES["mlm_nsp"]))
        waits = []
        for _ in range(sum(shard.num_rows for shard in shards) // shape.rows_per_step):
            start = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - start)
            time.sleep(args.step_time)
        batches.close()
        print(
            f"wait for a batch over {len(shards)} shards: first {waits[0]:.3f} s, then at most {max(waits[1:]):.4f} s"
        )


if __name__ == "__main__":
    main()
