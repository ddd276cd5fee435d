"""What prepare.py writes, measured against a slow program of BERT's published algorithm over the same documents.

The program, the pairs of benchmarks/data_peer.py and the masks below, is written from the paper and from
google-research/bert's description, one token at a time, and shares nothing with ours: not the tokens (the text is made
of words that are whole in the vocabulary), not the random numbers.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from data_peer import document_pairs

from pretraining.data import prepare

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{number}" for number in range(400)]
PIECES = [f"##p{number}" for number in range(100)]
FIRST = "first"  # the first word of every sentence
VOCAB = [*SPECIALS, FIRST, *WORDS, *PIECES]
SEQ_LEN, SLOTS, DUPES = 96, 12, 24
MOST_ERRORS = 4.5  # standard errors that a statistic may differ by; there are thirty of them, twice
LENGTHS = (0, 30, 50, 70, 80, 88, 94, SEQ_LEN)  # common enough, each, for its share to be known well


@dataclass
class Sequence:
    tokens: list[str]  # as the model sees them
    first: int  # tokens of segment a
    is_random: bool
    masked: dict[int, str]  # position: what stood there

    @property
    def text(self) -> list[str]:
        """The tokens before masking."""
        return [self.masked.get(place, token) for place, token in enumerate(self.tokens)]


def make_documents(count: int) -> list[list[list[str]]]:
    """Documents of sentences of pieces; words are Zipfian, a third of them have two or three pieces."""
    rng = random.Random(11)
    shares = [1 / (rank + 3) for rank in range(len(WORDS))]
    documents = []
    for _ in range(count):
        sentences = []
        for _ in range(rng.randint(1, 25)):
            pieces = [FIRST]
            for word in rng.choices(WORDS, shares, k=rng.randint(2, 24)):
                pieces += [word, *rng.choices(PIECES, k=rng.choice((0, 0, 0, 0, 1, 2)))]
            sentences.append(pieces)
        documents.append(sentences)
    return documents


def slow_duplicate(documents, whole_words: bool, rng: random.Random) -> list[Sequence]:
    """All documents once."""
    return [
        slow_masks(*pair, whole_words, rng)
        for number in range(len(documents))
        for pair in document_pairs(documents, number, SEQ_LEN - 3, 0.1, rng)
    ]


def slow_masks(a, b, is_random: bool, whole_words: bool, rng: random.Random) -> Sequence:
    tokens = ["[CLS]", *a, "[SEP]", *b, "[SEP]"]
    words = []
    for place, token in enumerate(tokens):
        if token in ("[CLS]", "[SEP]"):
            continue
        if whole_words and token.startswith("##") and words and words[-1][-1] == place - 1:
            words[-1].append(place)
        else:
            words.append([place])
    rng.shuffle(words)
    wanted, masked, seen = min(SLOTS, max(1, round(len(tokens) * 0.15))), {}, list(tokens)
    for word in words:
        if len(masked) + len(word) > wanted:
            continue
        for place in word:
            masked[place] = tokens[place]
            if rng.random() < 0.8:
                seen[place] = "[MASK]"
            elif rng.random() >= 0.5:
                seen[place] = rng.choice(VOCAB)
    return Sequence(seen, len(a), is_random, masked)


def read_sequences(path: Path) -> list[Sequence]:
    with h5py.File(path) as file:
        arrays = {name: file[name][:].tolist() for name in file}
    found = []
    for ids, mask, segments, places, labels, is_random in zip(
        *(arrays[name] for name in ("input_ids", "input_mask", "segment_ids")),
        *(arrays[name] for name in ("masked_lm_positions", "masked_lm_ids", "next_sentence_labels")),
        strict=True,
    ):
        tokens = [VOCAB[number] for number in ids[: sum(mask)]]
        masked = {place: VOCAB[label] for place, label in zip(places, labels, strict=True) if place}
        found.append(Sequence(tokens, sum(mask) - sum(segments) - 2, bool(is_random), masked))
    return found


def statistics(sequences: list[Sequence], duplicates: int) -> dict[str, float]:
    """Everything that a model could tell the two apart by."""
    lengths = np.array([len(s.tokens) for s in sequences])
    first = np.array([s.first for s in sequences])
    found = {
        "sequences": len(sequences) / duplicates,
        "length": lengths,
        "tokens of a": first,
        "tokens of b": lengths - first - 3,
        "a longer than b": first > lengths - first - 3,
        "random second segment": [s.is_random for s in sequences],
        "masked in a sequence": [len(s.masked) for s in sequences],
        "as many masked as fit": [len(s.masked) == SLOTS for s in sequences],
        "a begins with a sentence": [s.text[1] == FIRST for s in sequences],
        "b begins with a sentence": [s.text[s.first + 2] == FIRST for s in sequences],
        "a begins inside of a word": [s.text[1].startswith("##") for s in sequences],
        "sentences": [s.text.count(FIRST) for s in sequences],
    }
    for low, high in zip(LENGTHS[:-1], LENGTHS[1:], strict=True):
        found[f"length in ({low}, {high}]"] = (lengths > low) & (lengths <= high)
    new = np.array([s.tokens[place] for s in sequences for place in s.masked])
    old = np.array([token for s in sequences for token in s.masked.values()])
    place = np.array([place / len(s.tokens) for s in sequences for place in s.masked])
    another = (new != old) & (new != "[MASK]")
    found |= {
        "[MASK]": new == "[MASK]",
        "left as it is": new == old,
        "another token": another,
        "another token that continues a word": np.char.startswith(new[another], "##"),
        "masked piece that continues a word": np.char.startswith(old, "##"),
        "masked place": place,
        "masked commonest word": old == WORDS[0],
    }
    for low in np.arange(0, 1, 0.1):
        found[f"masked place from {low:.1f}"] = (place >= low) & (place < low + 0.1)
    return {name: float(np.mean(values)) for name, values in found.items()}


@pytest.mark.parametrize("whole_words", [False, True])
def test_statistics_equal_those_of_the_reference(tmp_path, whole_words):
    documents = make_documents(250)
    text = "\n\n".join("\n".join(" ".join(s).replace(" ##", "") for s in document) for document in documents)
    (tmp_path / "text.txt").write_text(text + "\n")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    options = f"--corpus c --sentences line --max_seq_length {SEQ_LEN} --max_predictions_per_seq {SLOTS} --num_shards 1"
    more = f"--dupe_factor {DUPES} --test_fraction 0 --num_processes 1" + " --whole_word_masking" * whole_words
    paths = ["--input", str(tmp_path / "text.txt"), "--vocab_file", str(tmp_path / "vocab.txt")]
    prepare.main([*paths, "--output_dir", str(tmp_path), *options.split(), *more.split()])
    (path,) = tmp_path.glob("hdf5*/c/c_training_0.hdf5")
    ours = statistics(read_sequences(path), DUPES)
    rng = random.Random(12)
    duplicates = [slow_duplicate(documents, whole_words, rng) for _ in range(DUPES)]
    theirs = statistics([sequence for duplicate in duplicates for sequence in duplicate], DUPES)
    # How much chance moves a statistic is seen in the duplicates; ours is moved as much as theirs.
    spread = [statistics(duplicate, 1) for duplicate in duplicates]
    error = {name: np.std([one[name] for one in spread], ddof=1) * (2 / DUPES) ** 0.5 for name in theirs}
    wrong = {
        name: f"{ours[name]:.4f}, the reference {value:.4f}, standard error {error[name]:.4f}"
        for name, value in theirs.items()
        if abs(ours[name] - value) > MOST_ERRORS * error[name] + 1e-12
    }
    assert not wrong
