"""`verify`: the numbers of a sound folder, and every damaged file by name."""

import random
import re

import h5py
import numpy as np
import pytest

from central.runtime.exits import BadRequest
from pretraining.data import prepare
from pretraining.data.verify import verify_file, verify_folder
from pretraining.data.wordpiece import SPECIAL_TOKENS
from pretraining.data.workers import Workers

ALONE = Workers(None, 1)
WORDS = [f"w{number}" for number in range(50)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a small corpus, half of whose sentences occur twice."""
    folder = tmp_path_factory.mktemp("made")
    rng = random.Random(0)
    sentences = [" ".join(rng.choices(WORDS, k=10)) for _ in range(1500)]
    lines = [*sentences, *sentences]
    text = "".join(f"{line}\n" + ("\n" if number % 10 == 9 else "") for number, line in enumerate(lines))
    (folder / "text.txt").write_text(text)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *WORDS]) + "\n")
    options = "--corpus c --sentences line --max_seq_length 64 --max_predictions_per_seq 10 --num_shards 2"
    arguments = ["--input", str(folder / "text.txt"), "--vocab_file", str(folder / "vocab.txt")]
    prepare.main([*arguments, "--output_dir", str(folder / "out"), *options.split(), "--num_processes", "1"])
    (corpus,) = (folder / "out").glob("hdf5*/c")
    return corpus


@pytest.fixture
def corpus(made, tmp_path):
    """A copy to damage."""
    folder = tmp_path / "c"
    folder.mkdir()
    for path in made.iterdir():
        if path.suffix != ".png":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_the_page_of_a_sound_folder(corpus, capsys):
    verify_folder(corpus, ALONE)
    said = capsys.readouterr().out
    with h5py.File(corpus / "c_test_0.hdf5") as file:
        rows, tokens = len(file["input_ids"]), int(file["input_mask"][:].sum())
    assert f"{rows} sequences in {rows} rows, {tokens} tokens" in said
    assert f"mean length {tokens / rows:.1f}, padding {1 - tokens / rows / 64:.1%}" in said
    assert "270 documents, 2700 sentences" in said and "30 documents, 300 sentences" in said
    assert "unigram entropy 3.9" in said  # 50 words, equally likely: log(50)
    assert "in a<b> the text has b" in said and "[MASK]<w" in said
    examples = re.findall(r"    \d, next sentence (?:a random one|the one that follows): (\[CLS\] .* \[SEP\])\n", said)
    assert len(examples) == 3 and all(len(example.split()) <= 41 for example in examples)
    share = float(said.split("duplicate lines: ")[1].split("%")[0])
    assert 40 < share < 60
    assert (corpus / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_take_the_picture_is_verified_all_the_same(corpus, capsys):
    (corpus / "lengths.png").mkdir()  # as good as a read-only folder, which root writes to
    verify_folder(corpus, ALONE)
    said = capsys.readouterr().out
    assert "unigram entropy" in said and "no picture of the lengths: " in said
    assert not list(corpus.glob("*.tmp"))


def test_numbers_equal_the_attributes(made):
    for path in made.glob("*.hdf5"):
        report = verify_file(path)
        assert report.faults == ()
        assert report.tally.sequences == report.attributes["sequences"]
        assert report.tally.masked == report.attributes["masked_tokens"]


def edit(name, change):
    def damage(path):
        with h5py.File(path, "r+") as file:
            values = file[name][:]
            change(values)
            file[name][:] = values

    return damage


def put(place, value):
    def change(values):
        values[place] = value

    return change


def cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = b"\x55" * 200
    path.write_bytes(data)


def drop(path):
    with h5py.File(path, "r+") as file:
        del file["segment_ids"]


def attribute(path):
    with h5py.File(path, "r+") as file:
        file.attrs["tokens"] = 5


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (cut, "damaged"),
        (flip, ""),
        (lambda path: path.write_bytes(b"no HDF5"), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (drop, "no segment_ids"),
        (attribute, "attribute tokens is 5"),
        (edit("input_ids", put((0, 1), 5000)), "outside of the vocabulary"),
        (edit("input_mask", put((0, 0), 0)), "padding before tokens"),
        (edit("masked_lm_positions", put((0, 0), 64)), "outside of the tokens"),
        (edit("next_sentence_labels", put(0, 3)), "next-sentence labels"),
        (edit("segment_ids", put((0, 0), 2)), "segments"),
    ],
)
def test_every_damaged_file_is_named(corpus, damage, fault):
    damage(corpus / "c_training_1.hdf5")
    with pytest.raises(BadRequest) as caught:
        verify_folder(corpus, ALONE)
    assert all("c_training_1.hdf5" in problem for problem in caught.value.problems) and fault in str(caught.value)


def test_files_that_do_not_belong_together(corpus):
    with h5py.File(corpus / "c_training_1.hdf5", "r+") as file:
        file.attrs["random_seed"] = 1
    (corpus / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "other"]) + "\n")
    with pytest.raises(BadRequest) as caught:
        verify_folder(corpus, ALONE)
    assert "different random_seed" in str(caught.value) and "not the vocabulary" in str(caught.value)


def test_files_of_others_have_no_attributes(tmp_path, made):
    with h5py.File(made / "c_training_0.hdf5") as source, h5py.File(tmp_path / "their_training_0.hdf5", "w") as target:
        for name in source:
            target[name] = source[name][:]
    verify_folder(tmp_path, ALONE)


def test_an_empty_folder(tmp_path):
    with pytest.raises(BadRequest, match="no .hdf5 file"):
        verify_folder(tmp_path, ALONE)


def test_verify_from_the_command_line(made):
    assert prepare.main(["verify", str(made.parent), "--num_processes", "1"]) == 0
    assert np.load(made / "token_counts.npy").sum() == 27_000
