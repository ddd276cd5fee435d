"""A second objective made of losses there are is one line: here the masked words alone, trained, scored and saved."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from matplotlib.figure import Figure
from pretraining_helpers import call, checkpoints, logged, make_corpus, script_argv, write_config
from transformers import BertForMaskedLM

from central.errors import BadRequest
from pretraining.data.hdf5 import KEYS
from pretraining.objective import MLM, OBJECTIVES, Objective
from pretraining.reports import DlLogger, History, draw_training


@pytest.fixture
def corpus(tmp_path):
    """Shards without the column that next sentences need."""
    folder = make_corpus(tmp_path / "corpus")
    for path in folder.glob("*.hdf5"):
        with h5py.File(path, "a") as file:
            del file["next_sentence_labels"]
    return folder


def test_masked_words_alone(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "mlm", Objective((MLM,), "BertForMaskedLM"))
    words = [*script_argv(corpus, write_config(tmp_path / "config.json"), tmp_path), "--objective", "mlm"]
    assert call(words) == 0
    training, held_out = logged(tmp_path)
    assert {"mlm_loss", "mlm_accuracy"} <= training[6].keys() and "nsp_loss" not in training[6]
    assert training[6]["average_loss"] == pytest.approx(training[6]["mlm_loss"], rel=1e-6)
    assert {"eval_mlm_loss", "eval_unigram_loss"} <= held_out[1, 6].keys() and "eval_nsp_loss" not in held_out[1, 6]
    assert "NSP" not in capsys.readouterr().out
    folder = checkpoints(tmp_path)[-1]
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    _, found = BertForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert call([*words, "--resume_from_checkpoint", "--max_steps", "8"]) == 0
    assert (tmp_path / "results" / "training.png").exists()


def test_rows_without_what_an_objective_needs_are_refused(corpus, tmp_path):
    with pytest.raises(BadRequest, match="no dataset next_sentence_labels"):
        call(script_argv(corpus, write_config(tmp_path / "config.json"), tmp_path))


def test_the_first_objective_asks_for_every_column_of_a_shard():
    assert set(OBJECTIVES["mlm_nsp"].columns) == set(KEYS)


def test_means_are_by_the_count_of_each_loss():
    found = OBJECTIVES["mlm_nsp"].means((6.0, 3.0, 2.0, 1.0), (4, 1))
    assert found == {"mlm_loss": 1.5, "nsp_loss": 3.0, "mlm_accuracy": 0.5, "nsp_accuracy": 1.0}
    assert OBJECTIVES["mlm_nsp"].means((6.0, 0.0, 2.0, 0.0), (1, 0))["nsp_loss"] == 0


def test_an_evaluation_is_told_with_its_baselines():
    objective = OBJECTIVES["mlm_nsp"]
    rows = SimpleNamespace(
        masked_positions=np.array([[1, 2], [3, 0]]),
        masked_ids=np.array([[0, 2], [1, 2]]),
        next_sentence_labels=np.array([[1, 0], [1, 0]]),
        next_sentence_weights=np.array([[1, 1], [1, 0]]),
    )
    baselines = objective.baselines(rows, np.array([3, 0, 1]))
    unigram = -(math.log(4 / 7) + math.log(2 / 7) + math.log(1 / 7)) / 3
    assert baselines == pytest.approx({"eval_unigram_loss": unigram, "eval_nsp_majority": 2 / 3})
    scores = {"eval_mlm_loss": 2.0, "eval_mlm_accuracy": 0.25, "eval_nsp_loss": 0.5, "eval_nsp_accuracy": 0.75}
    assert objective.summary({**scores, **baselines}) == (
        f"MLM loss 2.0000 (unigram {unigram:.4f}), MLM accuracy 0.250, NSP accuracy 0.750 (majority 0.667)"
    )
    assert objective.final({**scores, **baselines}) == {"eval_nsp_accuracy": 0.75, "eval_nsp_majority": 2 / 3}


def test_pictures_are_of_numbers_that_are_reported():
    panels = OBJECTIVES["mlm_nsp"].panels
    assert [(panel.label, panel.number, panel.baseline) for panel in panels] == [
        ("loss (MLM + NSP)", "average_loss", ""),
        ("held-out MLM loss", "eval_mlm_loss", "eval_unigram_loss"),
        ("held-out NSP accuracy", "eval_nsp_accuracy", "eval_nsp_majority"),
    ]


TRAINED = {"average_loss": 9.0, "learning_rate": 0.1, "sequences_per_second": 3.0}
EVALUATED = {"eval_mlm_loss": 8.0, "eval_unigram_loss": 7.0}


@pytest.mark.parametrize(
    ("entries", "labels"),
    [
        ([], [""]),
        ([EVALUATED], ["held-out MLM loss"]),
        ([TRAINED], ["loss (MLM)", "learning rate", "sequences / s"]),
        ([TRAINED, EVALUATED], ["loss (MLM)", "held-out MLM loss", "learning rate", "sequences / s"]),
    ],
    ids=["nothing", "an evaluation", "a training", "both"],
)
def test_a_picture_has_a_panel_for_what_there_is(tmp_path, monkeypatch, entries, labels):
    """2.2 inches each and one for what is around them; the last one, the throughput, begins at 0."""
    objective, figures = Objective((MLM,), "BertForMaskedLM"), []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: (figures.append(figure), path.touch()))
    history = History(objective)
    for step, entry in enumerate(entries):
        history.add([0, step], entry)
    draw_training(history, tmp_path / "a.png", "title", objective)
    (figure,) = figures
    assert [axis.get_ylabel() for axis in figure.axes] == labels
    assert figure.get_figheight() == pytest.approx(1 + 2.2 * len(labels))
    assert figure.axes[-1].get_ylim()[0] == 0


def test_the_package_dllogger_writes_where_it_is_installed(tmp_path, monkeypatch):
    class Backend:
        def __init__(self, verbosity, path, append):
            self.path, self.lines = Path(path), []
            self.path.open("a" if append else "w").close()

        def log(self, timestamp, elapsed, step, data):
            self.lines.append(json.dumps([step, data]))

        def flush(self):
            with self.path.open("a") as file:
                print(*self.lines, sep="\n", file=file)

    package = SimpleNamespace(JSONStreamBackend=Backend, Verbosity=SimpleNamespace(VERBOSE=1))
    monkeypatch.setitem(sys.modules, "dllogger", package)
    for step in (1, 2):
        assert DlLogger(tmp_path / "log.json", False, OBJECTIVES["mlm_nsp"]).log([0, step], {"a": step})
    assert list(map(json.loads, (tmp_path / "log.json").open())) == [[[0, 1], {"a": 1}], [[0, 2], {"a": 2}]]
