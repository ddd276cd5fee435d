"""Drawing documents into shards: each once, evenly, by the seed alone, in bounded memory."""

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from central.runtime.exits import BadRequest
from pretraining.data import prepare, shards
from pretraining.data.documents import TextSettings
from pretraining.data.shards import choose_num_shards, draw_shards
from pretraining.data.sources import Batch, Piece
from pretraining.data.tokens import tokenize_batch
from pretraining.data.wordpiece import SPECIAL_TOKENS, VocabularyFile

WORDS = [f"w{number}" for number in range(40)]


def store(folder: Path, documents: list[list[int]], num_parts: int) -> list:
    """A token store of documents given by the lengths of their sentences; returns the parts."""
    vocab = folder / "vocab.txt"
    vocab.write_text("\n".join([*SPECIAL_TOKENS, *WORDS]) + "\n")
    parts = []
    for number, chosen in enumerate(np.array_split(np.arange(len(documents)), num_parts)):
        text = "".join(
            "".join(" ".join(random.choices(WORDS, k=length)) + "\n" for length in documents[d]) + "\n" for d in chosen
        )
        batch = Batch(number, (Piece("t", "text", 1, text.encode()),), 0)
        parts.append(tokenize_batch(batch, folder, VocabularyFile(vocab), TextSettings(sentences="line")))
    return parts


def keys(drawn) -> list[tuple[int, int]]:
    """(part, first token) of each document drawn."""
    return [key for shard in drawn for key in zip(shard.part.tolist(), shard.token_start.tolist(), strict=True)]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.integers(1, 4),
)
def test_every_document_once(tmp_path_factory, documents, num_parts, num_shards, fraction, group):
    folder = tmp_path_factory.mktemp("store")
    parts = store(folder, documents, num_parts)
    assert [part.documents for part in parts] == [len(d) for d in np.array_split(np.arange(len(documents)), num_parts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "GROUP_PARTS", group)
        drawn = list(draw_shards(folder, parts, num_shards, fraction, 7))
        again = list(draw_shards(folder, parts, num_shards, fraction, 7))
    assert len(set(keys(drawn))) == len(keys(drawn)) == len(documents)
    assert keys(drawn) == keys(again)
    for split in ("training", "test"):
        assert [shard.number for shard in drawn if shard.split == split] == list(
            range(sum(shard.split == split for shard in drawn))
        )


def test_shards_are_even_and_drawn_by_the_seed(tmp_path):
    rng = random.Random(0)
    documents = [[rng.randint(1, 20) for _ in range(rng.randint(1, 10))] for _ in range(2000)]
    parts = store(tmp_path, documents, 4)
    drawn = list(draw_shards(tmp_path, parts, 8, 0.1, 1))
    training = [shard for shard in drawn if shard.split == "training"]
    assert len(training) == 8 and len(drawn) == 9
    tokens = [shard.tokens.sum() for shard in training]
    assert max(tokens) < 1.05 * min(tokens)
    assert sum(len(shard.part) for shard in drawn if shard.split == "test") == 200
    assert all(len(np.unique(shard.part)) == 4 for shard in drawn)  # from everywhere
    other = list(draw_shards(tmp_path, parts, 8, 0.1, 2))
    assert keys(other) != keys(drawn)


def test_the_number_of_shards():
    assert choose_num_shards(0, 1000, 100) == 1
    assert choose_num_shards(0, 1000, 1_000_000) == 4
    assert choose_num_shards(0, 10**6, 40_000_000) == 32
    assert choose_num_shards(0, 10**6, 400_000_000) == 100
    assert choose_num_shards(64, 9, 1000) == 4
    assert choose_num_shards(3, 1, 10) == 1
    with pytest.raises(BadRequest, match="--num_shards 2: too few .* at least 10"):
        choose_num_shards(2, 10**6, 10**9)


def peak_megabytes(line: list[str]) -> float:
    child = os.posix_spawn(line[0], line, os.environ)
    _, status, usage = os.wait4(child, 0)
    assert status == 0
    return usage.ru_maxrss / 1024


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join([*SPECIAL_TOKENS, *WORDS]) + "\n")
    rng = random.Random(0)
    peaks = []
    for megabytes in (20, 80):
        text = tmp_path / f"{megabytes}.txt"
        sentences = [" ".join(rng.choices(WORDS, k=rng.randint(5, 60))) + ".\n" for _ in range(10_000)]
        with open(text, "w") as file:
            while file.tell() < megabytes * 1e6:
                file.write("".join(rng.choices(sentences, k=200)) + "\n")
        paths = ["--input", str(text), "--vocab_file", str(vocab), "--output_dir", str(tmp_path / f"out{megabytes}")]
        options = ["--sentences", "line", "--dupe_factor", "1", "--num_processes", "1"]
        peaks.append(peak_megabytes([sys.executable, prepare.__file__, *paths, *options]))
    assert peaks[1] < 1.15 * peaks[0] and peaks[1] < 1000
