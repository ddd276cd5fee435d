"""run_ner.py: entities of words, their scores, and a run from end to end; the parts of a batch count their words."""

import json

import numpy as np
import pytest
import torch
from finetuning_fixtures import WORDS
from test_finetuning_scripts import own_cache, results, run  # noqa: F401
from token_classification import IGNORED, TokenClassification, entities, entity_scores, lists
from transformers import AutoModelForTokenClassification, AutoTokenizer, TrainingArguments, pipeline

from central.finetuning.arguments import ReferenceFlags
from central.finetuning.batching import PartsCollator, cheapest_parts, one_part
from central.finetuning.tables import Table
from central.finetuning.trainer import FineTuningTrainer
from central.runtime import exits
from central.runtime.device import open_device
from central.runtime.exits import BadRequest
from central.runtime.rank import Rank, StopRequest

pytest_plugins = ("finetuning_fixtures",)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", []),
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("I-PER I-PER I-LOC", [("PER", 0, 2), ("LOC", 2, 3)]),  # begun without B-
        ("O I-PER", [("PER", 1, 2)]),
        ("B-per-son I-per-son", [("son", 0, 2)]),
        ("noun verb verb", [("noun", 0, 1), ("verb", 1, 3)]),
    ],
)
def test_entities_of_tags(tags, found):
    assert list(entities(tags.split())) == found


def test_a_whole_entity_counts_once_and_a_part_of_it_not():
    true, said = [["B-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "O", "O", "B-LOC"]]
    assert entity_scores(true, said) == {
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "accuracy": 0.75,
        "majority_class": 0.25,
    }
    nothing = entity_scores(true, [["O"] * 4])
    assert nothing["f1"] == nothing["precision"] == nothing["recall"] == 0


def test_lists_as_json_has_them_or_as_text_in_a_table():
    table = Table({"tokens": [["a", "b"], '["c"]'], "ner_tags": [[0, 1], "[2]"], "bad": ["a b", None]}, "f.csv", "")
    assert lists(table, "tokens") == [["a", "b"], ["c"]] and lists(table, "ner_tags") == [["0", "1"], ["2"]]
    with pytest.raises(BadRequest, match="f.csv, row 1; f.csv, row 2"):
        lists(table, "bad")
    with pytest.raises(BadRequest, match="no column 'words' among tokens, ner_tags, bad: --text_column_name"):
        lists(table, "words")


def sentences(count):
    """Names are "good" and "bad film"; the other words, of which some have two tokens, are outside."""
    rng = np.random.default_rng(3)
    others = [word for word in WORDS.split() if word not in ("good", "bad", "film")] + ["abc", "x9"]
    for _ in range(count):
        words, tags = [], []
        for _ in range(rng.integers(1, 5)):
            few = list(rng.choice(others, rng.integers(1, 4)))
            words += few + (["good"] if rng.integers(2) else ["bad", "film"])
            tags += ["O"] * len(few) + (["B-A"] if words[-1] == "good" else ["B-B", "I-B"])
        yield {"tokens": words, "ner_tags": tags}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words_of(model, tmp_path, *more):
    rows = list(sentences(120))
    files = [write(tmp_path / "train.jsonl", rows[:80]), write(tmp_path / "dev.jsonl", rows[80:110])]
    return [
        *(f"--model_name_or_path={model}", f"--train_file={files[0]}", f"--validation_file={files[1]}"),
        *(f"--output_dir={tmp_path / 'o'}", "--do_train", "--do_eval", "--max_seq_length=64", "--learning_rate=3e-3"),
        *(f"--cache_dir={tmp_path / 'cache'}", *more),
    ]


def test_it_trains_evaluates_predicts_and_its_card_works(tiny_model, tmp_path, capsys):
    rows = list(sentences(120))[110:]
    test = write(tmp_path / "test.jsonl", [{"tokens": row["tokens"]} for row in rows])
    words = words_of(tiny_model, tmp_path, "--num_train_epochs=10", "--do_predict", f"--test_file={test}")
    assert run("run_ner", *words) == 0
    found, out = results(tmp_path / "o"), tmp_path / "o"
    assert found["eval_f1"] > 0.9 and found["eval_accuracy"] > found["eval_majority_class"]
    lines = (out / "predictions.txt").read_text().splitlines()
    right = [line.split() == row["ner_tags"] for line, row in zip(lines, rows, strict=True)]
    assert sum(right) > 8
    first = json.loads((out / "predictions.jsonl").read_text().splitlines()[0])
    assert first["labels"] == lines[0].split() and len(first["probabilities"]) == len(first["tokens"])
    said = capsys.readouterr().out
    assert "words from 'tokens'; labels from 'ner_tags' (B-A, B-B, I-B, O)" in said
    card = (out / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    capsys.readouterr()
    exec(card.split("```python\n")[1].split("```")[0], {})  # what the card says
    assert capsys.readouterr().out.startswith("[")
    assert pipeline("token-classification", str(out), aggregation_strategy="first")("it is good")[0]["word"] == "good"
    again = [word for word in words if word != "--do_train"]
    again += [f"--model_name_or_path={out}", f"--output_dir={tmp_path / 'again'}"]
    assert run("run_ner", *again) == 0
    assert results(tmp_path / "again")["eval_f1"] == found["eval_f1"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "as many labels as words are needed"),
        ({"tokens": ["a"], "ner_tags": ["B-C"]}, "'B-C'"),
        ({"tokens": "a b", "ner_tags": ["O"]}, "needs a list of words or labels in every row"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tiny_model, tmp_path, capsys, row, said):
    bad = write(tmp_path / "bad.jsonl", [{"tokens": ["a"], "ner_tags": ["O"]}, row])
    words = words_of(tiny_model, tmp_path, f"--validation_file={bad}")
    assert run("run_ner", *words) == exits.BAD_REQUEST
    error = capsys.readouterr().err
    assert said in error and f"{bad}, line 2" in error


def test_a_tokenizer_that_takes_no_words_one_by_one(tiny_roberta, tmp_path, capsys):
    status = run("run_ner", *words_of(tiny_roberta, tmp_path, "--max_steps=2"))
    assert status == 0 or "add_prefix_space" in capsys.readouterr().err


def test_the_gradients_of_parts_add_up_to_those_of_the_batch(tiny_model, tmp_path):
    """Rows have different numbers of words: each part counts its own."""
    rng = np.random.default_rng(5)
    rows = []
    for length in sorted(rng.integers(4, 60, 11)):
        labels = rng.integers(0, 3, length)
        labels[rng.random(length) < rng.random()] = IGNORED
        labels[0] = 1
        rows.append({"input_ids": rng.integers(5, 60, length), "labels": labels})
    found = []
    for cut in (one_part, lambda lengths: cheapest_parts(lengths, cost=10)):
        torch.manual_seed(0)
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = AutoModelForTokenClassification.from_pretrained(tiny_model, num_labels=3, **none)
        trainer = FineTuningTrainer(
            model=model,
            args=TrainingArguments(output_dir=str(tmp_path / "o"), use_cpu=True, report_to=[]),
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
            task=TokenClassification,
            device=open_device("cpu", "eager", "fp32", Rank()),
            flags=ReferenceFlags(),
            pad_to_max_length=False,
            max_seq_length=64,
            stop=StopRequest(),
        )
        batch = PartsCollator(trainer.data_collator, cut)(rows)
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer.training_step(model, batch)
        found.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (whole_loss, whole), (parts_loss, parts) = found
    torch.testing.assert_close(parts_loss, whole_loss)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6)
