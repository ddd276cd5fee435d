"""The task of run_glue.py: labels or values of single sentences or pairs, GLUE's or any."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import glue_tasks
import numpy as np
from glue_tasks import TASKS, GlueTask
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from central.finetuning import pretrained
from central.finetuning.arguments import DataArguments
from central.finetuning.features import Features, Ragged, cut_to_fit
from central.finetuning.tables import Table
from central.finetuning.task import Results, Run, Task, has_label_names, label_settings
from central.runtime.exits import BadRequest

SAMPLE = 200  # texts looked at to see whether tokenizer and text belong together
USAGE = """
from transformers import pipeline

classify = pipeline("text-classification", model={folder!r})
print(classify({example}))  # the likeliest label and its probability
"""
VALUE_USAGE = """
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder!r})
model = AutoModelForSequenceClassification.from_pretrained({folder!r})
with torch.no_grad():
    print(model(**tokenizer({example}, return_tensors="pt")).logits.item())
"""


@dataclass
class ClassificationArguments(DataArguments):
    task_name: str | None = field(default=None, metadata={"help": f"one of {' '.join(TASKS)}"})
    text_column_names: str | None = field(default=None, metadata={"help": "one or two columns, between commas"})
    label_column_name: str | None = field(default=None, metadata={"help": "column of the labels"})


class TextClassification(Task):
    """`kind` is the GLUE task or one like it, which numbers `labels`; `order` has the model's numbers of them."""

    arguments = ClassificationArguments
    data: ClassificationArguments
    auto_class = AutoModelForSequenceClassification
    pipeline = "text-classification"

    def __init__(self, run: Run, model_name: str):
        super().__init__(run, model_name)
        complete_names(self.data)
        self.name = self.data.task_name or self.pipeline
        kind = TASKS.get(self.data.task_name or "")
        header = kind.header if kind else None
        tables = run.load_tables(
            headers={"train": header, "validation": header}, skip_broken_rows=bool(kind and kind.skip_broken_rows)
        )
        for table in tables.values():
            if table.skipped:
                run.say(f"{table.source}: {table.skipped} broken rows skipped")
        known = run.labels_of_model(model_name)
        self.kind = self._kind(kind, next(iter(tables.values())), known)
        self.has_pairs = bool(self.kind.sentence2)
        limits = self.data.limits
        self.tables = {
            split: self._whole(split, table).head(limits[split.removesuffix("_mismatched")])
            for split, table in tables.items()
        }
        self.labels = self._labels()
        has_names, trains = has_label_names(known), run.request.training.do_train
        notes = [glue_tasks.order_taken(self.kind.labels, known)] if has_names or not trains else []
        if self.data.task_name is None:
            labelled = [table for split, table in self.tables.items() if self.labels[split] is not None]
            notes += [glue_tasks.taken_by_number(table, self.kind) for table in labelled]
        for note in filter(None, notes):
            run.say(note)
        self.order = np.array(glue_tasks.order_in_model(self.kind.labels, known), np.int64)

    def _kind(self, kind: GlueTask | None, table: Table, known: tuple[str, ...]) -> GlueTask:
        """The GLUE task on columns of other names, or the one that a table is of."""
        names = self.data.text_column_names
        columns = [name.strip() for name in names.split(",")] if names else []
        if len(columns) > 2:
            raise BadRequest(f"--text_column_names {names}: one column, or the two of a pair")
        if kind is not None:
            return glue_tasks.of_columns(kind, columns, self.data.label_column_name)
        labels = None if self.run.request.training.do_train else known
        return glue_tasks.infer_task(table, columns, self.data.label_column_name, labels)

    def _whole(self, split: str, table: Table) -> Table:
        """A table with every line of its file; says which columns were taken."""
        found = glue_tasks.with_every_line(table, self.kind) if split.startswith("test") else table
        if found is not table:
            self.run.say(f"{table.source}: has no line of column names: its first line is the first text")
        self.run.say(glue_tasks.columns_taken(found, self.kind))
        return found

    def _labels(self) -> dict[str, np.ndarray | None]:
        """The labels of each split, which only a test split may lack."""
        labels = {split: glue_tasks.numbered_labels(table, self.kind) for split, table in self.tables.items()}
        missing = [
            f"{table.source}: has no labels (column {' or '.join(self.kind.label_columns)})"
            for split, table in self.tables.items()
            if labels[split] is None and not split.startswith("test")
        ]
        if missing:
            raise BadRequest(missing)
        train = labels.get("train")
        if train is not None and len(set(train.tolist())) == 1:
            source = self.tables["train"].source
            self.run.say(f"warning: {source}: all training labels are the same: there is nothing to learn")
        return labels

    @property
    def score_names(self) -> tuple[str, ...]:
        return self.kind.metrics

    def config(self) -> dict[str, Any]:
        if self.kind.is_regression:
            return {"num_labels": 1, "problem_type": "regression"}
        labels = [self.kind.labels[i] for i in np.argsort(self.order)]
        return {"problem_type": "single_label_classification", **label_settings(labels)}

    def features(self, split: str, tokenizer: PreTrainedTokenizerBase) -> Features:
        table, columns = self.tables[split], [names for names in (self.kind.sentence1, self.kind.sentence2) if names]
        texts = [glue_tasks.texts_of(table, names) for names in columns]
        empty = sum(not any(part.strip() for part in row) for row in zip(*texts))
        if empty:
            self.run.say(f"{table.source}: {empty} of {len(table)} texts are empty")
        max_length = self.data.max_seq_length
        for column in texts:
            pretrained.check_text(tokenizer, column[:SAMPLE], table.where, self.data.max_unknown_share, self.run.say)

        def make() -> Features:
            fitting = cut_to_fit(tokenizer, texts, max_length)
            encoded = tokenizer(*fitting, truncation=True, max_length=max_length, return_attention_mask=False)
            return Features({name: Ragged.of(rows) for name, rows in encoded.items()})

        names = [glue_tasks.find_column(table, names) for names in (self.kind.sentence1, self.kind.sentence2)]
        features = self.run.tokenised(table, tokenizer, make, columns=names, max_length=max_length)
        labels = self.labels[split]
        if labels is not None:
            features.inputs["labels"] = labels if self.kind.is_regression else self.order[labels]
        return features

    def results(self, split: str, features: Features, outputs: np.ndarray, targets: np.ndarray | None) -> Results:
        """Metrics of the task; of a test split the file of the GLUE server, and .jsonl with names and probabilities."""
        kind, files = self.kind, dict[str, Any]()
        scores: dict[str, float] = {}
        if not kind.is_regression:
            outputs = outputs[:, self.order]
            targets = None if targets is None else np.argsort(self.order)[targets]
        if targets is not None:
            scores = glue_tasks.scores(kind, outputs, targets)
        if split.startswith("test"):
            file = f"predict_results_{self.name}{'-mm' if split.endswith('mismatched') else ''}"
            files[f"{file}.txt"] = glue_tasks.server_lines(kind, outputs)
            files[f"{file}.jsonl"] = glue_tasks.prediction_rows(kind, outputs)
        return Results(scores, files)

    def warning(self, scores: Mapping[str, float]) -> str | None:
        if "eval_majority_class" not in scores or scores["eval_accuracy"] != scores["eval_majority_class"]:
            return None
        return (
            f"accuracy {scores['eval_accuracy']:.4f} is that of always answering the commonest label: the "
            "model has learned nothing yet. Likely causes: too few steps, a --learning_rate too high (try 2e-5) or "
            "too low, a model that is not pretrained, or labels that do not belong to the texts"
        )

    def usage(self, folder: str) -> str:
        code, first, second = (VALUE_USAGE if self.kind.is_regression else USAGE), "The first text.", "The second one."
        if not self.has_pairs:
            return code.format(folder=folder, example=repr(first))
        if self.kind.is_regression:
            return code.format(folder=folder, example=f"{first!r}, {second!r}")
        return code.format(folder=folder, example=f'{{"text": {first!r}, "text_pair": {second!r}}}')


def complete_names(data: ClassificationArguments) -> None:
    """The names of task and data set, given in any spelling, and one by the other. Raises BadRequest."""
    data.task_name = _plain(data.task_name)
    if data.task_name not in (None, *TASKS):
        raise BadRequest(f"--task_name {data.task_name}: unknown, the tasks are {' '.join(TASKS)}")
    name = _plain(data.dataset_name or data.task_name)
    if name in (*TASKS, "glue"):  # the reference names MRPC as task and as data set
        data.task_name = data.task_name or (name if name in TASKS else _plain(data.dataset_config_name))
        data.dataset_name, data.dataset_config_name = "glue", data.task_name


def _plain(name: str | None) -> str | None:
    return name.lower().replace("-", "") if name else None
