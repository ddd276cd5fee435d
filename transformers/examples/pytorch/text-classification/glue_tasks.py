"""The GLUE tasks: their columns, labels, metrics and the format the GLUE server takes. Pure functions."""

import ast
import math
import re
import reprlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from central.finetuning.tables import Table, listed
from central.runtime.exits import BadRequest

# Names by which two columns are known as a pair of texts, and one as a text.
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
IDS = ("idx", "id", "index")
NAMES = {"text", "sentence", *IDS, *(name for pair in PAIRS for name in pair)}
# Numbers as programs write them: 0001, 1_10 and 1e5 are codes.
WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)(\.0*)?")
NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-][0-9]+)?")
LABELS_SHOWN = 10
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
class GlueTask:
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
    "cola": GlueTask(
        sentence1=("sentence",),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews_correlation", "accuracy"),
        header=("source", "label", "mark", "sentence"),
    ),
    "sst2": GlueTask(sentence1=("sentence",), labels=("negative", "positive")),
    "mrpc": GlueTask(
        sentence1=("sentence1", "#1 String"),
        sentence2=("sentence2", "#2 String"),
        labels=("not_equivalent", "equivalent"),
        label_columns=("label", "Quality"),
        metrics=("accuracy", "f1"),
    ),
    "stsb": GlueTask(
        sentence1=("sentence1",),
        sentence2=("sentence2",),
        label_columns=("label", "score"),
        metrics=("pearson", "spearmanr"),
        bounds=(0.0, 5.0),
    ),
    "qqp": GlueTask(
        sentence1=("question1",),
        sentence2=("question2",),
        labels=("not_duplicate", "duplicate"),
        label_columns=("label", "is_duplicate"),
        metrics=("accuracy", "f1"),
        skip_broken_rows=True,  # GLUE's train.tsv has a few, which the baseline skips
    ),
    "mnli": GlueTask(
        sentence1=("premise", "sentence1"),
        sentence2=("hypothesis", "sentence2"),
        labels=("entailment", "neutral", "contradiction"),
        label_columns=("label", "gold_label"),
        server_uses_names=True,
    ),
    "qnli": GlueTask(sentence1=("question",), sentence2=("sentence",), labels=ENTAILMENT, server_uses_names=True),
    "rte": GlueTask(sentence1=("sentence1",), sentence2=("sentence2",), labels=ENTAILMENT, server_uses_names=True),
    "wnli": GlueTask(sentence1=("sentence1",), sentence2=("sentence2",), labels=("not_entailment", "entailment")),
}


def infer_task(
    table: Table, text_columns: Sequence[str], label_column: str | None, known_labels: Sequence[str] | None
) -> GlueTask:
    """The task of a table that belongs to none of GLUE's.

    Text is in the columns named, else in a pair known by its names, else in the only column that holds any. The labels
    are `known_labels`, of which a regression has none; for None they are those of the table, where numbers that are
    not all whole make a regression. Raises BadRequest where the text could be elsewhere.
    """
    label_column = label_column or "label"
    text = tuple(text_columns) or _find_texts(table, label_column)
    refuse_several_labels(table, label_column)
    values = [_label_text(value) for value in table.columns.get(label_column, ()) if not _is_missing(value)]
    if known_labels is None and not values:
        none = "every label is missing in" if label_column in table.columns else "no"
        raise BadRequest(
            f"{table.source}: {none} column {label_column!r} among {', '.join(table.columns)}: --label_column_name"
        )
    if known_labels is None:
        is_regression = all(map(NUMBER.fullmatch, values)) and not all(map(WHOLE.fullmatch, values))
        known_labels = () if is_regression else _class_names(values)
        if len(known_labels) == 1:
            raise BadRequest(f"{table.source}: every label is {known_labels[0]!r}: there is nothing to tell apart")
    return GlueTask(
        sentence1=(text[0],),
        sentence2=text[1:],
        labels=tuple(known_labels),
        label_columns=(label_column,),
        metrics=("accuracy", "macro_f1") if known_labels else ("pearson", "spearmanr"),
        server_uses_names=True,
    )


def _find_texts(table: Table, label_column: str) -> tuple[str, ...]:
    """The columns of the text: a pair known by its names, else the only one that holds more than numbers."""
    names = [name for name in table.columns if name != label_column and name not in IDS]
    pair = next((pair for pair in PAIRS if {*pair} <= {*names}), None)
    if pair:
        return pair
    if table.first_line and label_column not in table.columns and not NAMES & {*table.columns}:
        raise BadRequest(
            f"{table.source}, line 1: {', '.join(map(repr, table.columns))}: names of columns, or a row? Name the "
            "column of the text with --text_column_names; a file of one column may be without a line of names then"
        )
    texts = [name for name in names if any(map(_is_text, table.columns[name]))]
    texts = texts or [name for name in names if isinstance(table.columns[name][0], str) and "Unnamed" not in name]
    if not texts:
        raise BadRequest(f"{table.source}: no text column among {', '.join(table.columns)}: --text_column_names")
    if len(texts) > 1:
        raise BadRequest(
            f"{table.source}: {' and '.join(map(repr, texts))} could be the text: name one column, or the two of a "
            f"pair, such as --text_column_names {texts[0]} or --text_column_names {','.join(texts[:2])}"
        )
    return (texts[0],)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not NUMBER.fullmatch(value.strip())


def of_columns(task: GlueTask, text_columns: Sequence[str], label_column: str | None) -> GlueTask:
    """A task of GLUE on a file whose columns have other names."""
    if text_columns:
        task = replace(task, sentence1=(text_columns[0],), sentence2=tuple(text_columns[1:]))
    return replace(task, label_columns=(label_column,)) if label_column else task


def with_every_line(table: Table, task: GlueTask) -> Table:
    """A test table of one column, its first line a row where that is no name of the column.

    Raises BadRequest where it could be either.
    """
    if task.sentence2 or not table.first_line or len(table.columns) > 1 or find_column(table, task.sentence1):
        return table
    first = table.first_line[0].strip()
    if len(first.split()) < 2:
        raise BadRequest(
            f"{table.source}, line 1: {first!r}: a text, or the name of the column, which is {task.sentence1[0]!r} in "
            "this run? Put a line with that name before the texts"
        )
    return table.without_header(task.sentence1[0])


def columns_taken(table: Table, task: GlueTask) -> str:
    """What was taken as text and label, and what was not used: a line for the user.

    Raises BadRequest for a table without the columns of the text, naming those that could be meant.
    """
    label = find_column(table, task.label_columns)
    wanted = [names for names in (task.sentence1, task.sentence2) if names]
    likely = [name for name in table.columns if name not in (label, *IDS) and any(map(_is_text, table.columns[name]))]
    named = ",".join(likely if len(likely) == len(wanted) else ["NAME"] * len(wanted))
    texts = [_text_column(table, names, named) for names in wanted]
    shown = ", ".join(task.labels[:LABELS_SHOWN]) or "numbers: a regression"
    shown += f" and {len(task.labels) - LABELS_SHOWN} more" if len(task.labels) > LABELS_SHOWN else ""
    parts = [f"text from {' and '.join(map(repr, texts))}"]
    parts += [f"labels from {label!r} ({shown})"] if label else ["no labels"]
    others = [name for name in table.columns if name not in (*texts, label)]
    parts += [f"not used: {', '.join(map(repr, others))}"] if others else []
    return f"{table.source}: {'; '.join(parts)}"


def order_in_model(labels: Sequence[str], known: Sequence[str]) -> list[int]:
    """The number that a model gives to each label: its own where it knows them by name, else that of the task."""
    return _places(labels, known) or list(range(len(labels)))


def _places(labels: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """The place of each label among the names that a model knows, None where these are others."""
    for spelled in (str, str.lower):  # models on the Hub often shout theirs
        wanted, names = ([spelled(name) for name in each] for each in (labels, known))
        if len({*wanted}) == len(wanted) and sorted(names) == sorted(wanted):
            return [names.index(label) for label in wanted]
    return None


def order_taken(labels: Sequence[str], known: Sequence[str]) -> str | None:
    """A line on a model whose names of labels are others, as many; None where there is nothing to say."""
    if not labels or len(known) != len(labels) or _places(labels, known):
        return None
    pairs = ", ".join(f"{theirs} = {ours}" for theirs, ours in zip(known, labels))
    return f"the model's names of labels are not those of the data: taken in their order, {pairs}"


def _is_missing(value: object) -> bool:
    """Whether a cell holds no label: nothing, or a number that is none (nan, inf, 1e400)."""
    text = "" if value is None else str(value).strip()
    try:
        return not text or not math.isfinite(float(text))
    except ValueError:
        return False


def _label_text(value: object) -> str:
    """A label as text; 1.0 of a column of floats is the whole number that it was before a row lacked one."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _class_names(values: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels, sorted, each as it is written; 1 and 1.0 are one number."""
    spellings = defaultdict(set)
    for text in set(values):
        spellings[int(float(text)) if WHOLE.fullmatch(text) else text].add(text)
    names = {key: min(texts, key=lambda text: (len(text), text)) for key, texts in spellings.items()}
    numbers = all(isinstance(key, int) for key in names)
    return tuple(names[key] for key in sorted(names)) if numbers else tuple(sorted(names.values()))


def refuse_several_labels(table: Table, column: str | None) -> None:
    """Raise BadRequest for rows whose label is a list, or the text of one."""
    lists: dict[str, bool] = {}
    bad = []
    for row, value in enumerate(table.columns.get(column or "", ())):
        if isinstance(value, str):
            is_list = lists.setdefault(value, _reads_as_list(value))
        else:
            is_list = isinstance(value, (list, tuple, dict))
        if is_list:
            bad.append(f"{table.where(row)}: {reprlib.repr(value)}")
    if bad:
        raise BadRequest(f"column {column!r}: a row has one label here, not a list of them: {listed(bad)}")


def _reads_as_list(text: str) -> bool:
    """Whether a text is that of a list, as pandas writes one into a CSV."""
    if text.strip()[:1] not in ("[", "{", "("):
        return False
    try:
        return isinstance(ast.literal_eval(text.strip()), (list, tuple, set, dict))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def find_column(table: Table, names: Sequence[str]) -> str | None:
    """The first of several possible names that a table has."""
    return next((name for name in names if name in table.columns), None)


def _text_column(table: Table, names: Sequence[str], instead: str) -> str:
    column = find_column(table, names)
    if column is None:
        raise BadRequest(
            f"{table.source}: needs a column {' or '.join(map(repr, names))}, has {', '.join(table.columns)}: "
            f"--text_column_names {instead} (after a bare -- with demo_bert.py)"
        )
    return column


def texts_of(table: Table, names: Sequence[str]) -> list[str]:
    """A column of text; raises BadRequest with the rows that hold none, and where all texts are empty."""
    column = _text_column(table, names, "NAME")
    values = table.columns[column]
    bad = [table.where(row) for row, value in enumerate(values) if not isinstance(value, str)]
    if bad:
        raise BadRequest(f"no text in column {column!r}: {listed(bad)}")
    if not any(value.strip() for value in values):
        raise BadRequest(f"{table.source}: every text in column {column!r} is empty")
    return values


def numbered_labels(table: Table, task: GlueTask) -> np.ndarray | None:
    """Labels [N] as int64, of a regression as float32; None for a table without labels.

    A label is a name, or its number. Raises BadRequest with the rows whose label the task does not know.
    """
    column = find_column(table, task.label_columns)
    values = table.columns[column] if column else ()
    hidden = () if "-1" in task.labels else (-1, "-1")
    if all(_is_missing(value) or value in hidden for value in values):
        return None
    refuse_several_labels(table, column)
    numbers, bad = [], []
    for row, value in enumerate(values):
        number = None if _is_missing(value) else _label_number(_label_text(value), task)
        if number is None:
            bad.append(f"{table.where(row)}: {reprlib.repr(value)}")
        numbers.append(number)
    if bad:
        known = "a number" if task.is_regression else f"one of {', '.join(task.labels)}"
        if _are_names(task.labels):
            known += ", nor the number of one"
        raise BadRequest(f"label is not {known}: {listed(bad)}")
    return np.array(numbers, np.float32 if task.is_regression else np.int64)


def _are_names(labels: Sequence[str]) -> bool:
    """Whether no label can be taken for a number, so that a number is the place of one."""
    return bool(labels) and all(any(map(str.isalpha, label)) for label in labels)


def _label_number(text: str, task: GlueTask) -> int | float | None:
    if task.is_regression:
        number = float(text) if NUMBER.fullmatch(text) else math.inf
        return number if abs(number) <= float(np.finfo(np.float32).max) else None
    if text in task.labels:
        return task.labels.index(text)
    if not WHOLE.fullmatch(text):
        return None
    number = int(float(text))
    equal = [i for i, label in enumerate(task.labels) if WHOLE.fullmatch(label) and int(float(label)) == number]
    if equal:
        return equal[0]
    return number if _are_names(task.labels) and 0 <= number < len(task.labels) else None


def taken_by_number(table: Table, task: GlueTask) -> str | None:
    """A line on labels that are numbers where the task's are names; None where there are none."""
    column = find_column(table, task.label_columns)
    texts = {_label_text(value) for value in table.columns.get(column or "", ()) if not _is_missing(value)}
    numbers = [text for text in sorted(texts) if text not in task.labels and WHOLE.fullmatch(text)]
    if task.is_regression or not numbers:
        return None
    pairs = (f"{text} = {task.labels[int(_label_number(text, task) or 0)]}" for text in numbers)
    return f"{table.source}: labels are numbers, taken as places: {', '.join(pairs)}"


def scores(task: GlueTask, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of a task for logits [N, classes] (regression: [N, 1]) against labels [N].

    A classification also gets `majority_class`: the accuracy of always answering the commonest label.
    """
    predicted = outputs.reshape(-1) if task.is_regression else outputs.argmax(axis=-1)
    result = {name: metric(name, predicted, labels) for name in task.metrics}
    if task.is_regression:
        return result
    result["majority_class"] = float(np.bincount(labels).max() / len(labels))
    return result


def server_lines(task: GlueTask, outputs: np.ndarray) -> list[str]:
    """Predictions as the GLUE server reads them: a header, then index and prediction between tabs."""
    if task.is_regression:
        values = outputs.reshape(-1)
        predictions = [f"{value:.3f}" for value in values.clip(*task.bounds)] if task.bounds else map(str, values)
    elif task.server_uses_names:
        predictions = [task.labels[i] for i in outputs.argmax(axis=-1)]
    else:
        predictions = [str(i) for i in outputs.argmax(axis=-1)]
    return ["index\tprediction", *(f"{i}\t{prediction}" for i, prediction in enumerate(predictions))]


def prediction_rows(task: GlueTask, outputs: np.ndarray) -> list[dict]:
    """Predictions by name: for each row its index, label and the probability of every label, or its value."""
    if task.is_regression:
        return [{"index": i, "value": float(value)} for i, value in enumerate(outputs.reshape(-1))]
    weights = np.exp(outputs.astype(np.float64) - outputs.max(axis=-1, keepdims=True))
    return [
        {"index": i, "label": task.labels[row.argmax()], "probabilities": dict(zip(task.labels, row.tolist()))}
        for i, row in enumerate(weights / weights.sum(axis=-1, keepdims=True))
    ]
