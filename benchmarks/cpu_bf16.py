"""bf16 against fp32 on a CPU without bf16 instructions: pre-training steps and fine-tuning on MRPC, interleaved.

    python benchmarks/cpu_bf16.py --isa AVX2 --model FOLDER --train_file train.tsv --validation_file dev.tsv

`--isa` hides newer instructions from oneDNN, and with AVX2 from torch's own loops; MKL, which does the products in
fp32, sees all of them. Times are of the processor (s), of one thread by default, so that other work on the machine
counts little. Target: bf16 at 0.8 of the speed of fp32 or more.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TYPES = ("fp32", "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default="AVX2", help="newest instructions of oneDNN; ALL hides none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="steps, and segments of fine-tuning, of each type")
    parser.add_argument("--size", default="mini", help="of the model that is pre-trained")
    parser.add_argument("--seq_len", type=int, default=128)
    parser.add_argument("--model", help="folder of a small pretrained BERT, for the fine-tuning")
    parser.add_argument("--train_file", type=Path)
    parser.add_argument("--validation_file", type=Path)
    parser.add_argument("--steps", type=int, default=6, help="of a segment of fine-tuning, after as many to warm up")
    args = parser.parse_args()
    os.environ |= {"ONEDNN_MAX_CPU_ISA": args.isa, "OMP_NUM_THREADS": str(args.threads)}
    if args.isa == "AVX2":
        os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
    pretraining(args)
    if args.model:
        finetuning(args)


def pretraining(args) -> None:
    """Optimizer steps of 4 micro-batches of 16 rows, the two types in turn, and their losses."""
    from pretraining_common import Ours, config_of, load_rows, machine, opened

    from central.runtime import cpu_bf16

    config = config_of(args.size)
    rows = load_rows(None, 64 * args.repeats, config, args.seq_len, 20 if args.seq_len <= 128 else 80)
    devices = {data_type: opened("cpu", data_type) for data_type in TYPES}
    sides = {data_type: Ours(config, rows, 16, 4, device) for data_type, device in devices.items()}
    times, losses = {data_type: [] for data_type in TYPES}, {data_type: [] for data_type in TYPES}
    print(machine())
    print(f"oneDNN up to {args.isa}; bf16 products {'by torch' if cpu_bf16.has_instructions() else 'in fp32'}")
    for data_type, device in devices.items():
        sides[data_type].warm_up()
        print(f"matrix peak {data_type}: {device.matrix_peak() / 1e9:.0f} GFLOP/s")
    for _ in range(args.repeats):
        for data_type, side in sides.items():
            begin = time.process_time()
            losses[data_type].append(side.step())
            times[data_type].append(time.process_time() - begin)
    for data_type in TYPES:
        print(f"pre-training {args.size} {data_type} losses: {' '.join(f'{x:.3f}' for x in losses[data_type])}")
    report(f"pre-training {args.size}, rows of {args.seq_len}", times)


def finetuning(args) -> None:
    """Segments of a fine-tuning on the same rows, each in a process of its own, the two types in turn."""
    import finetuning_mrpc  # noqa: F401 - puts the project on the path
    from finetuning_comparison import ROOT, sample_rows

    script = ROOT / "transformers/examples/pytorch/text-classification/run_glue.py"
    times = {data_type: [] for data_type in TYPES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.repeats):
            sample = Path(folder) / f"sample_{number}.jsonl"
            sample_rows(args.train_file, 32 * args.steps, sample)
            for data_type in TYPES:
                words = [
                    sys.executable,
                    str(script),
                    "--task_name=mrpc",
                    "--do_train",
                    "--no_cuda",
                    "--logging_steps=1",
                ]
                words += [f"--train_file={sample}", f"--model_name_or_path={args.model}", "--save_strategy=no"]
                words += [f"--output_dir={folder}/{data_type}_{number}", f"--cache_dir={folder}/cache"]
                words += ["--per_device_train_batch_size=32", "--num_train_epochs=2", "--max_seq_length=128"]
                words += ["--learning_rate=5e-5"] + ["--bf16"] * (data_type == "bf16")
                seconds, losses = second_epoch(words, args.steps)
                times[data_type].append(seconds)
                print(f"MRPC {data_type} losses of the second epoch: {' '.join(losses)}", flush=True)
    report("MRPC, batches of 32", times)


def second_epoch(words: list[str], steps: int) -> tuple[float, list[str]]:
    """Processor time of the steps of the second epoch, told by the lines of the log, and the losses in these."""
    import psutil

    environ = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    used, losses, said = [], [], []
    with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            said.append(line)
            if step := re.match(r"step \d+/\d+  loss (\S+)", line):
                used.append(sum(psutil.Process(process.pid).cpu_times()[:2]))
                losses.append(step[1])
    if process.returncode:
        sys.exit("".join(said[-20:]) + f"failed with status {process.returncode}: {' '.join(words)}")
    return used[-1] - used[steps - 1], losses[steps:]


def report(what: str, times: dict[str, list[float]]) -> None:
    for data_type, found in times.items():
        print(f"{what} {data_type}: median {statistics.median(found):.3g} s, {min(found):.3g} to {max(found):.3g}")
    ratios = [a / b for a, b in zip(times["fp32"], times["bf16"], strict=True)]
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"{what}: bf16 at {middle:.2f} times the speed of fp32 ({low:.2f} to {high:.2f})", flush=True)


if __name__ == "__main__":
    main()
