"""Fine-tune and evaluate a model on a GLUE task, or on any single sentences or pairs with labels.

python run_glue.py --model_name_or_path base --task_name mrpc --do_train --do_eval --output_dir out/mrpc
python run_glue.py --model_name_or_path FOLDER --train_file train.tsv --validation_file dev.tsv --task_name mrpc ...
mpirun -n 2 python run_glue.py ...
"""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parents[4]),
    str(Path(__file__).resolve().parent),
]  # python -P leaves the second out
from central.runtime import environment, rank

environment.apply_or_exit()  # before torch is imported
rank.export(rank.from_environment())  # before transformers looks for other ranks

import glue_tasks
import numpy as np
from glue_tasks import TASKS, Task
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalPrediction

from central.finetuning import pretrained, script
from central.finetuning.arguments import DataArguments, Request, parse
from central.finetuning.features import Features, Ragged, cut_to_fit, room_for_text
from central.finetuning.model_card import write_model_card
from central.finetuning.script import Run
from central.finetuning.tables import Table, load_splits
from central.finetuning.trainer import FineTuningTrainer
from central.runtime.exits import DONE, BadRequest, run

SAMPLE = 200  # texts looked at to see whether tokenizer and text belong together


@dataclass
class GlueArguments(DataArguments):
    task_name: str | None = field(default=None, metadata={"help": f"one of {' '.join(TASKS)}"})
    max_seq_length: int = field(default=128, metadata={"help": "longer texts are cut"})
    text_column_names: str | None = field(default=None, metadata={"help": "one or two columns, between commas"})
    label_column_name: str | None = field(default=None, metadata={"help": "column of the labels"})


@dataclass(frozen=True)
class Data:
    """The tables of a run, and their task."""

    name: str  # of the task, or "text-classification"
    task: Task
    tables: dict[str, Table]
    labels: dict[str, np.ndarray | None]  # numbered as the task does
    order: np.ndarray  # the number that the model gives to each of the task's labels

    def of_task(self, logits: np.ndarray) -> np.ndarray:
        """Logits [N, classes] in the order of the task's labels."""
        return logits if self.task.is_regression else logits[:, self.order]

    def scores(self, found: EvalPrediction) -> dict[str, float]:
        """Metrics of the task; the trainer has logits and labels in the model's order."""
        labels = found.label_ids if self.task.is_regression else np.argsort(self.order)[found.label_ids]
        return glue_tasks.scores(self.task, self.of_task(found.predictions), labels)


def parse_args(argv: list[str]) -> Request:
    """The command line, with the names of task and data set in any spelling."""
    request = parse(argv, GlueArguments, rank.from_environment())
    data = request.data
    data.task_name = _plain(data.task_name)
    if data.task_name not in (None, *TASKS):
        raise BadRequest(f"--task_name {data.task_name}: unknown, the tasks are {' '.join(TASKS)}")
    name = _plain(data.dataset_name or data.task_name)
    if name in (*TASKS, "glue"):  # the reference names MRPC as task and as data set
        data.task_name = data.task_name or (name if name in TASKS else _plain(data.dataset_config_name))
        data.dataset_name, data.dataset_config_name = "glue", data.task_name
    return request


def _plain(name: str | None) -> str | None:
    return name.lower().replace("-", "") if name else None


def load_data(this: Run, model_name: str) -> Data:
    """The tables of the splits this run needs, and their labels as numbers."""
    data, training = this.request.data, this.request.training
    task = TASKS.get(data.task_name)
    header = task.header if task else None
    tables = load_splits(
        files=data.files,
        dataset_name=data.dataset_name,
        config_name=data.dataset_config_name,
        wanted=[
            *["train"] * training.do_train,
            *["validation", "validation_mismatched"] * training.do_eval,
            *["test", "test_mismatched"] * training.do_predict,
        ],
        cache_dir=this.request.model.cache_dir,
        headers={"train": header, "validation": header},
        skip_broken_rows=bool(task and task.skip_broken_rows),
    )
    for table in tables.values():
        if table.skipped:
            this.say(f"{table.source}: {table.skipped} broken rows skipped")
    columns = [name.strip() for name in data.text_column_names.split(",")] if data.text_column_names else []
    if len(columns) > 2:
        raise BadRequest(f"--text_column_names {data.text_column_names}: one column, or the two of a pair")
    known = _labels_of_model(this, model_name)
    if task is None:
        labels = None if training.do_train else known
        task = glue_tasks.infer_task(next(iter(tables.values())), columns, data.label_column_name, labels)
    else:
        task = glue_tasks.of_columns(task, columns, data.label_column_name)
    for split in tables:
        if split.startswith("test"):
            before, tables[split] = tables[split], glue_tasks.with_every_line(tables[split], task)
            if tables[split] is not before:
                this.say(f"{before.source}: has no line of column names: its first line is the first text")
        this.say(glue_tasks.columns_taken(tables[split], task))
    tables = {split: table.head(data.limits[split.removesuffix("_mismatched")]) for split, table in tables.items()}
    labels = {split: glue_tasks.numbered_labels(table, task) for split, table in tables.items()}
    missing = [tables[split].source for split in labels if labels[split] is None and not split.startswith("test")]
    if missing:
        raise BadRequest([f"{source}: has no labels (column {' or '.join(task.label_columns)})" for source in missing])
    if training.do_train and len(set(labels["train"].tolist())) == 1:
        this.say(f"warning: {tables['train'].source}: all training labels are the same: there is nothing to learn")
    has_names = not all(re.fullmatch(r"LABEL_\d+", name) for name in known)
    notes = [glue_tasks.order_taken(task.labels, known)] if has_names or not training.do_train else []
    if data.task_name is None:
        notes += [glue_tasks.taken_by_number(tables[split], task) for split in tables if labels[split] is not None]
    for note in filter(None, notes):
        this.say(note)
    order = np.array(glue_tasks.order_in_model(task.labels, known), np.int64)
    return Data(data.task_name or "text-classification", task, tables, labels, order)


def _labels_of_model(this: Run, name: str) -> tuple[str, ...]:
    """Label names in the order of a model's outputs, LABEL_0 and so on where it has no others; of a regression none."""
    config = pretrained.load_config(this.request.model, name)
    if config.problem_type == "regression" or config.num_labels == 1:
        return ()
    return tuple(str(config.id2label[i]) for i in range(config.num_labels))


def build_model(this: Run, data: Data, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model with a head of one output per label, and its tokenizer."""
    args, labels = this.request.model, [data.task.labels[i] for i in np.argsort(data.order)]
    config = pretrained.load_config(
        args,
        name,
        this.request.data.max_seq_length,
        num_labels=len(labels) or 1,
        problem_type="regression" if data.task.is_regression else "single_label_classification",
        **(
            {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
            if labels
            else {}
        ),
    )
    tokenizer = pretrained.load_tokenizer(args, name, this.say)
    for line in room_for_text(tokenizer, this.request.data.max_seq_length, is_pair=bool(data.task.sentence2)):
        this.say(line)
    model = pretrained.load_model(AutoModelForSequenceClassification, args, name, config, tokenizer, this.say)
    return model, tokenizer


def tokenise(this: Run, data: Data, split: str, tokenizer: PreTrainedTokenizerBase) -> Features:
    """Token ids of one split, with its labels."""
    table, task = data.tables[split], data.task
    texts = [glue_tasks.texts_of(table, names) for names in (task.sentence1, task.sentence2) if names]
    empty = sum(not any(part.strip() for part in row) for row in zip(*texts))
    if empty:
        this.say(f"{table.source}: {empty} of {len(table)} texts are empty")
    max_length, share = this.request.data.max_seq_length, this.request.data.max_unknown_share
    for column in texts:
        pretrained.check_text(tokenizer, column[:SAMPLE], table.where, share, this.say)

    def make() -> Features:
        fitting = cut_to_fit(tokenizer, texts, max_length)
        encoded = tokenizer(*fitting, truncation=True, max_length=max_length, return_attention_mask=False)
        return Features({name: Ragged.of(rows) for name, rows in encoded.items()})

    columns = [glue_tasks.find_column(table, names) for names in (task.sentence1, task.sentence2)]
    features = script.tokenised(this, table, tokenizer, make, columns=columns, max_length=max_length)
    if data.labels[split] is not None:
        labels = data.labels[split]
        features.inputs["labels"] = labels if data.task.is_regression else data.order[labels]
    return features


def evaluate(this: Run, data: Data, trainer: FineTuningTrainer, features: dict[str, Features]) -> dict[str, float]:
    """Scores of the validation split, and of MNLI's second one."""
    metrics = {}
    for split in ("validation", "validation_mismatched"):
        if split in features:
            metrics |= _named({**trainer.evaluate(features[split]), "eval_samples": len(features[split])}, split)
    script.report(trainer, "eval", metrics)
    if "eval_majority_class" in metrics and metrics["eval_accuracy"] == metrics["eval_majority_class"]:
        this.say(
            f"warning: accuracy {metrics['eval_accuracy']:.4f} is that of always answering the commonest label: the "
            "model has learned nothing yet. Likely causes: too few steps, a --learning_rate too high (try 2e-5) or "
            "too low, a model that is not pretrained, or labels that do not belong to the texts"
        )
    return metrics


def predict(this: Run, data: Data, trainer: FineTuningTrainer, features: dict[str, Features]) -> None:
    """Write `predict_results_<task>.txt` in the format of the GLUE server, and .jsonl with names and probabilities."""
    metrics = {}
    for split in ("test", "test_mismatched"):
        if split in features:
            output = trainer.predict(features[split], metric_key_prefix="predict")
            metrics |= _named({**output.metrics, "predict_samples": len(features[split])}, split)
            name = f"{data.name}-mm" if split.endswith("mismatched") else data.name
            lines = glue_tasks.server_lines(data.task, data.of_task(output.predictions))
            if trainer.is_world_process_zero():
                (this.output_dir / f"predict_results_{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
                rows = glue_tasks.prediction_rows(data.task, data.of_task(output.predictions))
                script.write_json_lines(this.output_dir / f"predict_results_{name}.jsonl", rows)
    script.report(trainer, "predict", metrics)


def _named(metrics: dict[str, float], split: str) -> dict[str, float]:
    """The metrics of a split; those of MNLI's mismatched ones end in `_mm`."""
    return {f"{name}_mm": value for name, value in metrics.items()} if split.endswith("mismatched") else metrics


def main(argv: list[str]) -> int:
    request = parse_args(argv)
    this = script.begin(request)
    model_name = pretrained.locate(request.model.model_name_or_path)
    data = load_data(this, model_name)
    model, tokenizer = build_model(this, data, model_name)
    features = {split: tokenise(this, data, split, tokenizer) for split in data.tables}
    script.check_resume(this, features.get("train"))
    this.make_output_dir()
    trainer = FineTuningTrainer(
        model=model,
        args=request.training,
        processing_class=tokenizer,
        train_dataset=features.get("train"),
        eval_dataset=features.get("validation"),
        compute_metrics=data.scores,
        flags=request.flags,
        pad_to_max_length=request.data.pad_to_max_length,
        max_seq_length=request.data.max_seq_length,
        stop=this.stop,
    )
    metrics = {}
    if request.training.do_train:
        metrics |= script.train(this, trainer)
    if request.training.do_eval:
        metrics |= evaluate(this, data, trainer, features)
    if request.training.do_predict:
        predict(this, data, trainer, features)
    if trainer.is_world_process_zero():
        write_model_card(this, data.name, data.tables, model, metrics, trainer.record.began_at[1:])
    trainer.end()
    return DONE


if __name__ == "__main__":
    sys.exit(run(main))
