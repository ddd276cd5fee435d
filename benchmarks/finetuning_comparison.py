"""Compare this project's fine-tuning with Hugging Face's Trainer: speed in interleaved segments, scores over seeds.

Shared by finetuning_mrpc.py and finetuning_squad.py. Every run is a process of its own, started the same way; a step is
timed by the arrival of its log line, so both sides are measured alike, warm-up and start-up apart.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from central.runtime.finetuning_data import read_table

WARM_UP = 2  # steps left out at the head of a segment
PEERS = ("padded", "dynamic")


@dataclass(frozen=True)
class Benchmark:
    """What the two tasks differ in."""

    task: str
    script: str  # ours, below transformers/examples/pytorch
    script_words: tuple[str, ...]  # that ours takes and the peer does not
    metrics: tuple[str, ...]
    batch_size: int
    max_seq_length: int
    epochs: int
    targets: dict[str, float]  # speed over each peer
    sample: Callable[[Path, int, Path], None]  # write N random examples of a file to another


def main(benchmark: Benchmark, about: str) -> None:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a small pretrained BERT")
    parser.add_argument("--train_file", type=Path, required=True)
    parser.add_argument("--validation_file", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20, help="steps of a segment")
    parser.add_argument("--rounds", type=int, default=3, help="segments of each system")
    parser.add_argument(
        "--scores", type=int, default=0, metavar="SEEDS", help="instead: full runs with this many seeds"
    )
    parser.add_argument("--systems", default="ours,padded,dynamic", help="which to run, between commas; also two_ranks")
    parser.add_argument("--max_train_samples", type=int, default=8000, help="of a full run on SQuAD")
    parser.add_argument("--max_eval_samples", type=int, help="of a full run on SQuAD")
    parser.add_argument("--data_type", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=int, default=2, help="of one process; two ranks share them")
    parser.add_argument("--work_dir", type=Path, help="where the runs write; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        args.work_dir = args.work_dir or Path(temporary)
        args.work_dir.mkdir(parents=True, exist_ok=True)
        (compare_scores if args.scores else compare_speed)(benchmark, args)


def compare_speed(benchmark: Benchmark, args) -> None:
    """Every system trains on the same random examples, one epoch, in turns."""
    systems = args.systems.split(",")
    runs = {system: [] for system in systems}
    for number in range(args.rounds):
        file = args.work_dir / f"sample_{number}.jsonl"
        benchmark.sample(args.train_file, args.steps * benchmark.batch_size, file)
        for system in systems:
            output = args.work_dir / f"{system}_{number}"
            words = command(benchmark, args, system, file, output, seed=number, epochs=1, evaluate=False)
            arrivals = timed(words, args.threads)
            seconds = (arrivals[-1] - arrivals[WARM_UP - 1]) / (len(arrivals) - WARM_UP)
            runs[system].append((benchmark.batch_size / seconds, arrivals[0]))
            print(
                f"round {number} {system:10} {benchmark.batch_size / seconds:7.2f} samples/s, first step after "
                f"{arrivals[0]:.1f} s",
                flush=True,
            )
    ours = [rate for rate, _ in runs.get("ours", ())]
    for system, found in runs.items():
        rates = [rate for rate, _ in found]
        spread = f"{min(rates):.2f}-{max(rates):.2f}"
        line = f"{system:10} median {statistics.median(rates):7.2f} samples/s ({spread})"
        line += f", start-up {statistics.median(start for _, start in found):.1f} s"
        if ours and system != "ours":
            ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, rates))
            line += f"; ours is {ratio:.2f} x (target {benchmark.targets[system]})"
        print(line)


def compare_scores(benchmark: Benchmark, args) -> None:
    """Full runs of every system with the same seeds: means, and whether ours is below by more than a standard error."""
    systems = args.systems.split(",")
    found = {system: [] for system in systems}
    for seed in range(42, 42 + args.scores):
        for system in systems:
            output = args.work_dir / f"{system}_seed_{seed}"
            words = command(benchmark, args, system, args.train_file, output, seed, benchmark.epochs, evaluate=True)
            timed(words, args.threads)
            results = json.loads((output / "all_results.json").read_text())
            found[system].append(results)
            scores = ", ".join(f"{name} {results[f'eval_{name}']:.4f}" for name in benchmark.metrics)
            print(f"seed {seed} {system:10} {scores}, {results['train_samples_per_second']:.2f} samples/s", flush=True)
    for name in benchmark.metrics:
        values = {system: [results[f"eval_{name}"] for results in found[system]] for system in systems}
        for system in systems:
            line = f"{name:12} {system:10} mean {statistics.fmean(values[system]):.4f}"
            if args.scores > 1:
                line += f" deviation {statistics.stdev(values[system]):.4f}"
                if "ours" in values and system != "ours":
                    error = math.sqrt(sum(statistics.variance(values[s]) / args.scores for s in ("ours", system)))
                    difference = statistics.fmean(values["ours"]) - statistics.fmean(values[system])
                    verdict = "ok" if difference >= -error else "BELOW"
                    line += f"; ours {difference:+.4f}, standard error {error:.4f}: {verdict}"
            print(line)


def command(benchmark, args, system, train_file, output, seed, epochs, evaluate) -> list[str]:
    """The words that start one system."""
    files = [f"--train_file={train_file}", f"--validation_file={args.validation_file}"]
    common = [*files, f"--output_dir={output}", f"--seed={seed}", f"--max_seq_length={benchmark.max_seq_length}"]
    common += ["--learning_rate=5e-5"]
    if benchmark.task == "squad":
        common += [f"--max_train_samples={args.max_train_samples}"]
        common += [f"--max_eval_samples={args.max_eval_samples}"] if args.max_eval_samples else []
    if system in PEERS:
        padding = "max" if system == "padded" else "dynamic"
        words = [str(ROOT / "benchmarks/finetuning_peer.py"), f"--task={benchmark.task}", f"--padding={padding}"]
        words += [f"--model={args.model}", f"--batch_size={benchmark.batch_size}", f"--epochs={epochs}", *common]
        words += ["--fp32"] * (args.data_type == "fp32") + ["--skip_eval"] * (not evaluate)
        return [sys.executable, *words]
    ranks = 2 if system == "two_ranks" else 1
    words = [str(ROOT / "transformers/examples/pytorch" / benchmark.script), *benchmark.script_words, *common]
    words += [f"--model_name_or_path={args.model}", f"--per_device_train_batch_size={benchmark.batch_size // ranks}"]
    words += [f"--num_train_epochs={epochs}", "--logging_steps=1", "--save_strategy=no", "--no_cuda", "--do_train"]
    words += ["--overwrite_output_dir"] + ["--bf16"] * (args.data_type == "bf16") + ["--do_eval"] * evaluate
    mpirun = ["mpirun", "--allow-run-as-root", "--bind-to", "none", "-n", "2"] if ranks == 2 else []
    if ranks == 2:
        mpirun += ["-x", f"OMP_NUM_THREADS={max(1, args.threads // 2)}"]
    return [*mpirun, sys.executable, *words]


def timed(words: list[str], threads: int) -> list[float]:
    """Run a system; seconds from its start to the log line of each step. Ends the benchmark if it fails."""
    environ = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    begin, arrivals, said = time.perf_counter(), [], []
    with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            said.append(line)
            if line.startswith("{'loss'"):
                arrivals.append(time.perf_counter() - begin)
    if process.returncode:
        sys.exit("".join(said[-20:]) + f"failed with status {process.returncode}: {' '.join(words)}")
    return arrivals


def sample_rows(file: Path, count: int, target: Path) -> None:
    """Random rows of a table, as JSON lines; another choice for every target."""
    table = read_table(file)
    rows = [dict(zip(table.columns, values)) for values in zip(*table.columns.values())]
    chosen = random.Random(target.name).sample(rows, count)
    target.write_text("".join(json.dumps(row) + "\n" for row in chosen))


def sample_questions(file: Path, count: int, target: Path) -> None:
    """Random questions of a file in SQuAD's form, flat, as JSON lines."""
    articles = read_table(file).columns["paragraphs"]
    rows = [{"context": p["context"], **qa} for paragraphs in articles for p in paragraphs for qa in p["qas"]]
    chosen = random.Random(target.name).sample(rows, count)
    target.write_text("".join(json.dumps(row) + "\n" for row in chosen))
