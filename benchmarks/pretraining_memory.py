"""Peak memory of a training step beyond 16 bytes a parameter, ours against Hugging Face's, each in its own process.

python benchmarks/pretraining_memory.py --size base --seq_len 128 --micro_batch 16
"""

import argparse
import resource
import subprocess
import sys

import torch
from pretraining_common import HuggingFace, Ours, config_of, load_rows, machine

from central.runtime.device import Cpu, keep_freed_memory
from pretraining.model_stats import BYTES_PER_PARAMETER, count_parameters

SIDES = {"ours": Ours, "peer": HuggingFace}


def measure(args) -> None:
    """Peak resident bytes of three steps of two micro-batches, less what the process held before the model."""
    config = config_of(args.size)
    rows = load_rows(args.input_dir, 6 * args.micro_batch, config, args.seq_len, 20 if args.seq_len <= 128 else 80)
    import transformers  # noqa: F401  on both sides, so that its own memory counts on none

    torch.mm(torch.ones(512, 512, dtype=torch.bfloat16), torch.ones(512, 512, dtype=torch.bfloat16))
    if args.side == "ours":
        keep_freed_memory()
    device = Cpu(torch.device("cpu"), "eager", args.data_type)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    side = SIDES[args.side](config, rows, args.micro_batch, 2, device)
    for _ in range(3):
        side.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(peak - before - BYTES_PER_PARAMETER * count_parameters(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base")
    parser.add_argument("--seq_len", type=int, default=128)
    parser.add_argument("--micro_batch", type=int, default=16)
    parser.add_argument("--data_type", default=None, choices=["bf16", "fp32"], help="default: both")
    parser.add_argument("--input_dir")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        measure(args)
        return
    print(machine())
    for data_type in [args.data_type] if args.data_type else ["fp32", "bf16"]:
        found = {}
        for side in SIDES:
            words = [f"--size={args.size}", f"--seq_len={args.seq_len}", f"--micro_batch={args.micro_batch}"]
            words += [f"--data_type={data_type}", f"--side={side}"]
            words += [f"--input_dir={args.input_dir}"] if args.input_dir else []
            done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
            found[side] = int(done.stdout)
        print(
            f"{data_type}: {found['ours'] / 2**20:.0f} MiB ours, {found['peer'] / 2**20:.0f} MiB Hugging Face, "
            f"ratio {found['ours'] / found['peer']:.2f}"
        )


if __name__ == "__main__":
    main()
