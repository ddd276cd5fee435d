"""A second objective made of losses there are is one line: here the masked words alone, trained, scored and saved."""

import json

import h5py
import pytest
from pretraining_helpers import call, checkpoints, logged, make_corpus, script_argv, write_config
from transformers import BertForMaskedLM

from central.errors import BadRequest
from pretraining.data.hdf5 import KEYS
from pretraining.objective import MLM, OBJECTIVES, Objective


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
