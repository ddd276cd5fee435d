"""One optimizer step against Hugging Face's BertForPreTraining in the usual loop, interleaved in one process.

python benchmarks/pretraining_step.py --size base --seq_len 128 --micro_batch 16 --micro_steps 16 --input_dir SHARDS
"""

import argparse
import statistics

from pretraining_common import (
    HuggingFace,
    Ours,
    config_of,
    interleaved,
    load_rows,
    losses_without_dropout,
    machine,
    spread,
)

from central.runtime.device import open_device
from central.runtime.rank import Rank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", help="tiny mini small medium base large")
    parser.add_argument("--seq_len", type=int, default=128)
    parser.add_argument("--micro_batch", type=int, default=16)
    parser.add_argument("--micro_steps", type=int, default=16, help="micro-batches of an optimizer step")
    parser.add_argument("--data_types", nargs="+", default=["bf16", "fp32"], choices=["bf16", "fp32"])
    parser.add_argument("--input_dir", help="folder of training shards (default: random tokens, 90 %% filled)")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = config_of(args.size)
    masked = 20 if args.seq_len <= 128 else 80
    rows = load_rows(args.input_dir, args.micro_batch * args.micro_steps, config, args.seq_len, masked)
    print(machine())
    fill = rows.num_tokens / rows.input_ids.size
    print(
        f"{args.size}, rows of {args.seq_len} filled to {fill:.2f}, {args.micro_steps} x {args.micro_batch} rows a step"
    )
    sides = {}
    for data_type in args.data_types:
        few = rows.take(slice(0, min(len(rows), args.micro_batch)))
        ours, peer = losses_without_dropout(config, few, data_type)
        print(f"{data_type}: loss without dropout {ours:.6f} ours, {peer:.6f} Hugging Face")
        for side in (Ours, HuggingFace):
            sides[side.name, data_type] = side(config, rows, args.micro_batch, data_type)
    times = interleaved({name: side.step for name, side in sides.items()}, args.repeats)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for (name, data_type), values in times.items():
        line = f"{name} {data_type}: {spread(values)}, {len(rows) / medians[name, data_type]:.2f} sequences/s"
        if name == Ours.name:
            device = open_device("cpu", "eager", data_type, Rank())
            speed, peak = sides[name, data_type].flops / medians[name, data_type], device.matrix_peak()
            line += f", {speed / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s = {speed / peak:.0%}"
        print(line)
    for data_type in args.data_types:
        for other in args.data_types:
            ratio = medians[HuggingFace.name, other] / medians[Ours.name, data_type]
            print(f"ours {data_type} is {ratio:.2f} times Hugging Face {other}")


if __name__ == "__main__":
    main()
