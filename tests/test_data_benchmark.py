"""The comparison of benchmarks/data_prepare.py: what its checks notice, and a whole one of seconds."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
import data_peer
import data_prepare
from data_common import measured

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
WORDS = random.Random(1).choices(VOCAB[5:-1], k=6 * 20 * 10)
SENTENCES = [" ".join(WORDS[start : start + 10]) for start in range(0, len(WORDS), 10)]
TEXT = "\n\n".join("\n".join(SENTENCES[start : start + 20]) for start in range(0, len(SENTENCES), 20)) + "\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a text of six documents without a z, its vocabulary and the rows of both sides."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    (folder / "text.txt").write_text(TEXT)
    for side in data_prepare.NAMES:
        data_prepare.run(side, folder / "text.txt", folder / "vocab.txt", folder / side)
    return folder


@pytest.fixture
def outs(made, tmp_path):
    """The folder of each side, a copy."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return {side: tmp_path / side for side in data_prepare.NAMES}


def check(outs):
    folder = outs["ours"].parent
    data_prepare.check_content(outs, folder / "text.txt", folder / "vocab.txt")


def test_both_sides_hold_the_text(outs, capsys):
    check(outs)
    assert "the same 6 documents, 120 sentences and 1200 tokens" in capsys.readouterr().out
    for length in data_prepare.LENGTHS:
        found = {side: data_prepare.figures(out, length) for side, out in outs.items()}
        for values in found.values():
            assert 5 * 1200 / length < values["rows"] < 5 * 120  # the text five times, one sentence at least
            assert 0.2 < values["fill"] < 1 and 0.13 < values["masked"] < 0.17 and 0.2 < values["random next"] < 0.8


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_a_row_that_is_not_of_the_text_is_found(outs, side):
    path = data_prepare.files_of(outs[side], 128)[0]
    with h5py.File(path, "r+") as file:
        ids, places = file["input_ids"][:], file["masked_lm_positions"][:]
        place = next(place for place in (1, 2) if place not in places[0])
        ids[0, place] = VOCAB.index("z")
        file["input_ids"][:] = ids
    with pytest.raises(SystemExit, match=f"{side}: 1 segments in {path.name} are not in the text"):
        check(outs)


def test_other_tokens_are_found(outs):
    path = data_prepare.files_of(outs["ours"], 128)[0].parent / "token_counts.npy"
    counts = np.load(path)
    counts[VOCAB.index("a")] += 1
    np.save(path, counts)
    with pytest.raises(SystemExit, match="tokens of ours are others than theirs"):
        check(outs)


def test_a_missing_document_is_found(outs):
    text = outs["ours"].parent / "text.txt"
    text.write_text(TEXT + "\nu v\n")
    with pytest.raises(SystemExit, match=r"ours \(6, 120, 1200\), theirs \(7, 121, 1202\)"):
        check(outs)


def test_figures_further_apart_than_a_tenth_are_named():
    theirs = {"rows": 100.0, "fill": 0.9, "masked": 0.15}
    assert data_prepare.far_apart({"rows": 91.0, "fill": 0.98, "masked": 0.16}, theirs) == []
    assert data_prepare.far_apart({"rows": 89.0, "fill": 0.9, "masked": 0.17}, theirs) == ["rows", "masked"]


def test_the_memory_of_a_command_is_its_own(tmp_path):
    ballast = np.ones(100 << 17)  # 100 MB here, which a child starts with
    used = measured([sys.executable, "-c", "b'x' * (30 << 20)"])
    assert len(ballast) and 30 < used.peak < 100
    assert used.cpu > 0 and used.wall > 0
    with pytest.raises(SystemExit, match="failed: .*exit"):
        measured([sys.executable, "-c", "exit(3)"])


def test_the_peers_rows_predict_a_seventh_of_the_tokens():
    rng, vocabulary = random.Random(1), data_peer.Vocabulary(2, 3, 4, len(VOCAB))
    a, b = list(range(5, 15)), list(range(15, 31))
    for _ in range(100):
        row = data_peer.masked_row((a, b, True), vocabulary, 20, rng)
        assert len(row.masked) == 4  # of 29: 4.35
        assert list(row.masked) == sorted(row.masked)
        before = [row.masked.get(place, token) for place, token in enumerate(row.ids)]
        assert before == [2, *a, 3, *b, 3] and row.second == 12
    assert len(data_peer.masked_row((a, b, True), vocabulary, 3, rng).masked) == 3


@pytest.mark.slow
def test_a_comparison_of_seconds_is_told_and_drawn(tmp_path):
    vocab, picture = tmp_path / "vocab.txt", tmp_path / "race.png"
    learn = [sys.executable, "pretraining/data/prepare.py", "vocab", "--input", "README.md", "docs"]
    subprocess.run([*learn, f"--vocab_file={vocab}", "--vocab_size=2000"], cwd=ROOT, check=True, capture_output=True)
    words = [sys.executable, "benchmarks/data_prepare.py", "README.md", "docs", f"--vocab_file={vocab}"]
    words += ["--megabytes", "0.05", "0.1", "--rounds=1", f"--temp_dir={tmp_path}"]
    done = subprocess.run([*words, f"--picture={picture}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("peak memory") == 6 and "theirs over ours" in done.stdout
    assert 10_000 < picture.stat().st_size < 60_000
    done = subprocess.run([*words, "--alone"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "theirs" not in done.stdout and "where the time of ours goes" in done.stdout
