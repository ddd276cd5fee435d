"""The model card (README.md) of a fine-tuned model: what it came from, how it was made, and its scores. No blanks."""

import importlib.metadata
import json
import platform
import re
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from central.files import known_in, write_synced
from central.finetuning.tables import Table
from central.finetuning.task import Run, Task

LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate")
SCORES = re.compile(
    r"epoch|train_(loss|samples|samples_per_second)|eval_(?!.*(_per_second|runtime|_time|_flos)(_mm)?$).*"
)


def write_model_card(
    run: Run, task: Task, model: PreTrainedModel, metrics: dict[str, float], resumed_at: Sequence[int] = ()
) -> None:
    """Write README.md beside the model; a run that only evaluates puts its scores into the card that is there.

    `resumed_at` are the steps at which a training was taken up again.
    """
    file, stored = run.output_dir / "README.md", run.output_dir / "all_results.json"
    metrics = {**known_in(stored), **metrics}
    if run.request.training.do_train or not file.exists():
        text = model_card(run, task, model, metrics, resumed_at)
    else:
        card = file.read_text(encoding="utf-8")
        text = re.sub(r"(?s)## Scores\n.*?(?=\n\n## )", lambda _: _scores(metrics), card)
    write_synced(file, text.encode())


def model_card(
    run: Run, task: Task, model: PreTrainedModel, metrics: dict[str, float], resumed_at: Sequence[int] = ()
) -> str:
    """The text of the card."""
    base = run.request.model.model_name_or_path
    name = run.output_dir.resolve().name
    sections = [
        _front_matter(base, task),
        f"# {name}",
        f"`{base}` fine-tuned on {task.name}: {type(model).__name__}, {model.num_parameters():,} parameters.",
        f"## Use\n\n```python\n{task.usage(str(run.output_dir)).strip()}\n```",
        _scores(metrics),
        "## Data\n\n" + _data_table(task.tables),
        "## Hyper-parameters\n\n" + _table(("setting", "value"), _settings(run, resumed_at)),
        "## Hardware and versions\n\n" + _table(("what", "version"), _environment(run)),
    ]
    return "\n\n".join(sections) + "\n"


def _scores(metrics: dict[str, float]) -> str:
    """The section of the scores."""
    scores = {key: value for key, value in metrics.items() if SCORES.fullmatch(key)}
    return "## Scores\n\n" + _table(("metric", "value"), scores or {"none": "this run did not evaluate"})


def _front_matter(base: str, task: Task) -> str:
    lines = ["---", "library_name: transformers", f"pipeline_tag: {task.pipeline}", f"base_model: {json.dumps(base)}"]
    return "\n".join([*lines, f"tags: [{', '.join(dict.fromkeys((task.pipeline, task.name)))}]", "---"])


def _table(heads: tuple[str, str], rows: dict) -> str:
    lines = [f"| {heads[0]} | {heads[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {key} | {_text(value)} |" for key, value in rows.items())])


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)


def _data_table(tables: dict[str, Table]) -> str:
    rows = [f"| {split} | {Path(t.source).name} | {len(t)} | `{t.sha256}` |" for split, t in tables.items()]
    return "\n".join(["| split | source | rows | hash |", "|---|---|---|---|", *rows])


def _settings(run: Run, resumed_at: Sequence[int]) -> dict:
    training, data = run.request.training, run.request.data
    if not training.do_train:
        return {"training": "none in this run", "max_seq_length": data.max_seq_length}
    return {
        "learning_rate": training.learning_rate,
        "epochs": training.num_train_epochs if training.max_steps < 0 else f"{training.max_steps} steps",
        "global batch size": training.train_batch_size * training.gradient_accumulation_steps * training.world_size,
        "max_seq_length": data.max_seq_length,
        "optimizer": str(getattr(training.optim, "value", training.optim)),
        "weight_decay": training.weight_decay,
        "schedule": f"{getattr(training.lr_scheduler_type, 'value', training.lr_scheduler_type)}, "
        f"{training.warmup_steps:g} warm-up",
        "precision": "bfloat16 autocast" if training.bf16 else "float32",
        "padding": "to max_seq_length" if data.pad_to_max_length else "in parts of a batch, by length",
        "seed": training.seed,
    } | ({"resumed after steps": ", ".join(map(str, resumed_at))} if resumed_at else {})


def _environment(run: Run) -> dict:
    training = run.request.training
    versions = {library: importlib.metadata.version(library) for library in LIBRARIES}
    return {
        "device": f"{run.request.device.type}: {run.request.device.name}",
        "ranks": training.world_size,
        "python": platform.python_version(),
    } | versions
