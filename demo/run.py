"""From raw text to a fine-tuned score on this machine's CPU: `make demo`, or `python demo/run.py` in the environment.

The text is the language reference that every Python carries (`pydoc_data.topics`); every step is a command line of
this project, printed as it can be pasted. Everything is written under demo_output/.
"""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("demo_output")
TEXT = OUT / "text" / "python_reference.txt"
VOCAB = OUT / "vocab.txt"
DATA = OUT / "data"
PRETRAINED = OUT / "pretraining"
FINETUNED = OUT / "finetuning"
CORPUS = "python_reference"
DUPE_FACTOR = 5
RANDOM_SEED = 12345


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
    warmup: float

    @property
    def data_dir(self) -> Path:
        name = (
            f"hdf5_lower_case_1_seq_len_{self.max_seq_length}_max_pred_{self.max_predictions}"
            f"_masked_lm_prob_0.15_random_seed_{RANDOM_SEED}_dupe_factor_{DUPE_FACTOR}"
        )
        return DATA / name / CORPUS


PHASES = (
    Phase(1, 128, 20, micro_batch_size=32, batch_size=64, max_steps=400, learning_rate=8e-3, warmup=0.1),
    Phase(2, 512, 80, micro_batch_size=8, batch_size=16, max_steps=80, learning_rate=3e-3, warmup=0.1),
)


def main() -> int:
    started = time.monotonic()
    keep_old_output()
    write_text()
    for title, words in steps():
        run(title, words)
    print(summary(time.monotonic() - started))
    return 0


def keep_old_output() -> None:
    """Rename the output of an earlier demo, so that nothing of it is lost or mixed with this one's."""
    if OUT.exists():
        number = next(n for n in range(1, 10_000) if not Path(f"{OUT}.{n}").exists())
        OUT.rename(f"{OUT}.{number}")
        print(f"{OUT}/ of an earlier run is now {OUT}.{number}/")


def write_text() -> None:
    """Write the language reference as BERT's data preparation reads it: a paragraph a line, a blank line a document."""
    documents = ("\n".join(paragraphs(text)) for _, text in sorted(topics.topics.items()))
    TEXT.parent.mkdir(parents=True)
    TEXT.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    print(f"{TEXT}: {len(topics.topics)} documents, {TEXT.stat().st_size / 1e6:.2f} MB")


def paragraphs(text: str) -> list[str]:
    """Paragraphs of one topic, each joined to one line; headings lose the row of stars or dashes under them."""
    blocks = (block.splitlines() for block in text.split("\n\n"))
    joined = (" ".join(line.strip() for line in lines if line.strip(" *=-~^")) for lines in blocks)
    return [paragraph for paragraph in joined if paragraph]


def steps() -> list[tuple[str, list[str]]]:
    """(what it does, command line) of every step, in order."""
    python = sys.executable
    if Path(python).is_relative_to(ROOT):
        python = str(Path(python).relative_to(ROOT))
    return [
        (
            "A WordPiece vocabulary learned from the text",
            [python, "pretraining/data/prepare.py", "vocab", *options(input=TEXT, vocab_size=4096, vocab_file=VOCAB)],
        ),
        (
            "Masked sequences for both phases, a tenth of the documents held out",
            [
                python,
                "pretraining/data/prepare.py",
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
                python,
                "demo_bert.py",
                "pretraining",
                *options(
                    model_name_or_path="tiny",
                    data_type="fp32",
                    device="cpu",
                    world_size=2,
                    output_dir=PRETRAINED,
                    data_dir=[phase.data_dir for phase in PHASES],
                    max_seq_length=[phase.max_seq_length for phase in PHASES],
                    batch_size=[phase.micro_batch_size for phase in PHASES],
                    train_batch_size=[phase.batch_size for phase in PHASES],
                    max_steps=[phase.max_steps for phase in PHASES],
                    learning_rate=[phase.learning_rate for phase in PHASES],
                    warmup=[phase.warmup for phase in PHASES],
                ),
                "--accumulate_gradients",
                "--allreduce_post_accumulation",
                "--",
                "--log_freq=20",
            ],
        ),
        (
            "Fine-tuning of that checkpoint: do two sentences say the same?",
            [
                python,
                "demo_bert.py",
                "finetuning",
                *options(
                    model_name_or_path=PRETRAINED,
                    task_name="mrpc",
                    data_type="fp32",
                    device="cpu",
                    train_file="demo/paraphrases_train.tsv",
                    validation_file="demo/paraphrases_dev.tsv",
                    max_seq_length=64,
                    batch_size=16,
                    num_train_epochs=8,
                    learning_rate=3e-4,
                    logging_steps=30,
                    output_dir=FINETUNED,
                ),
                "--do_eval",
            ],
        ),
    ]


def options(**values) -> list[str]:
    """`max_steps=[3, 4]` -> `--max_steps 3 4`."""
    words = []
    for name, value in values.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def run(title: str, words: list[str]) -> None:
    """Show a command as a line that can be pasted, run it, and stop the demo with its status if it fails."""
    print(f"\n== {title}\n$ {shlex.join(words)}", flush=True)
    status = subprocess.run(words, cwd=ROOT).returncode
    if status:
        sys.exit(f"error: the step above ended with status {status}; its output says why")


def log_lines(path: Path) -> list[dict]:
    """The `data` of every DLLL line, in order."""
    lines = path.read_text().splitlines()
    return [json.loads(line.removeprefix("DLLL "))["data"] for line in lines if line.startswith("DLLL ")]


def summary(seconds: float) -> str:
    """The table at the end, from the logs alone."""
    data = log_lines(PRETRAINED / "results" / "dllogger.json")
    scores = json.loads((FINETUNED / "mrpc" / "all_results.json").read_text())
    rows = [f"{'':34}{'masked LM':>12}{'masked LM':>12}{'next sentence':>16}"]
    rows += [f"{'held-out text':34}{'loss':>12}{'accuracy':>12}{'accuracy':>16}"]
    speeds = []
    for phase in PHASES:
        evaluations = [line for line in data if line.get("phase") == phase.number and "eval_mlm_loss" in line]
        training = [
            line["sequences_per_second"] for line in data if line.get("phase") == phase.number and "step_loss" in line
        ]
        what = f"phase {phase.number} ({phase.max_seq_length} tokens)"
        for when, line in (("before", evaluations[0]), ("after", evaluations[-1])):
            rows.append(
                f"{when + ' ' + what:34}{line['eval_mlm_loss']:12.2f}{line['eval_mlm_accuracy']:12.1%}"
                f"{line['eval_nsp_accuracy']:16.1%}"
            )
        rows.append(f"{'  unigram baseline of this text':34}{evaluations[-1]['eval_unigram_loss']:12.2f}")
        speeds.append(f"{sorted(training)[len(training) // 2]:.0f} sequences/s in phase {phase.number}")
    checkpoint = max((PRETRAINED / "results/checkpoints").glob("ckpt_*"), key=lambda p: int(p.name.split("_")[1]))
    return "\n".join(
        [
            "",
            "=" * 74,
            *rows,
            "",
            f"paraphrases, fine-tuned           accuracy {scores['eval_accuracy']:.1%}"
            f"   (always the majority class: {scores['eval_majority_class']:.1%})",
            "  a tiny model that has read 0.4 MB hardly beats chance here: this shows the way, not what BERT can do",
            f"speed, two ranks                  {', '.join(speeds)}",
            f"time                              {seconds:.0f} s",
            "",
            f"pre-trained model   {checkpoint}   (a Hugging Face folder)",
            f"fine-tuned model    {FINETUNED / 'mrpc'}",
            f"log                 {PRETRAINED / 'results/dllogger.json'}",
            f"picture             {PRETRAINED / 'results/training.png'}",
            "=" * 74,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
