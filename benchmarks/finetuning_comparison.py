"""Compare this project's fine-tuning with Hugging Face's Trainer: speed in interleaved segments, scores over seeds.

Shared by finetuning_mrpc.py and finetuning_squad.py. Every run is a process of its own, and a run whose result is in
the file of `--results` is not run again: a comparison can be made in pieces, and its tables are printed from the file.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from central.finetuning.tables import read_table

PADDING = {"peer_padded": "max", "peer_dynamic": "dynamic"}  # of the sides that are Hugging Face's
SIDES = ("ours", "two_ranks", *PADDING)


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
    targets: dict[str, float]  # speed over each other side
    sample: Callable[[Path, int, Path], None]  # write N random examples of a file to another
    max_train_samples: int | None = None  # of a full run; None: all


def main(benchmark: Benchmark, about: str) -> None:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a small pretrained BERT")
    parser.add_argument("--train_file", type=Path, required=True)
    parser.add_argument("--validation_file", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=0, help="short segments of each side, in turns, for the speed")
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="full runs of each side, for the scores")
    parser.add_argument(
        "--sides", nargs="+", default=["ours", *PADDING], choices=SIDES, metavar="SIDE", help=f"{SIDES}"
    )
    parser.add_argument("--results", type=Path, help="JSON lines: finished runs are added, and not run again")
    parser.add_argument("--steps", type=int, default=12, help="of a segment: so many as warm-up, then so many timed")
    parser.add_argument("--max_train_samples", type=int, default=benchmark.max_train_samples, help="of a full run")
    parser.add_argument("--max_eval_samples", type=int, help="of a full run; unset: all")
    parser.add_argument("--data_type", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of one process; two ranks share them")
    args = parser.parse_args()
    records = read_records(args.results)
    everywhere = {"task": benchmark.task, "device": args.device, "data_type": args.data_type, "threads": args.threads}
    speed = everywhere | {"kind": "speed", "steps": args.steps}
    score = everywhere | {"kind": "score", "train": args.max_train_samples, "eval": args.max_eval_samples}
    with tempfile.TemporaryDirectory() as folder:
        for settings, numbers, measure in ((speed, range(args.rounds), segment), (score, args.seeds, full_run)):
            for number in numbers:
                for side in args.sides:
                    key = settings | {"side": side, "number": number}
                    if not matching(records, key):
                        found = measure(benchmark, args, side, number, Path(folder))
                        records.append(key | found)
                        print(f"{settings['kind']} {number} {side}: {found}", flush=True)
                        if args.results:
                            with args.results.open("a") as file:
                                file.write(json.dumps(records[-1]) + "\n")
    table = speed_table(matching(records, speed), benchmark.targets)
    print("\n".join(table + score_table(matching(records, score), benchmark.metrics)))


def read_records(file: Path | None) -> list[dict]:
    """Results of earlier runs."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file and file.exists() else []


def matching(records: Sequence[dict], wanted: dict) -> list[dict]:
    """The records that agree with all of `wanted`."""
    return [record for record in records if wanted.items() <= record.items()]


# ---- runs


def segment(benchmark: Benchmark, args, side: str, number: int, folder: Path) -> dict[str, float]:
    """Two epochs on the same random examples for every side; the second one is timed, by the arrival of its log lines.

    So all sides are measured alike, on the same work, and warm-up and start-up apart.
    """
    file = folder / f"sample_{number}.jsonl"
    if not file.exists():
        benchmark.sample(args.train_file, args.steps * benchmark.batch_size, file)
    words = command(benchmark, args, side, file, folder / f"{side}_{number}", seed=number, epochs=2)
    arrivals = timed(words, args.threads)
    steps = len(arrivals) // 2
    seconds = (arrivals[-1] - arrivals[steps - 1]) / steps
    return {"samples_per_second": round(benchmark.batch_size / seconds, 2), "first_step_after": round(arrivals[0], 2)}


def full_run(benchmark: Benchmark, args, side: str, seed: int, folder: Path) -> dict[str, float]:
    """Train, evaluate, and return the scores with the speed of the whole training."""
    output = folder / f"{side}_seed_{seed}"
    words = [*command(benchmark, args, side, args.train_file, output, seed, benchmark.epochs), "--do_eval"]
    arrivals = timed(words, args.threads)
    results = json.loads((output / "all_results.json").read_text())
    scores = {name: results[f"eval_{name}"] for name in benchmark.metrics}
    return scores | {
        "samples_per_second": round(results["train_samples_per_second"], 2),
        "first_step_after": round(arrivals[0], 2),  # nothing cached
    }


def command(benchmark: Benchmark, args, side: str, train_file: Path, output: Path, seed: int, epochs: int) -> list[str]:
    """The words that start one side's training."""
    ranks = 2 if side == "two_ranks" else 1
    words = [f"--train_file={train_file}", f"--validation_file={args.validation_file}", f"--output_dir={output}"]
    words += [f"--model_name_or_path={args.model}", f"--max_seq_length={benchmark.max_seq_length}", f"--seed={seed}"]
    words += [f"--per_device_train_batch_size={benchmark.batch_size // ranks}", f"--num_train_epochs={epochs}"]
    words += ["--learning_rate=5e-5", "--do_train"] + ["--bf16"] * (args.data_type == "bf16")
    for name in ("max_train_samples", "max_eval_samples"):
        words += [f"--{name}={getattr(args, name)}"] * (getattr(args, name) is not None)
    if side in PADDING:
        peer = ROOT / "benchmarks/finetuning_peer.py"
        words += ["--use_cpu"] * (args.device == "cpu")
        return [sys.executable, str(peer), f"--task={benchmark.task}", f"--padding={PADDING[side]}", *words]
    words = [str(ROOT / "transformers/examples/pytorch" / benchmark.script), *benchmark.script_words, *words]
    words += ["--logging_steps=1", "--save_strategy=no", f"--cache_dir={output}.cache"]
    words += ["--no_cuda"] * (args.device == "cpu")
    if ranks == 1:
        return [sys.executable, *words]
    share = ["-x", f"OMP_NUM_THREADS={max(1, args.threads // ranks)}"]
    return ["mpirun", "--allow-run-as-root", "--bind-to", "none", "-n", str(ranks), *share, sys.executable, *words]


def timed(words: list[str], threads: int) -> list[float]:
    """Run a side; seconds from its start to the log line of each step. Ends the benchmark if it fails."""
    environ = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    begin, arrivals, said = time.perf_counter(), [], []
    with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            said.append(line)
            if line.startswith(("step ", "{'loss'")):  # ours, the peer's
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


# ---- tables


def by_side(records: Sequence[dict], name: str) -> dict[str, dict[int, float]]:
    """Side -> number of the round or seed -> value."""
    found = {side: {r["number"]: r[name] for r in records if r["side"] == side} for side in SIDES}
    return {side: values for side, values in found.items() if values}


def speed_table(records: Sequence[dict], targets: dict[str, float]) -> list[str]:
    """Medians over the rounds; a ratio is the median of those of the rounds that both sides ran."""
    rates, starts = by_side(records, "samples_per_second"), by_side(records, "first_step_after")
    lines = []
    for side, found in rates.items():
        line = f"speed  {side:12} median {statistics.median(found.values()):7.2f} samples/s "
        line += f"({min(found.values()):.2f}-{max(found.values()):.2f}, {len(found)} rounds), "
        line += f"first step after {statistics.median(starts[side].values()):.1f} s"
        ratios = [rates["ours"][n] / rate for n, rate in found.items() if n in rates.get("ours", ())]
        if ratios and side != "ours":
            line += f"; ours is {statistics.median(ratios):.2f} x (target {targets[side]})"
        lines.append(line)
    return lines


def score_table(records: Sequence[dict], metrics: Sequence[str]) -> list[str]:
    """Mean and deviation of each side; whether ours is below another by more than the difference's standard error."""
    lines = []
    for name in (*metrics, "samples_per_second", "first_step_after"):
        sides = by_side(records, name)
        for side, found in sides.items():
            values = list(found.values())
            line = f"{name:18} {side:12} mean {statistics.fmean(values):.4f}"
            if len(values) > 1:
                line += f", deviation {statistics.stdev(values):.4f}, {len(values)} seeds"
            ours = list(sides.get("ours", {}).values())
            if name in metrics and side != "ours" and min(len(ours), len(values)) > 1:
                error = math.sqrt(sum(statistics.variance(each) / len(each) for each in (ours, values)))
                difference = statistics.fmean(ours) - statistics.fmean(values)
                verdict = "ok" if difference >= -error else "BELOW"
                line += f"; ours {difference:+.4f}, standard error of the difference {error:.4f}: {verdict}"
            lines.append(line)
    return lines
