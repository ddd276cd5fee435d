"""The comparison of fine-tunings: its tables by hand-made numbers, and runs that are not made twice."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import finetuning_comparison
from finetuning_comparison import Benchmark, main, score_table, speed_table

TASK = Benchmark("mrpc", "s.py", (), ("f1",), 8, 16, 1, {"peer_padded": 2.5, "peer_dynamic": 1.4}, sample=None)


def scores(side, *values):
    return [
        {"side": side, "number": i, "f1": v, "samples_per_second": 5, "first_step_after": 1}
        for i, v in enumerate(values)
    ]


@pytest.mark.parametrize(("ours", "verdict"), [((1.0, 2.0, 3.0), "ok"), ((0.0, 1.0, 2.0), "BELOW")])
def test_means_are_compared_by_the_standard_error_of_their_difference(ours, verdict):
    lines = score_table([*scores("ours", *ours), *scores("peer_padded", 2.0, 2.5, 3.0)], ["f1"])
    (line,) = [line for line in lines if line.startswith("f1") and "peer_padded" in line]
    assert "mean 2.5000, deviation 0.5000, 3 seeds" in line
    assert "standard error of the difference 0.6455" in line and line.endswith(verdict)  # sqrt(1 / 3 + 0.25 / 3)


def test_a_ratio_of_speeds_is_the_median_over_the_rounds_of_both():
    rates = {"ours": (30, 20, 60, 1), "peer_padded": (10, 10, 10)}
    records = [
        {"side": side, "number": i, "samples_per_second": rate, "first_step_after": 2}
        for side, found in rates.items()
        for i, rate in enumerate(found)
    ]
    lines = speed_table(records, {"peer_padded": 2.5})
    assert len(lines) == 2 and lines[1].endswith("ours is 3.00 x (target 2.5)") and "3 rounds" in lines[1]


def test_a_run_that_is_in_the_file_is_not_made_again(tmp_path, monkeypatch, capsys):
    made = []

    def run(benchmark, args, side, number, folder):
        made.append((side, number))
        return {"f1": 0.5, "samples_per_second": 2.0, "first_step_after": 1.0}

    monkeypatch.setattr(finetuning_comparison, "full_run", run)
    monkeypatch.setattr(finetuning_comparison, "segment", run)
    file = tmp_path / "results.jsonl"

    def compare(*more):
        words = ["--model=m", "--train_file=t", "--validation_file=v", f"--results={file}", *more]
        monkeypatch.setattr(sys, "argv", ["benchmark", *words])
        made.clear()
        main(TASK, "")

    compare("--seeds", "1", "2", "--sides", "ours", "peer_dynamic")
    assert made == [("ours", 1), ("peer_dynamic", 1), ("ours", 2), ("peer_dynamic", 2)]
    compare("--seeds", "2", "3", "--sides", "ours")
    assert made == [("ours", 3)]
    compare("--seeds", "3", "--sides", "ours", "--data_type=fp32")
    assert made == [("ours", 3)]  # other settings, another run
    compare("--rounds", "1", "--sides", "ours")
    assert made == [("ours", 0)]
    assert len(file.read_text().splitlines()) == 7 and json.loads(file.read_text().splitlines()[0])["f1"] == 0.5
    capsys.readouterr()
    compare()
    assert made == [] and "mean 0.5000, deviation 0.0000, 3 seeds" in capsys.readouterr().out
