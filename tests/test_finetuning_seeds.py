"""The summary of runs over seeds: mean, deviation, best, failed runs."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCORES = {42: 0.70, 43: 0.74, 45: 0.78}


def summary(folder, *more):
    words = [
        sys.executable,
        str(ROOT / "central" / "finetuning" / "summarize_seeds.py"),
        "--output_dir",
        str(folder),
        *more,
    ]
    return subprocess.run(words, capture_output=True, text=True)


@pytest.fixture
def runs(tmp_path):
    for seed, score in SCORES.items():
        (tmp_path / f"seed_{seed}").mkdir()
        results = {
            "eval_accuracy": score,
            "eval_loss": 1 - score,
            "eval_runtime": 9.0,
            "eval_samples": 8,
            "train_loss": 0.1,
        }
        (tmp_path / f"seed_{seed}" / "all_results.json").write_text(json.dumps(results))
    (tmp_path / "seed_44").mkdir()
    (tmp_path / "seed_42.1").mkdir()  # an earlier run, renamed
    return tmp_path


def test_mean_deviation_best_and_failed_runs(runs, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://no_notebook.backend")  # a notebook's, whose package is not here
    done = summary(runs)
    assert done.returncode == 0, done.stderr
    report = json.loads((runs / "seeds.json").read_text())
    assert [score["name"] for score in report["scores"]] == ["eval_accuracy", "eval_loss"]
    accuracy, loss = report["scores"]
    assert accuracy["mean"] == pytest.approx(statistics.fmean(SCORES.values()))
    assert accuracy["deviation"] == pytest.approx(statistics.stdev(SCORES.values()))
    assert (accuracy["best"], accuracy["best_seed"], loss["best_seed"]) == (0.78, 45, 45)
    assert report["failed"] == [44] and set(report["runs"]) == {"42", "43", "44", "45"}
    assert "failed: seed 44" in done.stdout and "0.7400" in done.stdout
    assert (runs / "seeds.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_of_earlier_requests_are_left_out(runs):
    done = summary(runs, "--seeds", "42", "43", "44")
    assert done.returncode == 0, done.stderr
    report = json.loads((runs / "seeds.json").read_text())
    assert set(report["runs"]) == {"42", "43", "44"} and report["failed"] == [44]
    assert report["scores"][0]["best"] == 0.74


def test_scores_that_an_earlier_request_left_are_not_those_of_a_failed_run(runs):
    done = summary(runs, "--seeds", "42", "43", "45", "--failed", "45")
    assert done.returncode == 0, done.stderr
    report = json.loads((runs / "seeds.json").read_text())
    assert report["failed"] == [45] and report["runs"]["45"] is None and report["scores"][0]["best"] == 0.74
    assert "failed: seed 45" in done.stdout


def test_a_folder_without_runs_or_without_scores(tmp_path):
    assert summary(tmp_path).returncode == 2
    (tmp_path / "seed_1").mkdir()
    done = summary(tmp_path)
    assert done.returncode == 2 and "--do_eval" in done.stderr
