"""GLUE's tasks: metrics against their definitions, labels of every kind, the server's format."""

import math
from dataclasses import replace

import glue_tasks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from central.finetuning.tables import Table
from central.runtime.exits import BadRequest

LABELS = arrays.arrays(np.int64, 30, elements=st.integers(0, 1))
CLASSES = arrays.arrays(np.int64, 30, elements=st.integers(0, 3))
SCORES = arrays.arrays(np.float64, 30, elements=st.integers(0, 12).map(lambda n: n / 3))


def found(name, predicted, labels):
    """The metric of the scripts; the plain definitions below are what it is compared with."""
    return glue_tasks.metric(name, np.array(predicted), np.array(labels))


def f1_of(chosen, predicted, labels):
    hits = sum(p == t == chosen for p, t in zip(predicted, labels))
    return 2 * hits / max(1, sum(p == chosen for p in predicted) + sum(t == chosen for t in labels))


def correlation_of(x, y):
    x, y = x - np.mean(x, axis=0), y - np.mean(y, axis=0)
    return (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())


def ranks_of(values):
    """1 + how many are smaller + half of the others that are equal."""
    return np.array([1 + sum(v < w for v in values) + (sum(v == w for v in values) - 1) / 2 for w in values])


@settings(max_examples=80, deadline=None)
@given(LABELS, LABELS)
def test_two_classes(predicted, labels):
    assert found("accuracy", predicted, labels) == pytest.approx(sum(predicted == labels) / len(labels))
    assert found("f1", predicted, labels) == pytest.approx(f1_of(1, predicted, labels))
    if np.ptp(predicted) and np.ptp(labels):  # of two classes Matthews's is Pearson's
        assert found("matthews_correlation", predicted, labels) == pytest.approx(correlation_of(predicted, labels))
    else:
        assert found("matthews_correlation", predicted, labels) == 0


@settings(max_examples=80, deadline=None)
@given(CLASSES, CLASSES)
def test_more_classes(predicted, labels):
    classes = sorted({*predicted.tolist(), *labels.tolist()})
    expected = sum(f1_of(each, predicted, labels) for each in classes) / len(classes)
    assert found("macro_f1", predicted, labels) == pytest.approx(expected)
    if np.ptp(predicted) and np.ptp(labels):  # Matthews's for any number of classes (Gorodkin 2004)
        one_hot = [(side[:, None] == np.arange(4)).astype(float) for side in (predicted, labels)]
        expected = correlation_of(*one_hot)
        assert found("matthews_correlation", predicted, labels) == pytest.approx(expected, abs=1e-12)
    else:
        assert found("matthews_correlation", predicted, labels) == 0


@settings(max_examples=80, deadline=None)
@given(SCORES, SCORES)
def test_correlations(predicted, labels):
    if np.ptp(predicted) and np.ptp(labels):
        assert found("pearson", predicted, labels) == pytest.approx(correlation_of(predicted, labels), abs=1e-9)
        expected = correlation_of(ranks_of(predicted), ranks_of(labels))
        assert found("spearmanr", predicted, labels) == pytest.approx(expected, abs=1e-9)
    else:
        assert found("pearson", predicted, labels) == found("spearmanr", predicted, labels) == 0


def test_metrics_worked_by_hand():
    predicted, labels = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]  # 2 hits, 1 false alarm, 1 miss, 1 right refusal
    assert found("accuracy", predicted, labels) == pytest.approx(3 / 5)
    assert found("f1", predicted, labels) == pytest.approx(4 / 6)
    assert found("matthews_correlation", predicted, labels) == pytest.approx((2 * 1 - 1 * 1) / 6)
    assert found("spearmanr", [1.0, 10.0, 100.0], [1.0, 2.0, 3.0]) == pytest.approx(1)


def test_scores_tell_the_majority_class():
    logits = np.array([[0, 1], [0, 1], [0, 1], [1, 0]], np.float32)
    found = glue_tasks.scores(glue_tasks.TASKS["mrpc"], logits, np.array([1, 1, 1, 0]))
    assert found == {"accuracy": 1.0, "f1": 1.0, "majority_class": 0.75}
    found = glue_tasks.scores(glue_tasks.TASKS["stsb"], np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 2.0, 3.0]))
    assert found["spearmanr"] == 1 and "majority_class" not in found


def table(**columns):
    return Table({name.replace("__", " "): list(values) for name, values in columns.items()}, "f.tsv", "0" * 64)


@pytest.mark.parametrize(
    ("task", "values", "numbers"),
    [
        ("mrpc", ["1", "0"], [1, 0]),
        ("mrpc", [1, 0], [1, 0]),
        ("mrpc", ["equivalent", "not_equivalent"], [1, 0]),
        ("rte", ["not_entailment", "entailment"], [1, 0]),
        ("mnli", ["contradiction", 1], [2, 1]),
        ("qnli", ["entailment", "not_entailment", 1], [0, 1, 1]),
        ("wnli", ["0", "entailment"], [0, 1]),
        ("cola", ["0", 1, "acceptable"], [0, 1, 1]),
        ("sst2", ["1", "negative"], [1, 0]),
        ("stsb", ["3.5", 2], [3.5, 2.0]),
    ],
)
def test_labels_are_names_or_numbers(task, values, numbers):
    assert glue_tasks.numbered_labels(table(label=values), glue_tasks.TASKS[task]).tolist() == numbers


def test_labels_of_glue_columns_and_of_none():
    assert glue_tasks.numbered_labels(table(Quality=["1"]), glue_tasks.TASKS["mrpc"]).tolist() == [1]
    for unlabelled in (table(label=[-1, -1]), table(label=[None]), table(text=["x"])):
        assert glue_tasks.numbered_labels(unlabelled, glue_tasks.TASKS["mrpc"]) is None


@pytest.mark.parametrize(
    ("task", "values"), [("mrpc", ["1", "2"]), ("mrpc", ["1", "maybe"]), ("mrpc", ["1", ""]), ("stsb", ["1", "high"])]
)
def test_an_unknown_label_is_named_with_file_and_row(task, values):
    with pytest.raises(BadRequest, match="f.tsv, row 2: "):
        glue_tasks.numbered_labels(table(label=values), glue_tasks.TASKS[task])


def test_the_task_of_other_data_is_read_off_it():
    task = glue_tasks.infer_task(table(idx=[1, 2], body=["x", "y"], label=["b", "a"]), (), None, None)
    assert (task.sentence1, task.sentence2, task.labels) == (("body",), (), ("a", "b"))
    task = glue_tasks.infer_task(table(label=["10", "9"], sentence2=["x"] * 2, sentence1=["y"] * 2), (), None, None)
    assert (task.sentence1, task.sentence2, task.labels) == (("sentence1",), ("sentence2",), ("9", "10"))
    assert glue_tasks.infer_task(table(text=["x"], grade=["0.5"]), ["text"], "grade", None).is_regression
    with pytest.raises(BadRequest, match="no column 'label'"):
        glue_tasks.infer_task(table(text=["x"]), (), None, None)


def test_labels_around_blanks_and_labels_that_are_none():
    padded = table(text=list("abcd"), label=["pos ", " neg", "neg", "pos"])
    task = glue_tasks.infer_task(padded, (), None, None)
    assert task.labels == ("neg", "pos")
    assert glue_tasks.numbered_labels(padded, task).tolist() == [1, 0, 0, 1]
    for missing in ("", " ", None, float("nan"), "nan", " NaN", "inf", "1e+400", "9" * 5000, float("-inf")):
        with_gap = table(text=list("abc"), label=["pos", missing, "neg"])
        task = glue_tasks.infer_task(with_gap, (), None, None)
        assert task.labels == ("neg", "pos")
        with pytest.raises(BadRequest, match="label is not one of neg, pos.*f.tsv, row 2: "):
            glue_tasks.numbered_labels(with_gap, task)
    with pytest.raises(BadRequest, match="f.tsv: every label is missing in column 'label'"):
        glue_tasks.infer_task(table(text=["x", "y"], label=["nan", ""]), (), None, None)
    with pytest.raises(BadRequest, match="f.tsv: every label is 'pos'"):
        glue_tasks.infer_task(table(text=["x", "y"], label=["pos", "pos"]), (), None, None)


@settings(max_examples=50, deadline=None)
@given(st.permutations(glue_tasks.TASKS["mnli"].labels))
def test_labels_of_a_model_are_known_by_their_names(theirs):
    labels = glue_tasks.TASKS["mnli"].labels
    for known in (theirs, [name.upper() for name in theirs]):
        assert [theirs[i] for i in glue_tasks.order_in_model(labels, known)] == list(labels)
    for unknown in ((), ("LABEL_0", "LABEL_1", "LABEL_2"), theirs[:2]):
        assert glue_tasks.order_in_model(labels, unknown) == [0, 1, 2]


def test_a_task_of_glue_on_columns_of_other_names():
    task = glue_tasks.of_columns(glue_tasks.TASKS["mrpc"], ["left", "right"], "same")
    assert (task.sentence1, task.sentence2, task.label_columns) == (("left",), ("right",), ("same",))
    assert task.labels == glue_tasks.TASKS["mrpc"].labels
    assert glue_tasks.of_columns(task, [], None) == task


def test_a_model_knows_the_labels_of_data_without_them():
    assert glue_tasks.infer_task(table(text=["x"]), (), None, ("no", "yes")).labels == ("no", "yes")
    graded = glue_tasks.infer_task(table(text=["x"], label=["3"]), (), None, ())
    assert graded.is_regression and graded.metrics == ("pearson", "spearmanr")


# First lines of the files as GLUE distributes them; CoLA's train and dev have none.
GLUE_FILES = {
    "sst2": ("sentence\tlabel", "index\tsentence"),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
    ),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "id\tquestion1\tquestion2"),
    "mnli": (
        "index\tpromptID\tpairID\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
        "\tsentence1\tsentence2\tlabel1\tgold_label",
        "index\tpromptID\tpairID\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
        "\tsentence1\tsentence2",
    ),
    "qnli": ("index\tquestion\tsentence\tlabel", "index\tquestion\tsentence"),
    "rte": ("index\tsentence1\tsentence2\tlabel", "index\tsentence1\tsentence2"),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "index\tsentence1\tsentence2"),
}


@pytest.mark.parametrize("task", GLUE_FILES)
def test_the_columns_of_glue_files(task):
    known = glue_tasks.TASKS[task]
    for names, labelled in zip(GLUE_FILES[task], (True, False)):
        first = {name: [name] for name in names.split("\t")}
        label = {name: ["1" if known.is_regression else known.labels[1]] for name in known.label_columns}
        columns = Table({**first, **{n: v for n, v in label.items() if n in first}}, "f.tsv", "")
        assert glue_tasks.texts_of(columns, known.sentence1)[0] in ("sentence", "sentence1", "question1", "question")
        if known.sentence2:
            assert glue_tasks.texts_of(columns, known.sentence2)[0] in ("sentence2", "question2", "sentence")
        numbers = glue_tasks.numbered_labels(columns, known)
        assert numbers.tolist() == [1] if labelled else numbers is None


def test_text_must_be_there():
    with pytest.raises(BadRequest, match="no text in column 'sentence1': f.tsv, row 2"):
        glue_tasks.texts_of(table(sentence1=["x", None]), ("sentence1",))
    with pytest.raises(BadRequest, match="needs a column 'sentence1' or '#1 String', has other"):
        glue_tasks.texts_of(table(other=["x"]), ("sentence1", "#1 String"))


@pytest.mark.parametrize(
    ("task", "outputs", "lines"),
    [
        ("mrpc", [[1, 2], [2, 1]], ["0\t1", "1\t0"]),
        ("rte", [[1, 2], [2, 1]], ["0\tnot_entailment", "1\tentailment"]),
        ("stsb", [[1.23456], [7.0]], ["0\t1.235", "1\t5.000"]),
    ],
)
def test_the_format_of_the_glue_server(task, outputs, lines):
    assert glue_tasks.server_lines(glue_tasks.TASKS[task], np.array(outputs)) == ["index\tprediction", *lines]


def test_other_regressions_have_no_bounds():
    task = glue_tasks.infer_task(table(text=["x", "y"], label=["70.5", "-3"]), (), None, None)
    found = glue_tasks.server_lines(task, np.array([[70.25], [-3.0]], np.float32))
    assert found == ["index\tprediction", "0\t70.25", "1\t-3.0"]
    with pytest.raises(BadRequest, match="label is not a number: f.tsv, row 2: '1e.39'"):  # infinite in 32 bits
        glue_tasks.numbered_labels(table(text=["x", "y"], label=["70.5", "1e+39"]), task)


# ---- tables as people have them


def file_table(first_line, **columns):
    return replace(table(**columns), first_line=first_line, lines=range(2, 99))


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"Unnamed: 0": ["0", "1"], "text": ["a b", "c d"]}, (("text",), ())),
        ({"Unnamed: 0": ["7", "7"], "body": ["a", "b"], "Unnamed: 2": ["", ""]}, (("body",), ())),
        ({"premise": ["a", "b"], "hypothesis": ["c", "d"], "by": ["Ann", "Bob"]}, (("premise",), ("hypothesis",))),
        ({"stars": ["3", "4.5"], "review": ["a", "12"]}, (("review",), ())),
        ({"code": ["12", "13"]}, (("code",), ())),
        ({"annotator": ["Ann", "Bob"], "text": ["a", "b"]}, "'annotator' and 'text' could be.*--text_column_names"),
        ({"title": ["a", "b"], "body": ["c", "d"], "source": ["e", "f"]}, "'title' and 'body' and 'source' could be"),
        ({"Unnamed: 0": ["x1", "x2"], "text": ["a", "b"]}, "'Unnamed: 0' and 'text' could be"),
    ],
)  # fmt: skip
def test_the_columns_of_texts_are_not_guessed(columns, text):
    rows = Table({**columns, "label": ["x", "y"]}, "f.csv", "")
    if isinstance(text, str):
        with pytest.raises(BadRequest, match=text):
            glue_tasks.infer_task(rows, (), None, None)
        return
    task = glue_tasks.infer_task(rows, (), None, None)
    assert (task.sentence1, task.sentence2) == text


def test_what_was_taken_is_said():
    rows = table(text=["x", "y"], label=["b", "a"], annotator=["Ann", "Bob"])
    task = glue_tasks.infer_task(rows, ["text"], None, None)
    said = glue_tasks.columns_taken(rows, task)
    assert said == "f.tsv: text from 'text'; labels from 'label' (a, b); not used: 'annotator'"
    graded = glue_tasks.infer_task(table(text=["x"], grade=["0.5"]), ["text"], "grade", None)
    assert "labels from 'grade' (numbers: a regression)" in glue_tasks.columns_taken(
        table(text=["x"], grade=[1]), graded
    )
    assert glue_tasks.columns_taken(table(text=["x"]), graded) == "f.tsv: text from 'text'; no labels"


@pytest.mark.parametrize(
    ("task", "columns", "instead"),
    [
        ("sst2", {"text": ["a"], "label": ["0"]}, "text"),
        ("sst2", {"id": ["x"], "text": ["a"], "size": ["3"], "label": ["0"]}, "text"),
        ("sst2", {"text": ["a"], "note": ["b"]}, "NAME"),
        ("mrpc", {"first": ["a"], "second": ["b"], "label": ["0"]}, "first,second"),
        ("mrpc", {"sentence1": ["a"], "label": ["0"]}, "NAME,NAME"),
    ],
)
def test_columns_of_other_names_than_the_tasks_are_told_with_the_flag_to_write(task, columns, instead):
    with pytest.raises(BadRequest) as told:
        glue_tasks.columns_taken(table(**columns), glue_tasks.TASKS[task])
    (problem,) = told.value.problems
    assert f"has {', '.join(columns)}: --text_column_names {instead} (after a bare -- with demo_bert.py)" in problem


@pytest.mark.parametrize("first", ["The film was bad.", "0001,x", "Great"])
def test_a_first_line_that_may_be_a_row_is_not_taken_for_names(first):
    rows = file_table((first,), **{first: ["a b"]})
    with pytest.raises(BadRequest, match="line 1: .*names of columns, or a row.*--text_column_names"):
        glue_tasks.infer_task(rows, (), None, ("no", "yes"))
    two = file_table(("0", "The film"), **{"0": ["1"], "The film": ["A book"]})
    with pytest.raises(BadRequest, match="names of columns, or a row"):
        glue_tasks.infer_task(two, (), None, ("no", "yes"))
    named = file_table(("text",), text=["a b"])
    assert glue_tasks.infer_task(named, (), None, ("no", "yes")).sentence1 == ("text",)


def test_a_test_file_without_names_keeps_its_first_line():
    task = glue_tasks.TASKS["sst2"]
    found = glue_tasks.with_every_line(file_table(("A good film.",), **{"A good film.": ["Bad."]}), task)
    assert found.columns == {"sentence": ["A good film.", "Bad."]}
    named = file_table((" sentence ",), sentence=["Bad."])
    assert glue_tasks.with_every_line(named, task) is named
    with pytest.raises(BadRequest, match="line 1: 'Sentence': a text, or the name of the column"):
        glue_tasks.with_every_line(file_table(("Sentence",), Sentence=["Bad."]), task)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["0001", "0010"], ("0001", "0010")),
        (["1_10", "11_0", "110"], ("110", "11_0", "1_10")),
        (["007", "7"], ("007", "7")),
        (["1e5", "100000"], ("100000", "1e5")),
        (["１", "1"], ("1", "１")),
        (["A", "a"], ("A", "a")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["+1", "-1"], ("-1", "+1")),
        ([1.0, 0.0], ("0", "1")),
        (["1.0", "0.0", "1"], ("0.0", "1")),
        ([True, False], ("False", "True")),
    ],
)
def test_labels_keep_their_text(values, labels):
    rows = table(text=["x"] * len(values), label=values)
    task = glue_tasks.infer_task(rows, (), None, None)
    assert task.labels == labels
    assert sorted(set(glue_tasks.numbered_labels(rows, task).tolist())) == list(range(len(labels)))


def test_codes_are_not_places():
    """A reader that makes 1 of 0001 would give it the label of another."""
    codes = glue_tasks.infer_task(table(text=["x", "y"], label=["0001", "0010"]), (), None, None)
    for value in ("1", "10", "0"):
        with pytest.raises(BadRequest, match="label is not one of 0001, 0010: f.tsv, row 1"):
            glue_tasks.numbered_labels(table(label=[value]), codes)
    with pytest.raises(BadRequest, match="label is not"):
        glue_tasks.numbered_labels(table(label=["0001"]), glue_tasks.TASKS["mrpc"])
    signs = glue_tasks.infer_task(table(text=["x", "y"], label=["-1", "1"]), (), None, None)
    assert glue_tasks.numbered_labels(table(label=["-1", "-1"]), signs).tolist() == [0, 0]


@pytest.mark.parametrize("value", [["joy", "love"], ["joy"], {"joy": 1}, "['joy', 'love']", "['joy' 'love']", "(1, 2)"])
def test_a_list_is_no_label(value):
    rows = table(text=["x", "y"], label=["a", value])
    with pytest.raises(BadRequest, match="f.tsv, row 2: .*joy|1, 2") as error:
        glue_tasks.infer_task(rows, (), None, None)
    assert len(error.value.problems) == 1 and "one label here, not a list" in str(error.value)
    with pytest.raises(BadRequest, match="one label here"):
        glue_tasks.numbered_labels(rows, glue_tasks.TASKS["mrpc"])


def test_labels_in_brackets_and_deep_lists():
    assert glue_tasks.infer_task(table(text=["x", "y"], label=["[A]", "(b)"]), (), None, None).labels == ("(b)", "[A]")
    deep = []
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(BadRequest, match="one label here"):
        glue_tasks.infer_task(table(text=["x", "y"], label=["a", deep]), (), None, None)


def test_other_names_of_a_model_are_said_with_the_order_taken():
    said = glue_tasks.order_taken(("negative", "positive"), ("pos", "neg"))
    assert said.endswith("taken in their order, pos = negative, neg = positive")
    for known in (("Positive", "Negative"), ("a", "b", "c"), ()):
        assert glue_tasks.order_taken(("negative", "positive"), known) is None
    assert glue_tasks.order_in_model(("A", "a"), ("a", "A")) == [1, 0]
    assert glue_tasks.order_in_model(("Aa", "aA"), ("AA", "aa")) == [0, 1]  # no case tells these apart
    task = glue_tasks.infer_task(table(text=["x"], label=["1"]), (), None, ("POS", "NEG"))
    said = glue_tasks.taken_by_number(table(label=["1", "0", "POS"]), task)
    assert said == "f.tsv: labels are numbers, taken as places: 0 = POS, 1 = NEG"
    assert glue_tasks.taken_by_number(table(label=["POS"]), task) is None


def test_texts_that_are_all_empty_are_refused():
    for texts in (["", ""], [" ", "\t"], ["\u3000", ""]):
        with pytest.raises(BadRequest, match="f.tsv: every text in column 'text' is empty"):
            glue_tasks.texts_of(table(text=texts), ("text",))
    assert glue_tasks.texts_of(table(text=["", "x"]), ("text",)) == ["", "x"]


def test_predictions_by_name_with_probabilities():
    rows = glue_tasks.prediction_rows(glue_tasks.TASKS["mrpc"], np.array([[0.0, math.log(3)], [800.0, 0.0]]))
    assert rows[0]["label"] == "equivalent" and rows[1]["label"] == "not_equivalent"
    assert rows[0]["probabilities"] == pytest.approx({"not_equivalent": 0.25, "equivalent": 0.75})
    assert [row["index"] for row in rows] == [0, 1] and rows[1]["probabilities"]["not_equivalent"] == 1
    assert glue_tasks.prediction_rows(glue_tasks.TASKS["stsb"], np.array([[2.5]])) == [{"index": 0, "value": 2.5}]
