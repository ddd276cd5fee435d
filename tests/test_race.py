"""The race of benchmarks/race.py: its arithmetic by hand-made curves, and a whole one of seconds."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
import race
import race_peer
import race_results


@pytest.mark.parametrize(("target", "minutes"), [(6.0, 2.0), (5.5, 3.0), (5.0, 4.0), (7.5, 1.0), (4.9, None)], ids=str)
def test_a_loss_is_reached_on_the_line_between_two_points(target, minutes):
    assert race_results.minutes_to(target, np.array([1.0, 2, 4, 5]), np.array([7.0, 6, 5, 5.2])) == minutes


def test_as_many_steps_are_taken_as_fit_after_the_start():
    points = [{"step": 8, "seconds": 9.0}, {"step": 16, "seconds": 13.0}]  # 5 s, then half a second a step
    assert race.pace(points) == 0.5
    assert race.steps_within(60, points) == 110
    assert race.steps_within(1, points) == 2


def test_the_rivals_rows_are_labelled_where_they_are_masked_and_cut_to_the_longest(tmp_path):
    columns = {
        "input_ids": [[2, 4, 9, 3, 0, 0], [2, 4, 8, 4, 3, 0]],
        "input_mask": [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]],
        "segment_ids": [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]],
        "masked_lm_positions": [[1, 0], [1, 3]],
        "masked_lm_ids": [[7, 0], [6, 5]],
        "next_sentence_labels": [1, 0],
    }
    with h5py.File(tmp_path / "c_training_0.hdf5", "w") as file:
        for name, values in columns.items():
            file[name] = np.array(values, np.int8)
    loader = race_peer.DataLoader(race_peer.Rows(tmp_path), batch_size=2)
    batch = next(race_peer.micro_batches(loader))
    assert batch["labels"].tolist() == [[-100, 7, -100, -100, -100], [-100, 6, -100, 5, -100]]
    assert batch["input_ids"].tolist() == [[2, 4, 9, 3, 0], [2, 4, 8, 4, 3]]
    assert batch["next_sentence_label"].tolist() == [1, 0]


@pytest.mark.slow
def test_a_race_of_seconds_is_run_once_and_reported(tmp_path):
    words = [sys.executable, str(ROOT / "benchmarks/race.py"), "--text", "README.md", "LICENSE", "--minutes=0.1"]
    words += ["--seeds=1", "--size=tiny", "--vocab_size=500", "--batch_size=8", f"--output_dir={tmp_path / 'race'}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "race/race.json").read_text())
    names = ("timing_fp32_8", "timing_bf16_8", "seed_1")
    assert {f"{side}_{name}" for side in race.SIDES for name in names} < found["runs"].keys()
    assert len(found["runs"]) == 12  # and a sweep of three on either side
    for name, summary in found["summary"].items():
        assert 4 < summary["losses"][0] < 7  # ln 500 is 6.2
        assert name in done.stdout
    assert (tmp_path / "race/race.png").stat().st_size > 10_000
    again = subprocess.run([*words, "--report"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.splitlines()[1:] == done.stdout.splitlines()[-6:]
    other = subprocess.run([*words, "--batch_size=4"], cwd=ROOT, capture_output=True, text=True)
    assert other.returncode == 1 and "another --output_dir" in other.stderr
