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
    opened,
    spread,
)

from pretraining.model_stats import batch_flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", help="tiny mini small medium base large")
    parser.add_argument("--seq_len", type=int, default=128)
    parser.add_argument("--micro_batch", type=int, default=16)
    parser.add_argument("--micro_steps", type=int, default=16, help="micro-batches of an optimizer step")
    parser.add_argument("--data_types", nargs="+", default=["bf16", "fp32"], choices=["bf16", "fp32"])
    parser.add_argument("--input_dir", help="folder of training shards (default: random tokens, 90 %% filled)")
    parser.add_argument("--peer_attention", default="sdpa", choices=["sdpa", "eager"], help="Hugging Face's attention")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=5, help="optimizer steps of each side, each over new rows")
    args = parser.parse_args()
    devices = {data_type: opened(args.device, data_type) for data_type in args.data_types}
    config = config_of(args.size)
    masked = 20 if args.seq_len <= 128 else 80
    size = args.micro_batch * args.micro_steps
    rows = load_rows(args.input_dir, size * args.repeats, config, args.seq_len, masked)
    print(machine())
    fill = rows.num_tokens / rows.input_ids.size
    print(
        f"{args.size}, rows of {args.seq_len} filled to {fill:.2f}, {args.micro_steps} x {args.micro_batch} rows a step"
    )
    sides, losses = {}, {}
    for data_type, device in devices.items():
        few = rows.take(slice(0, args.micro_batch))
        ours, peer = losses_without_dropout(config, few, device)
        print(f"{data_type}: loss without dropout {ours:.6f} ours, {peer:.6f} Hugging Face")
        shared = config, rows, args.micro_batch, args.micro_steps, device
        sides[Ours.name, data_type] = Ours(*shared)
        sides[HuggingFace.name, data_type] = HuggingFace(*shared, attention=args.peer_attention)
    for name, side in sides.items():
        side.warm_up()
        losses[name] = []
    times = interleaved(
        {name: (lambda s=side, n=name: losses[n].append(s.step())) for name, side in sides.items()}, args.repeats
    )
    medians = {name: statistics.median(values) for name, values in times.items()}
    for (name, data_type), values in times.items():
        line = f"{name} {data_type}: {spread(values)}, {size / medians[name, data_type]:.2f} sequences/s"
        if name == Ours.name:
            batches = [batch for _, step in sides[name, data_type].steps for batch in step]
            flops = sum(batch_flops(config, batch) for batch in batches)
            speed, peak = flops / sum(values), devices[data_type].matrix_peak()
            line += f", {speed / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s = {speed / peak:.0%}"
        print(line)
        print("  losses of the steps, with dropout: " + " ".join(f"{loss:.3f}" for loss in losses[name, data_type]))
    for data_type in args.data_types:
        for other in args.data_types:
            ours, peer = times[Ours.name, data_type], times[HuggingFace.name, other]
            ratios = [b / a for a, b in zip(ours, peer, strict=True)]
            print(
                f"ours {data_type} is {statistics.median(ratios):.2f} times Hugging Face {other} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
