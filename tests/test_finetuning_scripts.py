"""run_glue.py and run_qa.py from end to end with a tiny model: train, evaluate, predict, resume, stop, refuse."""

import gzip
import importlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pretraining_helpers import small_disk
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from central.finetuning import attention_cpu, output_folder, resume
from central.finetuning.features import Features, Ragged
from central.finetuning.resume import deciding
from central.finetuning.script import report
from central.finetuning.trainer import StopBetweenSteps
from central.runtime import exits
from central.runtime.dropout import DropoutBits

pytest_plugins = ("finetuning_fixtures",)

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    name: ROOT / "transformers/examples/pytorch" / folder
    for name, folder in (("run_glue", "text-classification"), ("run_qa", "question-answering"))
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def run(script, *words):
    """Run a script in this process; its exit status."""
    return exits.run(importlib.import_module(script).main, ["--no_cuda", *map(str, words)])


def glue_words(model, pairs, out, *more):
    return [
        *(
            f"--model_name_or_path={model}",
            "--task_name=MRPC",
            "--dataset_name=mrpc",
            f"--output_dir={out}",
            "--do_train",
        ),
        *(f"--train_file={pairs / 'train.tsv'}", f"--validation_file={pairs / 'dev.tsv'}", "--max_seq_length=32"),
        *("--per_device_train_batch_size=8", "--learning_rate=1e-3", f"--cache_dir={out.parent / 'cache'}", *more),
    ]


def qa_words(model, file, out, *more):
    return [
        *(f"--model_name_or_path={model}", f"--output_dir={out}", f"--train_file={file}", f"--validation_file={file}"),
        *(
            "--max_seq_length=64",
            "--doc_stride=16",
            "--per_device_train_batch_size=4",
            f"--cache_dir={out.parent / 'cache'}",
        ),
        *("--learning_rate=1e-3", *more),
    ]


def results(folder):
    return json.loads((folder / "all_results.json").read_text())


def say_what_the_card_says(out, capsys) -> str:
    """What the Python code of a model card prints."""
    capsys.readouterr()
    exec((out / "README.md").read_text().split("```python\n")[1].split("```")[0], {})
    return capsys.readouterr().out


def test_glue_trains_evaluates_and_predicts(tiny_model, pairs, tmp_path, capsys):
    out = tmp_path / "mrpc"
    words = glue_words(tiny_model, pairs, out, "--do_eval", "--do_predict", f"--test_file={pairs / 'test.tsv'}")
    assert run("run_glue", *words, "--num_train_epochs=15", "--learning_rate=3e-3") == 0
    found = results(out)
    assert found["eval_accuracy"] > 0.9 > found["eval_majority_class"] and found["eval_samples"] == 33
    assert found["train_samples_per_second"] > 0
    lines = (out / "predict_results_mrpc.txt").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    assert [int(line.split("\t")[1]) for line in lines[1:]] == [int((i * 7) % 3 > 0) for i in range(9)]
    for name in ("model.safetensors", "config.json", "tokenizer.json", "trainer_state.json", "eval_results.json"):
        assert (out / name).exists()
    assert len({path.stat().st_mode for path in out.iterdir() if path.is_file()}) == 1  # all as the umask has it
    said = capsys.readouterr().out
    assert "made anew" in said and "classifier.weight" in said
    card = (out / "README.md").read_text()
    assert f"{found['eval_accuracy']:.4g}" in card and "0.003" in card
    assert not any(blank in card for blank in ("More information", "None", "TODO", "unknown"))
    assert "equivalent" in say_what_the_card_says(out, capsys)


def test_a_run_prints_a_line_a_percent_scores_once_and_where_all_is(tiny_model, pairs, tmp_path, capsys):
    out = tmp_path / "o"
    words = glue_words(tiny_model, pairs, out, "--do_eval", "--do_predict", f"--test_file={pairs / 'test.tsv'}")
    assert (
        run("run_glue", *words, "--max_steps=250", "--logging_steps=1", "--eval_strategy=steps", "--eval_steps=100")
        == 0
    )
    said = capsys.readouterr().out
    steps = [line for line in said.splitlines() if line.startswith("step ") and "  loss " in line]
    assert 100 <= len(steps) <= 130 and steps[0].startswith("step 1/250  loss ") and "ETA" in steps[-1]
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert len([entry for entry in history if "loss" in entry]) == 250
    amid = [line for line in said.splitlines() if line.startswith("step ") and "eval accuracy" in line]
    assert [line.split()[1] for line in amid] == ["100/250", "200/250", "250/250"] and "runtime" not in amid[0]
    assert said.count("eval_accuracy") == 1 and said.count("train_loss") == 1 and "{'" not in said
    assert said.splitlines()[-1] == (
        f"in {out}: the model (model.safetensors) and its tokenizer, its card (README.md), scores (all_results.json), "
        "predictions (predict_results_mrpc.txt, predict_results_mrpc.jsonl)"
    )


def test_a_fine_tuned_model_evaluates_and_predicts_alone(tiny_model, pairs, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("run_glue", *glue_words(tiny_model, pairs, first, "--do_eval", "--max_steps=10")) == 0
    words = [w for w in glue_words(first, pairs, second, "--do_eval") if w != "--do_train"]
    assert run("run_glue", *words) == 0
    assert results(second)["eval_accuracy"] == results(first)["eval_accuracy"]
    assert results(second)["eval_loss"] == pytest.approx(results(first)["eval_loss"], rel=1e-5)


def test_evaluating_a_model_in_its_folder_puts_the_scores_into_its_card(tiny_model, pairs, tmp_path):
    out = tmp_path / "mrpc"
    assert run("run_glue", *glue_words(tiny_model, pairs, out, "--max_steps=3")) == 0
    before = (out / "README.md").read_text()
    assert "this run did not evaluate" in before or "train_loss" in before
    words = [w for w in glue_words(out, pairs, out, "--do_eval") if w != "--do_train"]
    assert run("run_glue", *words) == 0
    after = (out / "README.md").read_text()
    assert f"| eval_accuracy | {results(out)['eval_accuracy']:.4g} |" in after and "eval_runtime" not in after
    for kept in ("0.001", "3 steps", f"`{tiny_model}` fine-tuned on mrpc", "train.tsv"):
        assert kept in before and kept in after


@pytest.mark.parametrize("script", ["run_glue", "run_qa"])
def test_roberta_with_its_own_tokenizer_and_a_general_one(script, tiny_roberta, pairs, squad_file, tmp_path):
    out = tmp_path / "o"
    if script == "run_glue":
        words = glue_words(tiny_roberta, pairs, out, "--do_eval", "--do_predict", f"--test_file={pairs / 'test.tsv'}")
    else:
        words = qa_words(tiny_roberta, squad_file, out, "--do_train", "--do_eval", "--max_seq_length=128")
    assert run(script, *words, "--num_train_epochs=20", "--learning_rate=3e-3") == 0
    assert results(out)["eval_f1"] > (0.9 if script == "run_glue" else 50)
    assert run(script, *words, "--max_seq_length=129", f"--output_dir={tmp_path / 'p'}") == exits.BAD_REQUEST


def glue_folder(folder, header, splits):
    """A folder of files as GLUE distributes them: split -> rows."""
    folder.mkdir()
    for name, rows in splits.items():
        lines = ["\t".join(header[: len(rows[0])]), *("\t".join(row) for row in rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def task_words(model, task, data, out, *more):
    words = [f"--model_name_or_path={model}", f"--task_name={task}", f"--dataset_name={data}", f"--output_dir={out}"]
    return [*words, "--learning_rate=3e-3", "--per_device_train_batch_size=8", *more]


def test_mnli_has_two_validation_and_two_test_sets(tiny_model, tmp_path):
    kinds = {"good": "entailment", "france": "neutral", "bad": "contradiction"}
    header = ("index", "sentence1", "sentence2", "gold_label")

    def rows(count, labelled=True):
        found = [(str(i), f"w{i % 60} {word}", "the film", kinds[word]) for i, word in enumerate([*kinds] * count)]
        return found if labelled else [row[:3] for row in found]

    splits = {"train": rows(20), "dev_matched": rows(5), "dev_mismatched": rows(7)}
    splits |= {"test_matched": rows(3, False), "test_mismatched": rows(4, False)}
    data, out = glue_folder(tmp_path / "MNLI", header, splits), tmp_path / "o"
    words = task_words(tiny_model, "mnli", data, out, "--do_train", "--do_eval", "--do_predict", "--max_seq_length=16")
    assert run("run_glue", *words, "--num_train_epochs=25") == 0
    found = results(out)
    assert found["eval_accuracy"] > 0.9 and found["eval_accuracy_mm"] > 0.9
    assert (found["eval_samples"], found["eval_samples_mm"]) == (15, 21)
    assert (found["predict_samples"], found["predict_samples_mm"]) == (9, 12)
    lines = {name: (out / f"predict_results_{name}.txt").read_text().splitlines() for name in ("mnli", "mnli-mm")}
    assert (len(lines["mnli"]), len(lines["mnli-mm"])) == (10, 13)
    assert [line.split("\t")[1] for line in lines["mnli"][1:4]] == list(kinds.values())
    assert "eval_accuracy_mm" in (out / "README.md").read_text()


def test_stsb_is_a_regression_also_when_evaluated_and_predicted_alone(tiny_model, tmp_path, capsys):
    header = ("index", "sentence1", "sentence2", "score")
    scores = {"good": "4.500", "film": "2.5", "bad": "0.5"}
    rows = [(str(i), f"w{i % 60} {word}", "the film", scores[word]) for i, word in enumerate([*scores] * 20)]
    data = glue_folder(tmp_path / "STS-B", header, {"train": rows, "dev": rows[:21], "test": [r[:3] for r in rows[:9]]})
    words = task_words(tiny_model, "STS-B", data, tmp_path / "o", "--do_train", "--do_eval", "--num_train_epochs=24")
    assert run("run_glue", *words) == 0
    found = results(tmp_path / "o")
    assert found["eval_pearson"] > 0.9 and found["eval_spearmanr"] > 0.8 and "eval_majority_class" not in found
    assert -10 < float(say_what_the_card_says(tmp_path / "o", capsys)) < 10
    words = task_words(tmp_path / "o", "stsb", data, tmp_path / "alone", "--do_eval", "--do_predict")
    assert run("run_glue", *words) == 0
    assert results(tmp_path / "alone")["eval_pearson"] == pytest.approx(found["eval_pearson"], rel=1e-5)
    lines = (tmp_path / "alone" / "predict_results_stsb.txt").read_text().splitlines()
    good, film, bad = (float(line.split("\t")[1]) for line in lines[1:4])
    assert good > film > bad and len(lines) == 10
    test = tmp_path / "own.jsonl"  # no task is named: the model says that it is a regression
    test.write_text("".join(json.dumps({"sentence1": row[1], "sentence2": row[2]}) + "\n" for row in rows[:9]))
    words = [f"--model_name_or_path={tmp_path / 'o'}", f"--test_file={test}", "--do_predict"]
    assert run("run_glue", *words, f"--output_dir={tmp_path / 'own'}") == 0
    own = (tmp_path / "own" / "predict_results_text-classification.txt").read_text().splitlines()
    assert own[0] == lines[0] and len(own) == len(lines)
    for mine, theirs in zip(own[1:], lines[1:]):  # the server's have three decimals
        assert float(mine.split("\t")[1]) == pytest.approx(float(theirs.split("\t")[1]), abs=6e-4)


def test_cola_without_a_header_and_qnli_rte_wnli_columns(tiny_model, tmp_path):
    words = "good film", "bad film"
    data = tmp_path / "CoLA"
    data.mkdir()
    for name in ("train", "dev"):
        (data / f"{name}.tsv").write_text("".join(f"gj04\t{i % 2}\t\tw{i % 60} {words[i % 2]}\n" for i in range(40)))
    assert run("run_glue", *task_words(tiny_model, "cola", data, tmp_path / "c", "--do_train", "--do_eval")) == 0
    assert {"eval_matthews_correlation", "eval_accuracy"} <= set(results(tmp_path / "c"))
    assert results(tmp_path / "c")["eval_samples"] == 40  # the first line is a row
    for task, first, second, labels in (
        ("qnli", "question", "sentence", ("entailment", "not_entailment")),
        ("rte", "sentence1", "sentence2", ("not_entailment", "entailment")),
        ("wnli", "sentence1", "sentence2", ("0", "1")),
    ):
        rows = [(str(i), f"w{i} yes", words[i % 2], labels[i % 2]) for i in range(40)]
        splits = {"train": rows, "dev": rows, "test": [row[:3] for row in rows[:4]]}
        data, out = glue_folder(tmp_path / task.upper(), ("index", first, second, "label"), splits), tmp_path / task
        steps = ["--do_train", "--do_eval", "--do_predict", "--num_train_epochs=12"]
        assert run("run_glue", *task_words(tiny_model, task, data, out, *steps)) == 0
        assert results(out)["eval_accuracy"] > 0.9
        lines = (out / f"predict_results_{task}.txt").read_text().splitlines()
        assert lines[1:] == [f"{i}\t{labels[i % 2]}" for i in range(4)]


def test_by_length_and_padded_evaluate_the_same(tiny_model, pairs, tmp_path):
    out = tmp_path / "out"
    assert run("run_glue", *glue_words(tiny_model, pairs, out, "--do_eval", "--max_steps=8")) == 0
    for name, more in (("length", []), ("padded", ["--pad_to_max_length"])):
        words = glue_words(out, pairs, tmp_path / name, "--do_predict", f"--test_file={pairs / 'dev.tsv'}", *more)
        assert run("run_glue", *[w for w in words if w != "--do_train"]) == 0
    texts = [(tmp_path / name / "predict_results_mrpc.txt").read_text() for name in ("length", "padded")]
    assert texts[0] == texts[1] and texts[0].count("\n") == 34


def test_a_score_of_the_majority_class_says_so(tiny_model, pairs, tmp_path, capsys):
    words = glue_words(tiny_model, pairs, tmp_path / "o", "--do_eval", "--max_steps=1", "--learning_rate=1e-9")
    run("run_glue", *words)
    found = results(tmp_path / "o")
    assert ("commonest label" in capsys.readouterr().out) == (found["eval_accuracy"] == found["eval_majority_class"])


def test_other_labels_and_single_sentences(tiny_model, tmp_path):
    rows = [{"text": f"w{i} {name} film", "label": name} for i in range(30) for name in ("good", "bad")]
    file = tmp_path / "t.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    words = [f"--model_name_or_path={tiny_model}", f"--output_dir={tmp_path / 'o'}", f"--train_file={file}"]
    words += [f"--validation_file={file}", "--do_train", "--do_eval", "--learning_rate=3e-3", "--num_train_epochs=20"]
    assert run("run_glue", *words) == 0
    assert results(tmp_path / "o")["eval_accuracy"] == 1
    assert json.loads((tmp_path / "o" / "config.json").read_text())["label2id"] == {"bad": 0, "good": 1}


def test_a_model_that_names_no_labels_predicts_their_numbers(tiny_model, tmp_path, capsys):
    unlabelled, named, numbered = tmp_path / "test.jsonl", tmp_path / "named.csv", tmp_path / "numbered.csv"
    unlabelled.write_text("".join(json.dumps({"text": f"film {i}"}) + "\n" for i in range(3)))
    named.write_text("text,label\na film,good\n")
    numbered.write_text("text,label\na film,1\na book,0\n")
    words = [f"--model_name_or_path={tiny_model}", f"--output_dir={tmp_path / 'o'}"]
    assert run("run_glue", *words, "--do_predict", f"--test_file={unlabelled}") == 0
    header, *lines = (tmp_path / "o" / "predict_results_text-classification.txt").read_text().splitlines()
    assert header == "index\tprediction" and len(lines) == 3
    assert {line.split("\t")[1] for line in lines} <= {"LABEL_0", "LABEL_1"}
    assert run("run_glue", *words, "--do_eval", f"--validation_file={numbered}") == 0
    assert run("run_glue", *words, "--do_eval", f"--validation_file={named}") == exits.BAD_REQUEST
    assert "label is not one of LABEL_0, LABEL_1, nor the number of one: " in capsys.readouterr().err


def test_a_column_of_another_name_is_told_before_the_model_is_read(tiny_model, tmp_path, capsys):
    (tmp_path / "train.csv").write_text("text,label\ngood film,1\nbad film,0\n")
    words = [f"--model_name_or_path={tiny_model}", "--task_name=sst2", f"--train_file={tmp_path / 'train.csv'}"]
    assert run("run_glue", *words, "--do_train", f"--output_dir={tmp_path / 'o'}") == exits.BAD_REQUEST
    said = capsys.readouterr()
    assert "needs a column 'sentence', has text, label: --text_column_names text (after a bare --" in said.err
    assert "text from" not in said.out and "tokenizer" not in said.out and "made anew" not in said.out


def test_a_sorted_table_with_row_numbers_and_codes_and_a_test_file_without_names(tiny_model, tmp_path, capsys):
    rows = [f'{i},"w{i} {word} film",{code}' for code, word in (("0001", "bad"), ("0010", "good")) for i in range(30)]
    (tmp_path / "train.csv").write_text("\n".join([",text,label", *rows]) + "\n")
    (tmp_path / "test.txt").write_text("good film\n\nbad film\n")
    words = [f"--model_name_or_path={tiny_model}", f"--train_file={tmp_path / 'train.csv'}", "--learning_rate=3e-3"]
    words += [f"--test_file={tmp_path / 'test.txt'}", "--do_train", "--do_predict", f"--output_dir={tmp_path / 'o'}"]
    assert run("run_glue", *words, "--num_train_epochs=20") == 0
    said = capsys.readouterr().out
    assert "train.csv: text from 'text'; labels from 'label' (0001, 0010); not used: 'Unnamed: 0'" in said
    assert "test.txt: has no line of column names" in said and "test.txt: 1 of 3 texts are empty" in said
    assert json.loads((tmp_path / "o" / "config.json").read_text())["id2label"] == {"0": "0001", "1": "0010"}
    lines = (tmp_path / "o" / "predict_results_text-classification.txt").read_text().splitlines()
    named = (tmp_path / "o" / "predict_results_text-classification.jsonl").read_text().splitlines()
    assert lines[1] == "0\t0010" and lines[3] == "2\t0001" and len(lines) == 4
    for number, row in enumerate(map(json.loads, named)):
        assert lines[1 + number] == f"{row['index']}\t{row['label']}" and row["index"] == number
        assert max(row["probabilities"], key=row["probabilities"].get) == row["label"]
        assert sum(row["probabilities"].values()) == pytest.approx(1)
    # the first 30 have one label of the two
    assert run("run_glue", *words, "--max_train_samples=30", "--max_steps=1", f"--output_dir={tmp_path / 'p'}") == 0
    assert "all training labels are the same" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "p" / "config.json").read_text())["id2label"]) == 2


def test_a_squad_score_near_zero_says_so(tiny_model, squad_file, tmp_path, capsys):
    document = json.loads(squad_file.read_text())
    for paragraph in document["data"][0]["paragraphs"]:
        for row in paragraph["qas"]:
            row["answers"][0]["text"] = "nowhere"  # asked for in the evaluation only
    (tmp_path / "other.json").write_text(json.dumps(document))
    words = qa_words(
        tiny_model, squad_file, tmp_path / "o", f"--validation_file={tmp_path / 'other.json'}", "--do_eval"
    )
    assert run("run_qa", *words) == 0
    assert results(tmp_path / "o")["eval_f1"] == 0
    assert "warning: eval_f1 0.00 is nearly that of no answers" in capsys.readouterr().out


def test_squad_learns_and_writes_its_answers(tiny_model, squad_file, tmp_path, capsys):
    out = tmp_path / "squad"
    words = qa_words(tiny_model, squad_file, out, "--do_train", "--do_eval", "--num_train_epochs=25")
    assert run("run_qa", *words, "--do_predict", f"--test_file={squad_file}") == 0
    found = results(out)
    assert "nearly that of no answers" not in capsys.readouterr().out
    assert found["eval_f1"] > 60 and found["eval_samples"] == 12 and found["predict_f1"] == found["eval_f1"]
    predictions = json.loads((out / "predictions.json").read_text())
    assert list(predictions) == [f"q{i}" for i in range(12)]
    nbest = json.loads((out / "nbest_predictions.json").read_text())
    assert all(nbest[id][0]["text"] == text for id, text in predictions.items())
    assert json.loads((out / "predict_predictions.json").read_text()) == predictions
    assert say_what_the_card_says(out, capsys).strip() in "It is in France."


def test_squad_2_may_answer_nothing(tiny_model, squad_file, tmp_path):
    document = json.loads(squad_file.read_text())
    document["data"][0]["paragraphs"][0]["qas"][0] |= {"answers": [], "is_impossible": True}
    file = tmp_path / "v2.json"
    file.write_text(json.dumps(document))
    words = qa_words(tiny_model, file, tmp_path / "o", "--do_train", "--do_eval", "--max_steps=2")
    assert run("run_qa", *words) == 2
    assert run("run_qa", *words, "--version_2_with_negative") == 0
    assert set(json.loads((tmp_path / "o" / "null_odds.json").read_text())) == {f"q{i}" for i in range(12)}
    assert {"eval_HasAns_f1", "eval_NoAns_f1", "eval_best_f1"} <= set(results(tmp_path / "o"))


def test_the_null_threshold_decides_and_squad_predicts_alone(tiny_model, squad_file, tmp_path):
    first, packed = tmp_path / "o", tmp_path / "squad.json.gz"
    packed.write_bytes(gzip.compress(squad_file.read_bytes()))
    assert run("run_qa", *qa_words(tiny_model, packed, first, "--do_train", "--max_steps=2")) == 0
    silent = {}
    for threshold in (-1e9, 1e9):
        out = tmp_path / f"{threshold:g}"
        words = qa_words(first, squad_file, out, "--do_eval", "--version_2_with_negative")
        assert run("run_qa", *words, f"--null_score_diff_threshold={threshold}") == 0
        silent[threshold] = [not text for text in json.loads((out / "predictions.json").read_text()).values()]
        assert (out / "null_odds.json").exists()
    assert all(silent[-1e9]) and not any(silent[1e9])
    words = [f"--model_name_or_path={first}", f"--output_dir={tmp_path / 'p'}", f"--test_file={packed}"]
    assert run("run_qa", *words, "--do_predict", "--max_seq_length=64", "--doc_stride=16") == 0
    assert len(json.loads((tmp_path / "p" / "predict_predictions.json").read_text())) == 12


def test_questions_that_cannot_be_used_are_counted_and_double_ids_refused(tiny_model, squad_file, tmp_path, capsys):
    document = json.loads(squad_file.read_text())
    paragraphs = document["data"][0]["paragraphs"]
    paragraphs[0]["qas"][0]["answers"][0]["answer_start"] = 9999
    paragraphs[1]["qas"][0]["answers"][0]["answer_start"] += 1
    paragraphs[2]["qas"][0]["question"] = " "
    paragraphs[3]["context"] = ""
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(document))
    words = qa_words(tiny_model, squad_file, tmp_path / "o", "--do_train", "--max_steps=1")
    assert run("run_qa", *words, f"--train_file={file}") == 0
    said = capsys.readouterr().out
    assert f"{file}: 2 questions skipped, empty question or context: q2 at {file}, article 'N', paragraph 3" in said
    assert f"{file}: 2 questions skipped, answer not at its answer_start: q0 at {file}" in said
    assert results(tmp_path / "o")["train_samples"] < 20
    paragraphs[5]["qas"][0]["id"] = "q4"
    file.write_text(json.dumps(document))
    assert run("run_qa", *words, f"--train_file={file}", f"--output_dir={tmp_path / 'p'}") == exits.BAD_REQUEST
    assert "ids that occur more than once: q4 at" in capsys.readouterr().err


@pytest.mark.parametrize("logging", [2, 500])  # the sum of the losses is read at every log, or only where it is saved
def test_resuming_gives_the_weights_and_the_metrics_of_a_run_without_interruption(tiny_model, pairs, tmp_path, logging):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steps = ["--num_train_epochs=3", "--save_steps=7", "--bf16", f"--logging_steps={logging}"]
    assert run("run_glue", *glue_words(tiny_model, pairs, whole, *steps)) == 0
    assert run("run_glue", *glue_words(tiny_model, pairs, parts, *steps)) == 0
    for late in ("checkpoint-21", "checkpoint-24"):  # as if killed between step 14 and step 21
        for file in (parts / late).iterdir():
            file.unlink()
    (parts / "model.safetensors").unlink()
    assert (
        run(
            "run_glue",
            *glue_words(tiny_model, pairs, parts, *steps, "--overwrite_output_dir", "--resume_from_checkpoint"),
        )
        == 0
    )
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert all((expected[name] == found[name]).all() for name in expected)
    assert not (tmp_path / "parts.1").exists()
    expected, found = results(whole), results(parts)
    assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-6)
    before = json.loads((parts / "checkpoint-14/trainer_state.json").read_text())
    assert found["train_runtime"] > before["stateful_callbacks"]["Record"]["attributes"]["seconds"]
    rounded = 5e-4 + 24 * 5e-5 / found["train_runtime"] ** 2  # three digits of the rate, four of the time
    assert found["train_steps_per_second"] == pytest.approx(24 / found["train_runtime"], abs=rounded)
    assert "| resumed after steps | 14 |" in (parts / "README.md").read_text()
    assert "resumed" not in (whole / "README.md").read_text()
    # Nothing is left to do: the metrics stay those of the whole run.
    assert run("run_glue", *glue_words(tiny_model, pairs, parts, *steps, "--resume_from_checkpoint")) == 0
    assert results(parts)["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-6)


def test_a_run_that_is_resumed_at_its_last_step_takes_no_other(tiny_model, pairs, tmp_path):
    """Five steps of the eight of an epoch, at a rate that does not end at 0."""
    out = tmp_path / "o"
    words = glue_words(tiny_model, pairs, out, "--max_steps=5", "--save_steps=5", "--lr_scheduler_type=constant")
    assert run("run_glue", *words) == 0
    expected, weights = results(out), (out / "model.safetensors").read_bytes()
    assert run("run_glue", *words, "--resume_from_checkpoint") == 0
    assert (out / "model.safetensors").read_bytes() == weights and not (out / "checkpoint-6").exists()
    assert results(out)["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-6)
    assert results(out)["epoch"] == expected["epoch"]


@pytest.mark.parametrize("script", ["run_glue", "run_qa"])
def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on(tiny_model, pairs, squad_file, tmp_path, capsys, script):
    steps = ["--do_train", "--max_steps=8", "--save_steps=2"]

    def words(out):
        cache = [f"--cache_dir={tmp_path / 'cache'}"]
        glue = glue_words(tiny_model, pairs, out, *steps, *cache)
        return glue if script == "run_glue" else qa_words(tiny_model, squad_file, out, *steps, *cache)

    assert run(script, *words(tmp_path / "whole")) == 0
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        capsys.readouterr()
        assert run(script, *words(disk / "out")) == exits.BAD_REQUEST
        said = capsys.readouterr().err
        assert said.startswith(
            f"error: --output_dir {disk / 'out'}: the disk is full: make room; checkpoint-4 is whole"
        )
        assert said.count("\n") == 1
        name = "checkpoint-2/model.safetensors"
        assert (disk / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
        assert run(script, *words(disk / "out"), "--resume_from_checkpoint") == 0
        name = "model.safetensors"
        assert (disk / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_folder_that_is_taken_away_amid_a_save_is_one_line(tiny_model, pairs, tmp_path, capsys, monkeypatch):
    out, save = tmp_path / "o", Trainer._save_optimizer_and_scheduler

    def take_away(trainer, folder):
        shutil.rmtree(out)
        save(trainer, folder)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", take_away)
    words = glue_words(tiny_model, pairs, out, "--max_steps=2", "--save_steps=2")
    assert run("run_glue", *words) == exits.BAD_REQUEST
    said = capsys.readouterr().err
    assert said.startswith(f"error: --output_dir {out}: removed or replaced while the run wrote there (")
    assert said.count("\n") == 1 and said.endswith("nothing is saved\n")


def test_results_are_whole_or_absent_and_damaged_ones_are_written_again(tmp_path):
    """A full disk cut off what an earlier evaluation had left, and the next run could not read it."""
    trainer = SimpleNamespace(
        args=SimpleNamespace(output_dir=tmp_path), log_metrics=lambda *_: None, is_world_process_zero=lambda: True
    )
    (tmp_path / "all_results.json").write_text("{")
    report(trainer, "train", {"train_loss": 1.0})
    report(trainer, "eval", {"eval_loss": 2.0})
    assert results(tmp_path) == {"train_loss": 1.0, "eval_loss": 2.0}
    with pytest.raises(TypeError):
        report(trainer, "eval", {"eval_loss": object()})
    assert results(tmp_path) == {"train_loss": 1.0, "eval_loss": 2.0} and len(list(tmp_path.iterdir())) == 3


@pytest.fixture(scope="module")
def finished(tiny_model, pairs, tmp_path_factory) -> Path:
    """A finished run of four steps with checkpoints."""
    out = tmp_path_factory.mktemp("finished") / "out"
    words = ["--max_steps=4", "--save_steps=2", "--learning_rate=1e-3"]
    assert run("run_glue", *glue_words(tiny_model, pairs, out, *words)) == 0
    return out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--per_device_train_batch_size=16"], "global batch size 16, was 8"),
        (["--gradient_accumulation_steps=2"], "global batch size 16, was 8"),
        (["--max_steps=8"], "--max_steps 8, was 4"),
        (["--learning_rate=2e-3"], "--learning_rate 0.002, was 0.001"),
        (["--lr_scheduler_type=cosine"], "--lr_scheduler_type cosine, was linear"),
        (["--bf16"], "precision bf16, was fp32"),
        (["--seed=7"], "--seed 7, was 42"),
        (["--max_train_samples=40"], "training data 40 examples"),
        (["--max_seq_length=8"], "training data 64 examples"),
    ],
)
def test_a_resume_with_what_makes_it_another_run_is_refused(finished, tiny_model, pairs, capsys, words, said):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    words = ["--max_steps=4", "--save_steps=2", *words, "--resume_from_checkpoint"]
    assert run("run_glue", *glue_words(tiny_model, pairs, finished, *words)) == exits.BAD_REQUEST
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0] and "checkpoint-4" in lines[0]
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize(
    "change",
    [
        *({"num_train_epochs": 2}, {"max_steps": 5}, {"learning_rate": 1e-3}, {"lr_scheduler_type": "cosine"}),
        *({"warmup_steps": 3}, {"weight_decay": 0.1}, {"optim": "adafactor"}, {"adam_beta1": 0.5}, {"adam_beta2": 0.5}),
        *(
            {"adam_epsilon": 1e-3},
            {"max_grad_norm": 2},
            {"label_smoothing_factor": 0.1},
            {"dataloader_drop_last": True},
        ),
        *({"seed": 3}, {"data_seed": 3}, {"bf16": True}),
        *({"per_device_train_batch_size": 3}, {"gradient_accumulation_steps": 2}),
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_a_training_decides_it(tmp_path, change):
    features = Features({"input_ids": Ragged.of([[1, 2], [3]])})
    given = {"output_dir": str(tmp_path), "use_cpu": True}
    plain, changed = (deciding(TrainingArguments(**given, **more), features) for more in ({}, change))
    assert len([name for name in plain if changed[name] != plain[name]]) == 1
    others = Features({"input_ids": Ragged.of([[1, 2], [4]])})
    assert deciding(TrainingArguments(**given), others)["training data"] != plain["training data"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_a_flipped_bit_is_never_trained_on(finished, tiny_model, pairs, tmp_path, capsys, file):
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    shutil.rmtree(out / "checkpoint-4")
    shutil.copytree(out / "checkpoint-2", out / "checkpoint-3")
    content = bytearray((out / "checkpoint-3" / file).read_bytes())
    content[len(content) // 2] ^= 4
    (out / "checkpoint-3" / file).write_bytes(content)
    words = ["--max_steps=4", "--save_steps=2", "--resume_from_checkpoint"]
    assert run("run_glue", *glue_words(tiny_model, pairs, out, *words)) == exits.BAD_REQUEST
    (line,) = capsys.readouterr().err.splitlines()
    assert f"checkpoint-3/{file}: cannot be read (its content is not what was written" in line
    assert line.endswith("checkpoint-2 goes on from the one before it")


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        *[("state", "global_step", value) for value in (-5, 10**30, 2, True, "x", None, 1.5)],
        *[("state", "epoch", value) for value in (-1.0, float("nan"), "x")],
        ("state", "log_history", [5]),
        ("state", "best_metric", "x"),
        ("state", "train_batch_size", "x"),
        ("state", "stateful_callbacks", 5),
        ("state", "stateful_callbacks", {}),
        ("state", "num_train_epochs", "x"),
        ("state", "is_hyper_param_search", 0),
        ("state", "nosuch", 1),
        ("record", "loss", float("nan")),
        ("record", "seconds", -5),
        ("record", "began_at", "x"),
        ("record", "sha256", []),
        ("record", "sha256", {"/dev/zero": "x"}),
    ],
)
def test_a_state_that_no_training_writes_is_refused(finished, tmp_path, where, name, value):
    """global_step 10**30 was a training that is over: exit 0, with the weights of step 1."""
    checkpoint = Path(shutil.copytree(finished / "checkpoint-4", tmp_path / "checkpoint-4"))
    resume.refuse_damage(checkpoint)
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text())
    (state if where == "state" else state["stateful_callbacks"]["Record"]["attributes"])[name] = value
    path.write_text(json.dumps(state))
    with pytest.raises(exits.BadRequest, match=f"trainer_state.json: cannot be read .its {name} is "):
        resume.refuse_damage(checkpoint)


def test_a_checkpoint_without_a_record_is_resumed_and_keeps_one(finished, tiny_model, pairs, tmp_path):
    """One that Hugging Face's own Trainer wrote."""
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    shutil.rmtree(out / "checkpoint-4")
    path = out / "checkpoint-2/trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["Record"]
    path.write_text(json.dumps(state))
    words = ["--max_steps=4", "--save_steps=2", "--resume_from_checkpoint"]
    assert run("run_glue", *glue_words(tiny_model, pairs, out, *words)) == 0
    state = json.loads((out / "checkpoint-4/trainer_state.json").read_text())
    assert state["stateful_callbacks"]["Record"]["attributes"]["settings"]["--max_steps"] == 4


def first_moment(name, change):
    def spoil(saved):
        saved["state"][0][name] = change(saved["state"][0][name])
        return saved

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda saved: [saved], "holds no state and param_groups"),
        (lambda saved: {"state": saved["state"]}, "holds no state and param_groups"),
        (lambda saved: saved | {"state": {}}, "holds no moments"),
        (lambda saved: saved | {"param_groups": saved["param_groups"][:1]}, "parameter group"),
        (first_moment("exp_avg", lambda moment: moment[:1]), r"exp_avg of parameter 0 is \[1"),
        (
            first_moment("exp_avg", lambda moment: moment * float("nan")),
            "exp_avg of parameter 0 has values that are no",
        ),
        (first_moment("exp_avg_sq", lambda moment: moment - 1), "exp_avg_sq of parameter 0 has negative values"),
    ],
)
def test_moments_of_another_model_are_refused(finished, tiny_model, pairs, tmp_path, capsys, spoil, words):
    """In a checkpoint without checksums: no zeros, no NaN, and no end in torch's own code."""
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    shutil.rmtree(out / "checkpoint-4")
    path, moments = out / "checkpoint-2/trainer_state.json", out / "checkpoint-2/optimizer.pt"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["Record"]
    path.write_text(json.dumps(state))
    torch.save(spoil(torch.load(moments, weights_only=True)), moments)
    words_of_run = ["--max_steps=4", "--save_steps=2", "--resume_from_checkpoint"]
    assert run("run_glue", *glue_words(tiny_model, pairs, out, *words_of_run)) == 2
    assert re.search(f"optimizer.pt: cannot be read .*{words}", capsys.readouterr().err)


@pytest.mark.parametrize("when", ["epoch", "steps"])
@pytest.mark.parametrize("evaluation", [1, 3])  # the third is that of the end
def test_a_run_stopped_amid_an_evaluation_ends_as_if_it_was_not(
    tiny_model, pairs, tmp_path, monkeypatch, when, evaluation
):
    steps = [f"--eval_strategy={when}", f"--save_strategy={when}", "--eval_steps=8", "--save_steps=8"]
    steps += ["--num_train_epochs=3", "--load_best_model_at_end", "--metric_for_best_model=loss"]
    steps += ["--learning_rate=2e-2"]  # too high: the best is not the last
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("run_glue", *glue_words(tiny_model, pairs, whole, *steps)) == 0
    batches, listen = [], StopBetweenSteps.on_prediction_step
    a_batch = (evaluation - 1) * 5 + 2  # of 33 rows in batches of 8

    def stopped_once(*args, **kwargs):
        batches.append(1)
        if len(batches) == a_batch:
            signal.raise_signal(signal.SIGTERM)
        listen(*args, **kwargs)

    monkeypatch.setattr(StopBetweenSteps, "on_prediction_step", stopped_once)
    words = glue_words(tiny_model, pairs, parts, *steps)
    assert run("run_glue", *words) == exits.PREEMPTED
    assert len(batches) == a_batch and (parts / f"checkpoint-{8 * evaluation}" / "trainer_state.json").exists()
    assert not (parts / "model.safetensors").exists()
    assert run("run_glue", *words, "--resume_from_checkpoint") == 0
    states = [json.loads((folder / "trainer_state.json").read_text()) for folder in (whole, parts)]
    for state in states:
        state["evaluations"] = [(log["step"], log["eval_loss"]) for log in state["log_history"] if "eval_loss" in log]
    assert len(states[0]["evaluations"]) == 3
    for name in ("evaluations", "best_global_step", "best_metric"):
        assert states[0][name] == states[1][name]
    assert Path(states[1]["best_model_checkpoint"]) == parts / f"checkpoint-{states[0]['best_global_step']}"
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert all((expected[name] == found[name]).all() for name in expected)


@pytest.mark.parametrize(("micro_step", "saved"), [(3, []), (18, [3]), (22, [4])])
def test_a_run_stopped_amid_a_step_goes_on_from_the_step_before(
    tiny_model, pairs, tmp_path, monkeypatch, micro_step, saved
):
    """Of the 5 looks amid each step: before the first step there is nothing to save; the fourth is saved already."""
    steps = ["--max_steps=6", "--save_steps=4", "--per_device_train_batch_size=2", "--gradient_accumulation_steps=6"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("run_glue", *glue_words(tiny_model, pairs, whole, *steps)) == 0
    micro_steps, listen = [], StopBetweenSteps.on_substep_end

    def stopped_once(*args, **kwargs):
        micro_steps.append(1)
        if len(micro_steps) == micro_step:
            signal.raise_signal(signal.SIGTERM)
        listen(*args, **kwargs)

    monkeypatch.setattr(StopBetweenSteps, "on_substep_end", stopped_once)
    words = glue_words(tiny_model, pairs, parts, *steps)
    assert run("run_glue", *words) == exits.PREEMPTED
    assert len(micro_steps) == micro_step
    assert [path.name for path in parts.glob("checkpoint-*")] == [f"checkpoint-{step}" for step in saved]
    assert run("run_glue", *words, "--resume_from_checkpoint") == 0
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert all((expected[name] == found[name]).all() for name in expected)


def test_a_checkpoint_elsewhere_is_read_but_the_used_folder_refused(tiny_model, pairs, tmp_path, capsys):
    words = glue_words(tiny_model, pairs, tmp_path / "one", "--max_steps=2", "--save_steps=1")
    assert run("run_glue", *words) == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    words += [f"--output_dir={other}", f"--resume_from_checkpoint={tmp_path / 'one' / 'checkpoint-1'}"]
    assert run("run_glue", *words) == exits.BAD_REQUEST
    assert f"--output_dir {other}: is in use" in capsys.readouterr().err
    assert run("run_glue", *words, "--overwrite_output_dir") == 0
    assert (tmp_path / "other.1" / "thesis.txt").read_text() == "mine" and (other / "model.safetensors").exists()


def test_the_labels_of_a_model_trained_elsewhere_keep_their_places(tiny_model, tmp_path):
    """A model that numbers MNLI's labels in another order, and shouts them: evaluated, predicted, trained on."""
    theirs = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_model, id2label=dict(enumerate(theirs)), label2id={name: i for i, name in enumerate(theirs)}
    )
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias[:] = torch.tensor([0.0, 1.0, 5.0])  # always entailment
    shouting = tmp_path / "shouting"
    model.save_pretrained(shouting)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(shouting)
    rows = [{"premise": f"w{i} film", "hypothesis": "good"} for i in range(8)]
    for file, labels in (("names", ["entailment"] * 5 + ["contradiction"] * 3), ("numbers", [0] * 5 + [2] * 3)):
        lines = [json.dumps({**row, "label": label}) for row, label in zip(rows, labels)]
        (tmp_path / f"{file}.jsonl").write_text("\n".join(lines))
        words = [f"--model_name_or_path={shouting}", "--task_name=mnli", f"--output_dir={tmp_path / 'o'}"]
        words += [f"--validation_file={tmp_path / f'{file}.jsonl'}", f"--test_file={tmp_path / f'{file}.jsonl'}"]
        assert run("run_glue", *words, "--do_eval", "--do_predict") == 0
        assert results(tmp_path / "o")["eval_accuracy"] == 5 / 8
        said = (tmp_path / "o" / "predict_results_mnli.txt").read_text().splitlines()[1:]
        assert said == [f"{i}\tentailment" for i in range(8)]
    words = [*words, "--do_train", f"--train_file={tmp_path / 'numbers.jsonl'}", f"--output_dir={tmp_path / 'p'}"]
    assert run("run_glue", *words, "--max_steps=1", "--learning_rate=1e-6", "--do_eval") == 0
    assert results(tmp_path / "p")["eval_accuracy"] == 5 / 8
    config = json.loads((tmp_path / "p" / "config.json").read_text())
    assert config["id2label"] == {"0": "contradiction", "1": "neutral", "2": "entailment"}
    assert results(tmp_path / "p")["train_loss"] == pytest.approx(  # 5 rows of 8 are what the head says
        (5 * 0.0247 + 3 * 5.0247) / 8, abs=0.01
    )


def test_what_is_saved_holds_no_token(tiny_model, pairs, tmp_path):
    words = glue_words(tiny_model, pairs, tmp_path / "o", "--max_steps=1", "--save_steps=1", "--hub_token=hf_SECRET")
    assert run("run_glue", *words, "--token=hf_SECRET") == 0
    files = [path for path in (tmp_path / "o").rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if b"hf_SECRET" in path.read_bytes()]


def test_evaluation_counts_every_row_whatever_training_drops(tiny_model, pairs, tmp_path):
    words = glue_words(tiny_model, pairs, tmp_path / "o", "--do_eval", "--num_train_epochs=1")
    words += ["--dataloader_drop_last", "--per_device_train_batch_size=10", "--per_device_eval_batch_size=10"]
    assert run("run_glue", *words) == 0
    state = json.loads((tmp_path / "o" / "trainer_state.json").read_text())
    assert state["global_step"] == 6 and results(tmp_path / "o")["eval_samples"] == 33  # 64 and 33 rows


def test_gradient_checkpointing_changes_no_gradient(tiny_model, pairs, tmp_path):
    """Layers computed twice must see the same dropout masks twice."""
    twice = ["--max_steps=3", "--pad_to_max_length", "--gradient_checkpointing"]
    assert run("run_glue", *glue_words(tiny_model, pairs, tmp_path / "twice", *twice)) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_cpu, "replace_attention", lambda model: DropoutBits())  # torch's own masks
        assert run("run_glue", *glue_words(tiny_model, pairs, tmp_path / "once", *twice[:2])) == 0
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "twice"))
    assert all((expected[name] == found[name]).all() for name in expected)


def test_a_used_folder_is_kept_under_another_name(tiny_model, pairs, tmp_path, capsys):
    words = glue_words(tiny_model, pairs, tmp_path / "o", "--max_steps=1")
    assert run("run_glue", *words) == 0
    assert run("run_glue", *words) == exits.BAD_REQUEST
    assert "is in use" in capsys.readouterr().err
    assert run("run_glue", *words, "--train_file=/none.tsv", "--overwrite_output_dir") == exits.BAD_REQUEST
    assert not (tmp_path / "o.1").exists()  # nothing moves before all is checked
    assert run("run_glue", *words, "--overwrite_output_dir") == 0
    assert (tmp_path / "o.1" / "model.safetensors").exists() and (tmp_path / "o" / "model.safetensors").exists()


def broken_model(tiny_model, tmp_path, change):
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change(folder)
    return folder


def without_encoder(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if ".encoder." not in k}, folder / "model.safetensors", {"format": "pt"}
    )


def without_tokenizer(folder):
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)


def without_padding_token(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": None}))


def keeping_capitals(folder):
    backend = json.loads((folder / "tokenizer.json").read_text())
    backend["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_encoder, "the encoder did not load"),
        (without_tokenizer, "model without a tokenizer"),
        (without_padding_token, "has no padding token"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model"),
        (lambda folder: (folder / "config.json").unlink(), "neither a model"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(tiny_model, pairs, tmp_path, capsys, change, said):
    folder = broken_model(tiny_model, tmp_path, change)
    assert run("run_glue", *glue_words(folder, pairs, tmp_path / "o")) == exits.BAD_REQUEST
    assert said in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_capitals_that_the_vocabulary_does_not_have(tiny_model, tmp_path, capsys):
    folder = broken_model(tiny_model, tmp_path, keeping_capitals)
    (tmp_path / "train.tsv").write_text("sentence1\tsentence2\tlabel\nGOOD FILM\tTHE FILM\t1\nBAD FILM\tYES\t0\n")
    assert (
        run("run_glue", *glue_words(folder, tmp_path, tmp_path / "o", f"--validation_file={tmp_path / 'train.tsv'}"))
        == 2
    )
    assert "train.tsv, line 2: 100 % of the tokens are [UNK]: the text has capitals" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max_seq_length=129"], "128 positions: at most 128"),
        (["--max_seq_length=0"], "--max_seq_length 0: must be at least 1"),
        (["--task_name=mrcp"], "the tasks are"),
        (["--model_name_or_path=/no/model"], "no such folder"),
        (["--model_name_or_path=no/model"], "error: model no/model: "),
        (["--do_predict"], "--do_predict needs --test_file"),
        (["--seed=x"], "invalid int value"),
        (["--optim=lomo"], "You need to install `lomo_optim`"),
        (["--optim_args=x"], "transformers does not start with these arguments: not enough values"),
        (['--lr_scheduler_kwargs={"no": 1}'], "unexpected keyword argument 'no'"),
        (["--lr_scheduler_type=cosine_with_min_lr"], "min_lr"),
        (["--dataloader_persistent_workers"], "persistent_workers option needs num_workers > 0"),
        (["--dataloader_drop_last", "--per_device_train_batch_size=65"], "64 examples are less than a batch"),
        (["--torch_compile", "--torch_compile_mode=nosuch"], "Unrecognized mode=nosuch"),
        ([f"--cache_dir={'x' * 300}"], "longer than a name may be"),
        (["--tokenizer_name=a b\nc"], "tokenizer of a b\\nc: "),
        (["--output_dir=/dev/null/o"], "/dev/null/o"),
    ],
)
def test_a_request_that_cannot_run(tiny_model, pairs, tmp_path, capsys, words, said):
    assert run("run_glue", *glue_words(tiny_model, pairs, tmp_path / "o", *words)) == exits.BAD_REQUEST
    error = capsys.readouterr().err
    assert said in error and error.count("error: ") == 1 and error.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in error and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("script", "more", "scores"),
    [
        ("run_glue", [], {"loss", "accuracy", "f1"}),
        ("run_qa", [], {"loss", "exact_match", "f1"}),
        ("run_qa", ["--version_2_with_negative"], {"HasAns_exact", "HasAns_f1", "best_exact", "best_f1"}),
    ],
)
def test_a_score_that_the_task_does_not_have_is_named_before_anything_starts(
    tiny_model, pairs, squad_file, tmp_path, capsys, script, more, scores
):
    """Of those that are named instead each is one that the evaluation comes to."""
    out = tmp_path / "o"
    glue = glue_words(tiny_model, pairs, out, "--do_eval", "--max_steps=1")
    words = (
        [*glue, *more]
        if script == "run_glue"
        else qa_words(tiny_model, squad_file, out, "--do_train", "--do_eval", "--max_steps=1", *more)
    )
    assert run(script, *words, "--metric_for_best_model=majority_class") == exits.BAD_REQUEST
    start, _, known = capsys.readouterr().err.strip().rpartition(": ")
    assert start == "error: --metric_for_best_model majority_class: is none of the scores of this task"
    assert not out.exists()
    assert run(script, *words) == 0
    assert scores <= set(known.split(", ")) and {f"eval_{name}" for name in known.split(", ")} <= results(out).keys()


def test_labels_not_in_the_training_set(tiny_model, tmp_path, capsys):
    for name, label in (("train", "a"), ("dev", "c")):
        (tmp_path / f"{name}.tsv").write_text(f"text\tlabel\nw1\ta\nw2\tb\nw3\t{label}\n")
    words = [w for w in glue_words(tiny_model, tmp_path, tmp_path / "o", "--do_eval") if "mrpc" not in w.lower()]
    assert run("run_glue", *words) == exits.BAD_REQUEST
    assert "dev.tsv, line 4: 'c'" in capsys.readouterr().err


def test_a_diverging_run_ends_with_3_and_saves_nothing(tiny_model, pairs, tmp_path, capsys):
    def poison(folder):
        weights = load_file(folder / "model.safetensors")
        weights["bert.embeddings.word_embeddings.weight"][:] = 1e38  # the encoder adds up to infinity
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    folder = broken_model(tiny_model, tmp_path, poison)
    assert run("run_glue", *glue_words(folder, pairs, tmp_path / "o", "--save_steps=1")) == exits.DIVERGED
    assert "step 1: the gradient norm is nan" in capsys.readouterr().err
    assert not list((tmp_path / "o").glob("checkpoint-*"))


# ---- processes of their own


@pytest.fixture
def own_port(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))


def command(script, *words):
    return [sys.executable, str(FOLDERS[script] / f"{script}.py"), "--no_cuda", *map(str, words)]


NO_SOCKETS = """
import runpy, socket, sys
def refuse(*args): raise AssertionError(f"a socket was opened: {args}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", ["run_glue", "run_qa"])
def test_offline_no_socket_is_opened(script, tiny_model, pairs, squad_file, tmp_path):
    out = tmp_path / "o"
    glue = glue_words(tiny_model, pairs, out, "--do_eval", "--max_steps=1")
    words = (
        glue
        if script == "run_glue"
        else qa_words(tiny_model, squad_file, out, "--do_train", "--do_eval", "--max_steps=1")
    )
    python, *rest = command(script, *words)
    done = subprocess.run([python, "-c", NO_SOCKETS, *rest], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "all_results.json").exists()


def wait_for(path, process, seconds=120):
    limit = time.monotonic() + seconds
    while not any(path.parent.glob(path.name)):
        assert process.poll() is None and time.monotonic() < limit, process.poll()
        time.sleep(0.05)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGKILL, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)]
)
def test_a_stopped_run_continues_to_the_same_weights(tiny_model, pairs, tmp_path, number):
    out = tmp_path / "stopped"
    steps = ["--num_train_epochs=40", "--save_steps=20", "--save_total_limit=2"]
    words = glue_words(tiny_model, pairs, out, *steps)
    process = subprocess.Popen(command("run_glue", *words), stdout=subprocess.DEVNULL)
    wait_for(out / "checkpoint-*", process)
    process.send_signal(number)
    status = process.wait(60)
    if status == 0:
        pytest.skip("the run was over before the signal came")
    assert status == (-9 if number == signal.SIGKILL else exits.PREEMPTED)
    if number == signal.SIGUSR1:
        return  # the same handler as SIGTERM
    assert run("run_glue", *words, "--resume_from_checkpoint") == 0
    assert run("run_glue", *glue_words(tiny_model, pairs, tmp_path / "whole", *steps)) == 0
    expected, found = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", out))
    assert all((expected[name] == found[name]).all() for name in expected)


@pytest.mark.mpi
@pytest.mark.parametrize("script", ["run_glue", "run_qa"])
def test_two_ranks_are_one_run(script, tiny_model, pairs, squad_file, tmp_path, mpirun, own_port):
    out = tmp_path / "o"
    if script == "run_glue":
        words = glue_words(tiny_model, pairs, out, "--do_eval", "--do_predict", f"--test_file={pairs / 'test.tsv'}")
    else:
        words = qa_words(tiny_model, squad_file, out, "--do_train", "--do_eval")
    steps = ["--max_steps=30", "--per_device_train_batch_size=4", "--save_strategy=no"]
    ranks = [mpirun, "--allow-run-as-root", "--bind-to", "none", "--oversubscribe", "-n", "2"]
    done = subprocess.run([*ranks, *command(script, *words, *steps)], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("made anew") == 1
    assert results(out)["eval_samples"] == (33 if script == "run_glue" else 12)
    if script == "run_glue":
        assert len((out / "predict_results_mrpc.txt").read_text().splitlines()) == 10
    else:
        assert len(json.loads((out / "predictions.json").read_text())) == 12
    alone = tmp_path / "alone"
    more = ["--do_eval", f"--output_dir={alone}", f"--model_name_or_path={out}", f"--cache_dir={tmp_path / 'cache'}"]
    assert run(script, *[word for word in words if word != "--do_train"], *more) == 0
    for name in ("eval_accuracy", "eval_exact_match", "eval_f1"):
        assert results(alone).get(name) == results(out).get(name)
    predictions = "predict_results_mrpc.txt" if script == "run_glue" else "predictions.json"
    assert (alone / predictions).read_text() == (out / predictions).read_text()


@pytest.mark.mpi
@pytest.mark.parametrize(("number", "more_words"), [("2", []), ("3", []), ("3", ["--gradient_checkpointing"])])
def test_ranks_resume_amid_a_later_epoch(tiny_model, pairs, tmp_path, mpirun, own_port, number, more_words):
    """Stopped at step 6 of 8, in a later epoch: the weights are those of a run without interruption.

    A ring of three adds an element up in an order that goes by its place in a bucket of DDP's.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steps = ["--max_steps=8", "--save_steps=6", "--gradient_accumulation_steps=2", "--per_device_train_batch_size=4"]
    steps += more_words
    ranks = [mpirun, "--allow-run-as-root", "--bind-to", "none", "--oversubscribe", "-n", number]
    for out, more in ((whole, []), (parts, ["--resume_from_checkpoint"])):
        if more:
            shutil.copytree(whole / "checkpoint-6", parts / "checkpoint-6")
        words = command("run_glue", *glue_words(tiny_model, pairs, out, *steps, *more))
        done = subprocess.run([*ranks, *words], capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert all((expected[name] == found[name]).all() for name in expected)


DIES_WHILE_SAVING = f"""
import os, runpy, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from central.runtime import rank
here = rank.from_environment()
rank.export(here)
from transformers import Trainer

def die(trainer, folder):
    time.sleep(2)  # rank 0 has long written its own state
    os.kill(os.getpid(), signal.SIGKILL)

if here.rank == 1:
    Trainer._save_rng_state = die
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.mpi
def test_a_checkpoint_that_lacks_the_state_of_a_rank_is_none(tiny_model, pairs, tmp_path, mpirun, own_port):
    """Rank 1 is killed before it has saved its random numbers: the folder must not pass as complete."""
    out = tmp_path / "o"
    python, *rest = command("run_glue", *glue_words(tiny_model, pairs, out, "--max_steps=4", "--save_steps=2"))
    ranks = [mpirun, "--allow-run-as-root", "--bind-to", "none", "--oversubscribe", "-n", "2"]
    done = subprocess.run([*ranks, python, "-c", DIES_WHILE_SAVING, *rest], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert (out / "checkpoint-2/rng_state_0.pth").exists(), done.stderr
    assert output_folder.newest_trainer_checkpoint(out) is None


@pytest.mark.mpi
def test_a_bad_request_of_two_ranks_names_a_rank_and_ends(pairs, tmp_path, mpirun, own_port):
    words = command("run_glue", *glue_words(Path("/no/model"), pairs, tmp_path / "o"))
    ranks = [mpirun, "--allow-run-as-root", "--bind-to", "none", "--oversubscribe", "-n", "2"]
    done = subprocess.run([*ranks, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == exits.BAD_REQUEST
    assert "no such folder" in done.stderr and "rank 0 on " in done.stderr
