"""A race: this project against Hugging Face's BertForPreTraining in the usual loop, and a picture of it.

    python benchmarks/race.py --text FILES --output_dir race            # hours; a second call goes on
    python benchmarks/race.py --text README.md LICENSE --output_dir race --minutes 0.2 --seeds 1 --size tiny

The same text, rows, model, batch size and held-out rows; a process and a thread a side, both at the same time; and the
same processor time (user and system, with start-up and checkpoints), so that other work on the machine counts little.
Ours is run_pretraining.py as it is, theirs race_peer.py, which names what is in its favour. Each side takes the fastest
of fp32 and bf16 in micro-batches of 16 and 64 by short timings, then the best of three learning rates by a sweep of a
fifth of the time, then trains once a seed: as many steps as fit into the time at the pace of its run before, so a
schedule ends with the time. It is let run to its end, and the table has the minutes it took. Checkpoints are evaluated
afterwards, outside of the time, on both sides by Hugging Face's model: no loss here rests on this project's arithmetic.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
import transformers
from pretraining_common import ROOT, config_of, machine
from race_results import draw, final_loss, summary, table

from pretraining.batches import Rows, concatenate
from pretraining.dataset import Limits, open_shards, read_shard
from pretraining.objective import unigram_loss

TYPES = ("fp32", "bf16")
MICRO_BATCH_SIZES = (16, 64)
SEQ_LEN, MASKED = 128, 20
WARMUP = 0.1
TIMED_STEPS = 16  # the second half is timed
POINTS = 16  # of a curve
HELD_OUT_ROWS = 512
CORPUS = "race"
SETTINGS = ("size", "vocab_size", "minutes", "batch_size", "learning_rates")  # that runs of one race share
ONE_EVALUATION = threading.Lock()  # from_pretrained changes what other threads would see
STEP = re.compile(r"step (\d+)/")  # how both sides begin a report


@dataclass(frozen=True)
class Side:
    name: str  # in table and picture
    script: Path
    words: tuple[str, ...]  # that only it takes
    learning_rates: tuple[float, ...]  # of the sweep


SIDES = {
    "ours": Side(
        "this project",
        ROOT / "pretraining/run_pretraining.py",
        ("--do_train", "--no_cuda", f"--max_seq_length={SEQ_LEN}", f"--max_predictions_per_seq={MASKED}"),
        (1e-3, 3e-3, 1e-2),
    ),
    "theirs": Side("Hugging Face, the usual loop", ROOT / "benchmarks/race_peer.py", (), (1e-4, 3e-4, 1e-3)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", type=Path, help="files and folders, as prepare.py --input takes them")
    parser.add_argument("--output_dir", type=Path, required=True, help="data, results, race.json and race.png")
    parser.add_argument("--size", default="mini", help="tiny mini small medium base large")
    parser.add_argument("--vocab_size", type=int, default=8192, help="learned from the text")
    parser.add_argument("--minutes", type=float, default=20.0, help="processor time of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=64, help="rows of an optimizer step")
    parser.add_argument("--learning_rates", nargs=2, type=float, metavar=("OURS", "THEIRS"), help="instead of a sweep")
    parser.add_argument("--report", action="store_true", help="run nothing: picture and table of what is finished")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    keep_settings(args)
    shards = prepared(args)
    held_out = load_held_out(shards, args)
    if not args.report:
        with ThreadPoolExecutor(len(SIDES)) as pool:
            list(pool.map(lambda key: run_side(key, args, shards, held_out), SIDES))
    report(args, shards, held_out)


def settings_of(args) -> dict:
    return {name: getattr(args, name) for name in SETTINGS}


def keep_settings(args) -> None:
    """One folder is one race: results of other settings are never mixed with those of now."""
    file = args.output_dir / "settings.json"
    settings = settings_of(args)
    if file.exists() and (kept := json.loads(file.read_text())) != settings:
        sys.exit(f"{args.output_dir} holds a race with {kept}: give these again, or another --output_dir")
    file.write_text(json.dumps(settings))


# ---- data


def prepared(args) -> Path:
    """The folder of the training shards, made where it is not there. Held-out ones are kept out of it, in `held_out`
    beside vocabulary and model, so that no trainer evaluates in its time."""
    out = args.output_dir
    vocab, data, held_out = (out / name for name in ("vocab.txt", "data", "held_out"))
    if not held_out.exists():
        prepare = [sys.executable, str(ROOT / "pretraining/data/prepare.py")]
        text = ["--input", *map(str, args.text or ()), f"--vocab_file={vocab}"]
        subprocess.run([*prepare, "vocab", *text, f"--vocab_size={args.vocab_size}"], check=True)
        lengths = [f"--max_seq_length={SEQ_LEN}", f"--max_predictions_per_seq={MASKED}"]
        subprocess.run([*prepare, *text, f"--output_dir={data}", f"--corpus={CORPUS}", *lengths], check=True)
        config = config_of(args.size, vocab_size=len(vocab.read_text().splitlines()))
        (out / "config.json").write_text(json.dumps(config.to_hugging_face()))
        partial = out / "held_out.partial"
        partial.mkdir(exist_ok=True)
        for shard in data.glob(f"*/{CORPUS}/*_test_*.hdf5"):
            shard.rename(partial / shard.name)
        partial.rename(held_out)
    (shards,) = data.glob(f"*/{CORPUS}")
    return shards


def load_held_out(shards: Path, args) -> Rows:
    """At most HELD_OUT_ROWS rows, evenly spaced."""
    counts = np.load(shards / "token_counts.npy")
    limits = Limits(len(counts), SEQ_LEN, SEQ_LEN, MASKED)
    opened = open_shards(args.output_dir / "held_out", "test", limits)
    rows = concatenate([read_shard(shard, limits) for shard in opened])
    return rows.take(np.unique(np.linspace(0, len(rows) - 1, HELD_OUT_ROWS).astype(int)))


@torch.no_grad()
def held_out_loss(folder: Path, rows: Rows) -> float:
    """Mean masked-LM loss (nats) of a checkpoint of either side, in fp32, the head on masked positions only."""
    model = transformers.BertForPreTraining.from_pretrained(folder, dtype=torch.float32).eval()
    loss = 0.0
    for first in range(0, len(rows), 32):
        part = rows.take(slice(first, first + 32))
        inputs = {"input_ids": part.input_ids, "attention_mask": part.sequence_ids, "token_type_ids": part.segment_ids}
        hidden = model.bert(**{name: as_tensor(values) for name, values in inputs.items()}).last_hidden_state
        row, column = np.nonzero(part.masked_positions)
        masked = hidden[as_tensor(row), as_tensor(part.masked_positions[row, column])]  # M x h
        labels = as_tensor(part.masked_ids[row, column])
        loss += float(torch.nn.functional.cross_entropy(model.cls.predictions(masked), labels, reduction="sum"))
    return loss / rows.num_masked


def as_tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.int64))


# ---- runs


def run_side(key: str, args, shards: Path, held_out: Rows) -> None:
    """All runs of one side, one after another: timings, the sweep, the seeds."""
    torch.set_num_threads(1)  # for the evaluations in this thread
    side = SIDES[key]

    def run(name: str, settings: dict, steps: int, rows: Rows | None = held_out) -> dict:
        """A run's settings and figures, from its file where it has been made."""
        file = args.output_dir / "runs" / f"{key}_{name}.json"
        if not file.exists():
            made = settings | {"steps": steps}
            points = one_run(side, args, shards, file.with_suffix(""), made, rows)
            file.write_text(json.dumps(made | {"pace": pace(points), "points": points}))
            print(key, name, made, points[-1], flush=True)
        return json.loads(file.read_text())

    timed = []
    for data_type in TYPES:
        for size in sorted({min(size, args.batch_size) for size in MICRO_BATCH_SIZES}):
            settings = {"data_type": data_type, "micro_batch_size": size, "learning_rate": 1e-4, "seed": 0}
            timed.append((settings, run(f"timing_{data_type}_{size}", settings, TIMED_STEPS, rows=None)))
    settings, before = min(timed, key=lambda each: each[1]["pace"])
    if args.learning_rates:
        settings["learning_rate"] = args.learning_rates[list(SIDES).index(key)]
    else:
        steps = steps_within(args.minutes * 60 / 5, before["points"])
        swept = [run(f"sweep_{lr:g}", settings | {"learning_rate": lr}, steps) for lr in side.learning_rates]
        before = min(swept, key=final_loss)
        settings["learning_rate"] = before["learning_rate"]
    for seed in range(1, args.seeds + 1):
        before = run(f"seed_{seed}", settings | {"seed": seed}, steps_within(args.minutes * 60, before["points"]))


def one_run(side: Side, args, shards: Path, folder: Path, settings: dict, held_out: Rows | None) -> list[dict]:
    """Points of a run: step, processor time so far (s), and held-out loss where there are rows for it."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut short
    steps = settings["steps"]
    every = max(1, steps // POINTS) if held_out else steps // 2
    words = [sys.executable, str(side.script), *side.words, f"--config_file={args.output_dir / 'config.json'}"]
    words += [f"--input_dir={shards}", f"--output_dir={folder}", f"--train_batch_size={args.batch_size}"]
    words += [f"--gradient_accumulation_steps={args.batch_size // settings['micro_batch_size']}"]
    words += [f"--learning_rate={settings['learning_rate']}", f"--warmup_proportion={WARMUP}", f"--max_steps={steps}"]
    words += [f"--seed={settings['seed']}", f"--log_freq={every}"] + ["--bf16"] * (settings["data_type"] == "bf16")
    words += [f"--num_steps_per_checkpoint={every if held_out else steps}"]
    if side is SIDES["ours"]:
        words += [f"--json-summary={folder / 'dllogger.json'}", f"--save_total_limit={steps}"]
    folder.mkdir(parents=True)
    points = points_of(words, folder.parent / f"{folder.name}.log")
    if held_out:
        with ONE_EVALUATION:
            points = [{**point, "loss": held_out_loss(folder / f"ckpt_{point['step']}", held_out)} for point in points]
    shutil.rmtree(folder)
    return points


def points_of(words: list[str], log: Path) -> list[dict]:
    """Run a side; at each step it tells of, the processor time its process has had. Ends the race if it fails."""
    points = []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (
        log.open("w") as file,
        subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=file, text=True) as process,
    ):
        for line in process.stdout:
            file.write(line)
            if told := STEP.match(line):
                times = psutil.Process(process.pid).cpu_times()
                points.append({"step": int(told[1]), "seconds": times.user + times.system})
    if process.returncode:
        sys.exit(f"failed with status {process.returncode}, {log} says why: {' '.join(words)}")
    return points


def pace(points: list[dict]) -> float:
    """Seconds of a step, checkpoints included, the start apart."""
    return (points[-1]["seconds"] - points[0]["seconds"]) / (points[-1]["step"] - points[0]["step"])


def steps_within(seconds: float, points: list[dict]) -> int:
    """Steps that fit into the time at the pace of another run, and with its start."""
    start = points[0]["seconds"] - points[0]["step"] * pace(points)
    return max(2, int((seconds - start) / pace(points)))


# ---- results


def report(args, shards: Path, held_out: Rows) -> None:
    """JSON of all runs that are finished, table and picture of the seeds among them."""
    runs = {file.stem: json.loads(file.read_text()) for file in sorted((args.output_dir / "runs").glob("*.json"))}
    seeds = {
        side.name: [run for name, run in runs.items() if name.startswith(f"{key}_seed_")] for key, side in SIDES.items()
    }
    if not all(seeds.values()):
        sys.exit("no seed is finished on both sides yet: nothing to draw")
    unigram = unigram_loss(held_out, np.load(shards / "token_counts.npy"))
    summaries = {
        name: summary(seeds[name], seeds[other], args.batch_size) for name, other in zip(seeds, reversed(seeds))
    }
    found = {"machine": machine(), "settings": settings_of(args), "unigram_loss": unigram, "summary": summaries}
    (args.output_dir / "race.json").write_text(json.dumps(found | {"runs": runs}, indent=2) + "\n")
    draw(seeds, unigram, args.output_dir / "race.png")
    print(found["machine"], *table(summaries, unigram), sep="\n")


if __name__ == "__main__":
    main()
