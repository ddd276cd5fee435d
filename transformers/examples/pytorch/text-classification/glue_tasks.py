"""The GLUE tasks: their columns, labels, metrics and the format the GLUE server takes. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from central.finetuning.tables import Table, listed
from central.runtime.exits import BadRequest

CORRELATIONS = ("matthews_correlation", "pearson", "spearmanr")


def metric(name: str, predicted: np.ndarray, labels: np.ndarray) -> float:
    """One metric of predictions [N] against labels [N]; a correlation is 0 where one side is constant."""
    from scipy import stats  # both take a second to import, which the start of a training need not wait for
    from sklearn import metrics

    if name in CORRELATIONS and not (np.ptp(predicted) and np.ptp(labels)):
        return 0.0
    match name:
        case "accuracy":
            value = metrics.accuracy_score(labels, predicted)
        case "f1":  # of class 1
            value = metrics.f1_score(labels, predicted, zero_division=0)
        case "macro_f1":
            value = metrics.f1_score(labels, predicted, average="macro", zero_division=0)
        case "matthews_correlation":
            value = metrics.matthews_corrcoef(labels, predicted)
        case "pearson":
            value = stats.pearsonr(predicted, labels).statistic
        case "spearmanr":
            value = stats.spearmanr(predicted, labels).statistic
    return float(value)


@dataclass(frozen=True)
class Task:
    """One task. Columns are listed by all the names they have in GLUE's files and on the Hub, the Hub's first."""

    sentence1: tuple[str, ...]
    sentence2: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()  # in the order of their numbers; none for a regression
    label_columns: tuple[str, ...] = ("label",)
    metrics: tuple[str, ...] = ("accuracy",)
    server_uses_names: bool = False
    header: tuple[str, ...] | None = None  # of train and dev files that have no line of names
    skip_broken_rows: bool = False
    bounds: tuple[float, float] | None = None  # of the values of a regression, as the server takes them

    @property
    def is_regression(self) -> bool:
        return not self.labels


ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "cola": Task(
        sentence1=("sentence",),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews_correlation", "accuracy"),
        header=("source", "label", "mark", "sentence"),
    ),
    "sst2": Task(sentence1=("sentence",), labels=("negative", "positive")),
    "mrpc": Task(
        sentence1=("sentence1", "#1 String"),
        sentence2=("sentence2", "#2 String"),
        labels=("not_equivalent", "equivalent"),
        label_columns=("label", "Quality"),
        metrics=("accuracy", "f1"),
    ),
    "stsb": Task(
        sentence1=("sentence1",),
        sentence2=("sentence2",),
        label_columns=("label", "score"),
        metrics=("pearson", "spearmanr"),
        bounds=(0.0, 5.0),
    ),
    "qqp": Task(
        sentence1=("question1",),
        sentence2=("question2",),
        labels=("not_duplicate", "duplicate"),
        label_columns=("label", "is_duplicate"),
        metrics=("accuracy", "f1"),
        skip_broken_rows=True,  # GLUE's train.tsv has a few, which the baseline skips
    ),
    "mnli": Task(
        sentence1=("premise", "sentence1"),
        sentence2=("hypothesis", "sentence2"),
        labels=("entailment", "neutral", "contradiction"),
        label_columns=("label", "gold_label"),
        server_uses_names=True,
    ),
    "qnli": Task(sentence1=("question",), sentence2=("sentence",), labels=ENTAILMENT, server_uses_names=True),
    "rte": Task(sentence1=("sentence1",), sentence2=("sentence2",), labels=ENTAILMENT, server_uses_names=True),
    "wnli": Task(sentence1=("sentence1",), sentence2=("sentence2",), labels=("not_entailment", "entailment")),
}


def infer_task(
    table: Table, text_columns: Sequence[str], label_column: str | None, known_labels: Sequence[str] | None
) -> Task:
    """The task of a table that belongs to none of GLUE's.

    Text is in the columns named, else sentence1 and sentence2, else the first one or two that are no label. The labels
    are `known_labels`, of which a regression has none; for None they are those of the table, where numbers that are
    not all whole make a regression.
    """
    label_column = label_column or "label"
    names = [name for name in table.columns if name not in (label_column, "idx", "id", "index")]
    pair = [name for name in ("sentence1", "sentence2") if name in names]
    text = list(text_columns) or (pair if len(pair) == 2 else names[:2])
    if not text:
        raise BadRequest(f"{table.source}: no text column among {', '.join(table.columns)}: --text_column_names")
    values = [str(value).strip() for value in table.columns.get(label_column, ()) if not _is_missing(value)]
    if known_labels is None and not values:
        raise BadRequest(
            f"{table.source}: no column {label_column!r} among {', '.join(table.columns)}: --label_column_name"
        )
    if known_labels is None:
        is_regression = _are_numbers(values) and not all(float(value).is_integer() for value in values)
        known_labels = () if is_regression else _sorted_labels(values)
        if len(known_labels) == 1:
            raise BadRequest(f"{table.source}: every label is {known_labels[0]!r}: there is nothing to tell apart")
    return Task(
        sentence1=(text[0],),
        sentence2=tuple(text[1:2]),
        labels=tuple(known_labels),
        label_columns=(label_column,),
        metrics=("accuracy", "macro_f1") if known_labels else ("pearson", "spearmanr"),
        server_uses_names=True,
    )


def of_columns(task: Task, text_columns: Sequence[str], label_column: str | None) -> Task:
    """A task of GLUE on a file whose columns have other names."""
    if text_columns:
        task = replace(task, sentence1=(text_columns[0],), sentence2=tuple(text_columns[1:2]))
    return replace(task, label_columns=(label_column,)) if label_column else task


def order_in_model(labels: Sequence[str], known: Sequence[str]) -> list[int]:
    """The number that a model gives to each label: its own where it knows them by name, else that of the task."""
    names = [name.lower() for name in known]  # models on the Hub often shout theirs
    wanted = [label.lower() for label in labels]
    return [names.index(label) for label in wanted] if sorted(names) == sorted(wanted) else list(range(len(wanted)))


def _is_missing(value) -> bool:
    return value is None or value != value or str(value).strip() == ""  # a number that is none is not itself


def _are_numbers(values: Sequence[str]) -> bool:
    try:
        return all(math.isfinite(float(value)) for value in values)
    except ValueError:
        return False


def _sorted_labels(values: Sequence[str]) -> tuple[str, ...]:
    if _are_numbers(values):
        return tuple(str(number) for number in sorted({int(float(value)) for value in values}))
    return tuple(sorted(set(values)))


def find_column(table: Table, names: Sequence[str]) -> str | None:
    """The first of several possible names that a table has."""
    return next((name for name in names if name in table.columns), None)


def texts_of(table: Table, names: Sequence[str]) -> list[str]:
    """A column of text; raises BadRequest with the rows that hold none."""
    column = find_column(table, names)
    if column is None:
        raise BadRequest(
            f"{table.source}: needs a column {' or '.join(map(repr, names))}, has {', '.join(table.columns)}"
        )
    values = table.columns[column]
    bad = [table.where(row) for row, value in enumerate(values) if not isinstance(value, str)]
    if bad:
        raise BadRequest(f"no text in column {column!r}: {listed(bad)}")
    return values


def numbered_labels(table: Table, task: Task) -> np.ndarray | None:
    """Labels [N] as int64, of a regression as float32; None for a table without labels.

    A label is a name, or its number. Raises BadRequest with the rows whose label the task does not know.
    """
    column = find_column(table, task.label_columns)
    values = table.columns[column] if column else ()
    if all(_is_missing(value) or value in (-1, "-1") for value in values):
        return None
    numbers, bad = [], []
    for row, value in enumerate(values):
        number = None if _is_missing(value) else _label_number(value, task)
        if number is None:
            bad.append(f"{table.where(row)}: {value!r}")
        numbers.append(number)
    if bad:
        known = "a number" if task.is_regression else f"one of {', '.join(task.labels)}"
        if not all(label.isdecimal() for label in task.labels):
            known += ", nor the number of one"
        raise BadRequest(f"label is not {known}: {listed(bad)}")
    return np.array(numbers, np.float32 if task.is_regression else np.int64)


def _label_number(value, task: Task) -> int | float | None:
    text = str(value).strip()
    if task.is_regression:
        return float(text) if _are_numbers([text]) else None
    if text in task.labels:
        return task.labels.index(text)
    if not _are_numbers([text]) or not float(text).is_integer():
        return None
    number = int(float(text))
    if str(number) in task.labels:
        return task.labels.index(str(number))
    named = not _are_numbers(task.labels)  # the labels are names: a number is their place
    return number if named and 0 <= number < len(task.labels) else None


def scores(task: Task, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of a task for logits [N, classes] (regression: [N, 1]) against labels [N].

    A classification also gets `majority_class`: the accuracy of always answering the commonest label.
    """
    predicted = outputs.reshape(-1) if task.is_regression else outputs.argmax(axis=-1)
    result = {name: metric(name, predicted, labels) for name in task.metrics}
    if task.is_regression:
        return result
    result["majority_class"] = float(np.bincount(labels).max() / len(labels))
    return result


def server_lines(task: Task, outputs: np.ndarray) -> list[str]:
    """Predictions as the GLUE server reads them: a header, then index and prediction between tabs."""
    if task.is_regression:
        values = outputs.reshape(-1)
        predictions = [f"{value:.3f}" for value in values.clip(*task.bounds)] if task.bounds else map(str, values)
    elif task.server_uses_names:
        predictions = [task.labels[i] for i in outputs.argmax(axis=-1)]
    else:
        predictions = [str(i) for i in outputs.argmax(axis=-1)]
    return ["index\tprediction", *(f"{i}\t{prediction}" for i, prediction in enumerate(predictions))]
