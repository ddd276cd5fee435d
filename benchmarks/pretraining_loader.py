"""Reading micro-batches of shards against reading row by row, and the longest wait for a batch at a change of shard.

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

from pretraining.dataset import KEYS, Limits, Prefetch, ShardReader, Share, open_shards, steps


def row_by_row(path: Path, seq_len: int, rows: int) -> float:
    """Seconds a row for what the reference does: one item at a time, each column as a tensor, then stacked."""
    with h5py.File(path) as file:
        columns = [file[key][()] for key in KEYS]
    start = time.perf_counter()
    batch = []
    for row in range(rows):
        ids, mask, segments, positions, labels, nsp = (
            torch.from_numpy(np.asarray(c[row]).astype(np.int64)) for c in columns
        )
        masked = torch.full((seq_len,), -1, dtype=torch.long)
        used = int((positions != 0).sum())
        masked[positions[:used]] = labels[:used]
        batch.append((ids, segments, mask, masked, nsp))
        if len(batch) == 64:
            [torch.stack(column) for column in zip(*batch)]
            batch = []
    return (time.perf_counter() - start) / rows


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
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.input_dir or write_shards(Path(temporary), args.seq_len, args.shards, args.rows))
        limits = Limits(30522, args.seq_len, 512, 20 if args.seq_len <= 128 else 80)
        shards = open_shards(folder, "training", limits)
        slow, fast, share = [], [], Share(0, 1, 64, 4)
        for _ in range(5):
            slow.append(row_by_row(shards[0].path, args.seq_len, min(2048, shards[0].num_rows)))
            reader = ShardReader(shards, 1, limits)
            reader.read(0, share.rows_per_step)  # the first shard is in memory, as it is for row_by_row
            stream = steps(reader, share, 0, 0, True, None)
            count = max(1, min(2048, shards[0].num_rows) // share.rows_per_step)
            start = time.perf_counter()
            for _ in range(count):
                next(stream)
            fast.append((time.perf_counter() - start) / (count * share.rows_per_step))
        print(f"row by row, a row: {spread(slow)}")
        print(f"batches, a row: {spread(fast)}")
        print(f"batches are {statistics.median(slow) / statistics.median(fast):.1f} times faster")
        batches = Prefetch(steps(ShardReader(shards, 1, limits), share, 0, 0, False, None))
        waits = []
        for _ in range(sum(shard.num_rows for shard in shards) // share.rows_per_step):
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
