"""Two ranks with one thread each against one rank with two threads: the same global batch, alternating runs.

python benchmarks/pretraining_ranks.py --input_dir SHARDS --size mini
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pretraining_common import ROOT, machine, spread

from pretraining.reports import read_log


def run_once(args, ranks: int) -> list[float]:
    """Global sequences per second of each step but the first two."""
    with tempfile.TemporaryDirectory() as out:
        launcher = ["mpirun", "--allow-run-as-root", "--bind-to", "none", "--oversubscribe", "-n", str(ranks)]
        script = [sys.executable, str(ROOT / "pretraining" / "run_pretraining.py")]
        words = [
            "--do_train", "--no_cuda", "--skip_checkpoint", "--allreduce_post_accumulation", "--disable_progress_bar",
            f"--config_file={ROOT / 'pretraining' / f'bert_{args.size}_config.json'}", f"--input_dir={args.input_dir}",
            f"--max_seq_length={args.seq_len}", f"--max_predictions_per_seq={20 if args.seq_len <= 128 else 80}",
            f"--train_batch_size={args.batch // ranks}",
            f"--gradient_accumulation_steps={args.batch // args.micro_batch // ranks}",
            f"--max_steps={args.steps}", f"--output_dir={out}/checkpoints", f"--json-summary={out}/dllogger.json",
            f"--eval_steps={10**9}",
        ]  # fmt: skip
        if args.data_type == "bf16":
            words.append("--hmp")
        environment = {**os.environ, "OMP_NUM_THREADS": str(2 // ranks)}
        command = [*(launcher if ranks > 1 else []), *script, *words]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        lines = [
            data["sequences_per_second"] for _, data in read_log(Path(out) / "dllogger.json") if "step_loss" in data
        ]
    return lines[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_dir", required=True, help="folder of training shards")
    parser.add_argument("--size", default="mini", help="tiny mini small medium base")
    parser.add_argument("--seq_len", type=int, default=128)
    parser.add_argument("--batch", type=int, default=256, help="sequences of a step, over all ranks")
    parser.add_argument("--micro_batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data_type", default="bf16", choices=["bf16", "fp32"])
    args = parser.parse_args()
    found = {1: [], 2: []}
    for _ in range(args.repeats):
        for ranks in found:
            found[ranks] += run_once(args, ranks)
    print(machine())
    for ranks, speeds in found.items():
        print(f"{ranks} rank(s) x {2 // ranks} thread(s): {spread([args.batch / speed for speed in speeds])} a step")
    print(f"two ranks reach {statistics.median(found[2]) / statistics.median(found[1]):.2f} of one")


if __name__ == "__main__":
    main()
