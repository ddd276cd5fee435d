"""From raw text to a fine-tuned score on this machine's CPU: `make demo`, or `python demo/run.py` in the environment.

Every step is a command line of this project, printed as it can be pasted. Everything is written under demo_output/.
"""

import json
import math
import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import text

if TYPE_CHECKING:
    import numpy as np

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("demo_output")
TEXT = OUT / "text" / "python.txt"
PAIRS_TRAIN, PAIRS_DEV = OUT / "text" / "pairs_train.tsv", OUT / "text" / "pairs_dev.tsv"
VOCAB = OUT / "vocab.txt"
DATA = OUT / "data"
CORPUS = "python"
PRETRAINED = OUT / "pretraining"
RANDOM = OUT / "random_weights"
FINETUNED = OUT / "finetuning"
OTHERS = OUT / "beside.log"  # output of commands that run beside the one that is shown
CHECKPOINTS = PRETRAINED / "results" / "checkpoints"
PAIRS, DEV_PAIRS = 1000, 1000
SEEDS = 3
DUPE_FACTOR = 5
RANDOM_SEED = 12345
HDF5_KEYS = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids", "next_sentence_labels")


@dataclass(frozen=True)
class Phase:
    """One pre-training phase; `batch_size` counts the sequences of one update over both ranks."""

    number: int
    max_seq_length: int
    max_predictions: int
    micro_batch_size: int
    batch_size: int
    max_steps: int
    learning_rate: float

    @property
    def test_shards(self) -> list[Path]:
        return sorted(DATA.glob(f"*_seq_len_{self.max_seq_length}_*/{CORPUS}/*_test_*.hdf5"))


PHASES = (
    Phase(1, 64, 10, micro_batch_size=32, batch_size=64, max_steps=850, learning_rate=1e-2),
    Phase(2, 128, 20, micro_batch_size=32, batch_size=64, max_steps=70, learning_rate=5e-3),
)


@dataclass(frozen=True)
class Score:
    """A row of the table: what was reached, what needs no learning, and how much chance is in the first."""

    name: str
    score: float
    baseline: float
    better: str  # "higher" or "lower"
    standard_error: float
    baseline_name: str


NEXT = (
    f"pretraining/data/prepare.py --input my_text --vocab_file {VOCAB} --output_dir my_data",
    "demo_bert.py pretraining --model_name_or_path base --data_type bf16 --train_batch_size 1024 512 "
    "--accumulate_gradients --learning_rate 9e-4 6e-4 --data_dir my_data --output_dir my_bert",
    f"demo_bert.py finetuning --model_name_or_path {PRETRAINED} --task_name mrpc --data_type fp32 "
    "--train_file my_train.tsv --validation_file my_dev.tsv --do_eval --output_dir my_model",
)


def main() -> int:
    started = time.monotonic()
    keep_old_output()
    write_text()
    for title, words in steps():
        run(title, words)
    write_random_weights()
    run(
        "Fine-tuning of that checkpoint and, at the same time, of random weights: does a sentence follow another?",
        finetuning(PRETRAINED, "pretrained"),
        finetuning(RANDOM, "random"),
    )
    scores = read_scores()
    (OUT / "demo.json").write_text(json.dumps([asdict(score) for score in scores], indent=2) + "\n")
    print(summary(scores, time.monotonic() - started))
    return 0


def keep_old_output() -> None:
    """Rename the output of an earlier demo, so that nothing of it is lost or mixed with this one's."""
    if OUT.exists():
        number = next(n for n in range(1, 10_000) if not Path(f"{OUT}.{n}").exists())
        OUT.rename(f"{OUT}.{number}")
        print(f"{OUT}/ of an earlier run is now {OUT}.{number}/")


def write_text() -> None:
    """The text, a blank line between documents; every tenth document is kept from pre-training and gives the pairs."""
    documents = text.documents()
    kept = documents[::10]
    training = [document for place, document in enumerate(documents) if place % 10]
    TEXT.parent.mkdir(parents=True)
    TEXT.write_text("\n\n".join(training) + "\n", encoding="utf-8")
    middle = len(kept) * 6 // 10
    write_pairs(PAIRS_TRAIN, text.neighbours(kept[:middle], PAIRS, seed=1))
    write_pairs(PAIRS_DEV, text.neighbours(kept[middle:], DEV_PAIRS, seed=2))
    print(
        f"{TEXT}: the language reference and docstrings of this Python and its packages, {len(training)} documents, "
        f"{TEXT.stat().st_size / 1e6:.1f} MB; {len(kept)} more documents are kept for the fine-tuning"
    )


def write_pairs(path: Path, rows: list[tuple[int, str, str]]) -> None:
    lines = ["label\tsentence1\tsentence2", *(f"{label}\t{first}\t{second}" for label, first, second in rows)]
    path.write_text("\n".join(lines).replace('"', "'") + "\n", encoding="utf-8")


def python() -> str:
    """This Python, as it is written from the project's folder."""
    path = Path(sys.executable)
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def steps() -> list[tuple[str, list[str]]]:
    """(what it does, command line) of the steps up to the pre-trained model, in order."""
    prepare = [python(), "pretraining/data/prepare.py"]
    return [
        (
            "A WordPiece vocabulary learned from the text",
            [*prepare, "vocab", *options(input=TEXT, vocab_size=4096, vocab_file=VOCAB)],
        ),
        (
            "Masked sequences for both phases, a tenth of the documents held out",
            [
                *prepare,
                *options(
                    input=TEXT,
                    vocab_file=VOCAB,
                    output_dir=DATA,
                    corpus=CORPUS,
                    max_seq_length=[phase.max_seq_length for phase in PHASES],
                    max_predictions_per_seq=[phase.max_predictions for phase in PHASES],
                    dupe_factor=DUPE_FACTOR,
                    random_seed=RANDOM_SEED,
                    num_shards=2,
                    num_processes=2,
                    test_fraction=0.1,
                ),
            ],
        ),
        (
            "Pre-training, both phases, two ranks under mpirun",
            [
                python(),
                "demo_bert.py",
                "pretraining",
                *options(
                    model_name_or_path="tiny",
                    data_type="fp32",
                    device="cpu",
                    world_size=2,
                    output_dir=PRETRAINED,
                    data_dir=DATA,
                    max_seq_length=[phase.max_seq_length for phase in PHASES],
                    batch_size=[phase.micro_batch_size for phase in PHASES],
                    train_batch_size=[phase.batch_size for phase in PHASES],
                    max_steps=[phase.max_steps for phase in PHASES],
                    learning_rate=[phase.learning_rate for phase in PHASES],
                    warmup=[0.1, 0.1],
                ),
                "--accumulate_gradients",
                "--allreduce_post_accumulation",
                "--",
                "--log_freq=50",
                "--num_steps_per_checkpoint=300",
            ],
        ),
    ]


def finetuning(model: Path, name: str) -> list[str]:
    """The command line that fine-tunes `model`, once a seed."""
    return [
        python(),
        "demo_bert.py",
        "finetuning",
        *options(
            model_name_or_path=model,
            task_name="mrpc",
            data_type="fp32",
            device="cpu",
            train_file=PAIRS_TRAIN,
            validation_file=PAIRS_DEV,
            max_seq_length=64,
            batch_size=16,
            num_train_epochs=2,
            learning_rate=3e-4,
            seeds=SEEDS,
            output_dir=FINETUNED / name,
        ),
        "--do_eval",
    ]


def options(**values: object) -> list[str]:
    """`max_steps=[3, 4]` -> `--max_steps 3 4`."""
    words = []
    for name, value in values.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def run(title: str, *commands: list[str]) -> None:
    """Show commands as lines that can be pasted and run them at once; the demo stops with the status of one that fails.

    The output of the first is shown, that of the others kept in a file. Where there are several each takes one thread.
    """
    print(f"\n== {title}", *(f"$ {shlex.join(words)}" for words in commands), sep="\n", flush=True)
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if len(commands) > 1 else {})
    first, *others = commands
    with open(OTHERS, "ab") as log:
        running = [subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log) for words in others]
        statuses = [subprocess.run(first, cwd=ROOT, env=environment).returncode, *(other.wait() for other in running)]
    if any(statuses):
        failed = next(number for number, status in enumerate(statuses) if status)
        where = f"{OTHERS} says" if failed else "its output says"
        sys.exit(f"error: the step above ended with status {statuses[failed]}; {where} why")


def checkpoint() -> Path:
    """The newest checkpoint, a Hugging Face folder."""
    return max(CHECKPOINTS.glob("ckpt_*"), key=lambda path: int(path.name.split("_")[1]))


def write_random_weights() -> None:
    """A model like the checkpoint, tokenizer included, that has learned nothing."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForPreTraining

    torch.manual_seed(0)
    BertForPreTraining(BertConfig.from_pretrained(checkpoint())).save_pretrained(RANDOM)
    AutoTokenizer.from_pretrained(checkpoint()).save_pretrained(RANDOM)


def log_lines(path: Path) -> list[dict]:
    """The `data` of every DLLL line, in order."""
    lines = path.read_text().splitlines()
    return [json.loads(line.removeprefix("DLLL "))["data"] for line in lines if line.startswith("DLLL ")]


def read_scores() -> list[Score]:
    """All rows: losses and accuracies by Hugging Face's model, baselines from the log, the rest from result files."""
    data = log_lines(PRETRAINED / "results" / "dllogger.json")
    scores, steps = [], 0
    for phase in PHASES:
        steps += phase.max_steps
        logged = [line for line in data if line.get("phase") == phase.number and "eval_mlm_loss" in line][-1]
        losses, masked, right = evaluate(CHECKPOINTS / f"ckpt_{steps}", phase.test_shards)
        loss = losses.sum() / masked.sum()
        error = float(((losses - loss * masked) ** 2).sum() ** 0.5 / masked.sum())  # of a ratio of two sums
        what = f"phase {phase.number}, {phase.max_seq_length} tokens"
        scores += [
            Score(f"masked LM loss, {what}", float(loss), logged["eval_unigram_loss"], "lower", error, "unigram"),
            accuracy(
                f"next sentence, {what}", float(right.mean()), logged["eval_nsp_majority"], len(right), "majority"
            ),
        ]
    tuned, unlearned = (mean_accuracy(FINETUNED / name / "mrpc" / "seeds.json") for name in ("pretrained", "random"))
    name = f"sentence pairs, {SEEDS} seeds"
    scores.append(accuracy(name, tuned, 0.5, DEV_PAIRS, "majority"))
    scores.append(accuracy(name, tuned, unlearned, DEV_PAIRS, "random weights"))
    return scores


def evaluate(folder: Path, shards: list[Path]) -> "list[np.ndarray]":
    """Of each of N held-out sequences the masked LM losses (nats, summed), the masked tokens, and whether the next
    sentence was told: three arrays [N].

    By Hugging Face's own BertForPreTraining, so that no score rests on this project's arithmetic.
    """
    import h5py
    import numpy as np
    import torch
    from transformers import BertForPreTraining, logging

    logging.disable_progress_bar()
    model = BertForPreTraining.from_pretrained(folder).eval()
    found = []
    for shard in shards:
        with h5py.File(shard) as file:
            rows = {name: torch.from_numpy(file[name][:].astype(np.int64)) for name in file}
        for at in range(0, len(rows["input_ids"]), 64):
            ids, mask, segments, positions, labels, following = (rows[name][at : at + 64] for name in HDF5_KEYS)
            with torch.no_grad():
                output = model(input_ids=ids, attention_mask=mask, token_type_ids=segments)
            words = output.prediction_logits.gather(1, positions[..., None].expand(-1, -1, model.config.vocab_size))
            losses = torch.nn.functional.cross_entropy(words.transpose(1, 2), labels, ignore_index=0, reduction="none")
            right = output.seq_relationship_logits.argmax(-1) == following
            found.append((losses.sum(1), (labels != 0).sum(1), right.float()))
    return [torch.cat(column).double().numpy() for column in zip(*found)]


def accuracy(name: str, score: float, baseline: float, count: int, baseline_name: str) -> Score:
    """A row whose score is a share of `count` things."""
    return Score(name, score, baseline, "higher", math.sqrt(score * (1 - score) / count), baseline_name)


def mean_accuracy(path: Path) -> float:
    """Of all seeds of a fine-tuning."""
    summaries = json.loads(path.read_text())["scores"]
    return next(summary["mean"] for summary in summaries if summary["name"] == "eval_accuracy")


def summary(scores: list[Score], seconds: float) -> str:
    """The table at the end, and what to do next."""
    width = max(len(score.name) for score in scores)
    rows = [f"{'held out':{width}}  {'score':>8}  {'+-':>7}  {'baseline':>8}"]
    for score in scores:
        numbers = (score.score, score.standard_error, score.baseline)
        cells = [f"{n:.2f}" for n in numbers] if score.better == "lower" else [f"{n:.1%}" for n in numbers]
        rows.append(f"{score.name:{width}}  {cells[0]:>8}  {cells[1]:>7}  {cells[2]:>8}  ({score.baseline_name})")
    results = PRETRAINED / "results"
    return "\n".join(
        [
            "",
            "=" * 78,
            *rows,
            "",
            "Losses are nats a masked word; +- is the standard error. No model has seen these documents before. The",
            f"pairs ask whether one sentence follows another, learned from {PAIRS} labels; the last row is beside the",
            "same fine-tuning of random weights. Four minutes teach so small a model which words keep company.",
            "",
            f"time                {seconds:.0f} s",
            f"pre-trained model   {checkpoint()}   (a Hugging Face folder)",
            f"fine-tuned models   {FINETUNED}/pretrained/mrpc/seed_*",
            f"results, picture    {results}/results.json, {results}/training.png",
            f"this table          {OUT}/demo.json",
            "",
            "Next (README.md and docs/data.md say more): your own text, a card, your own pairs of sentences",
            *(f"  {shlex.quote(python())} {words}" for words in NEXT),
            "=" * 78,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
