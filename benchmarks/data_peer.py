"""The rival of data_prepare.py: text to BERT's rows the usual way, in one process that holds all of it in memory.

    python benchmarks/data_peer.py --input_file TEXT --vocab_file VOCAB --output_dir OUT

Usual, since the script that came with BERT's paper, is to read all documents (a sentence a line, a blank line between
documents) into lists of tokens, to draw pairs and masks one by one in Python, and to shuffle all rows and write them.
In its favour: Hugging Face's fast tokenizer takes a whole document at once, and once for all lengths; tokens are ids
from the start; masked places are drawn without a shuffle of all others. As with prepare.py, HDF5's gzip is at level 1
and after the shuffle filter, which costs less than the level 4 that h5py would take.
"""

import argparse
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import h5py
import numpy as np
from transformers import BertTokenizer

SPECIALS = 3  # [CLS] a [SEP] b [SEP]
CHUNK_VALUES = 1 << 17  # of a chunk, as prepare.py has them


class Vocabulary(NamedTuple):
    """Ids, asked of the tokenizer once, as each time costs more than a mask."""

    cls: int
    sep: int
    mask: int
    size: int


class Row(NamedTuple):
    ids: list[int]  # masked, unpadded
    second: int  # where segment b begins
    is_random: bool
    masked: dict[int, int]  # place: what stood there


def open_tokenizer(vocab_file: Path) -> BertTokenizer:
    """Lower case; a text that has "[SEP]" in it has no token of that name."""
    return BertTokenizer(str(vocab_file), do_lower_case=True, split_special_tokens=True)


def read_documents(text: Path, tokenizer: BertTokenizer) -> list[list[list[int]]]:
    """Ids of each sentence of each document."""
    documents = []
    for document in text.read_text(encoding="utf-8").split("\n\n"):
        lines = [line for line in document.split("\n") if line.strip()]
        if lines:
            encoded = tokenizer(
                lines, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
            )
            documents.append([ids for ids in encoded["input_ids"] if ids])
    return [document for document in documents if document]


def document_pairs(
    documents: list, number: int, room: int, short_seq_prob: float, rng: random.Random
) -> Iterator[tuple[list, list, bool]]:
    """Pairs (a, b, is b random) of one document, `room` tokens together at most; a token may be anything."""
    sentences = documents[number]
    goal = rng.randint(2, room) if rng.random() < short_seq_prob else room
    chunk, length, i = [], 0, 0
    while i < len(sentences):
        chunk.append(sentences[i])
        length += len(sentences[i])
        if i == len(sentences) - 1 or length >= goal:
            cut = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
            a = [token for sentence in chunk[:cut] for token in sentence]
            is_random = len(chunk) == 1 or rng.random() < 0.5
            if is_random:
                b = _from_another(documents, number, goal - len(a), rng)
                i -= len(chunk) - cut  # the sentences not used are used next
            else:
                b = [token for sentence in chunk[cut:] for token in sentence]
            while len(a) + len(b) > room:
                longer = a if len(a) > len(b) else b
                longer.pop(0 if rng.random() < 0.5 else -1)
            yield a, b, is_random
            chunk, length = [], 0
        i += 1


def _from_another(documents: list, number: int, wanted: int, rng: random.Random) -> list:
    """Sentences of another document from a random one on, until there are as many tokens as wanted."""
    other = rng.randrange(len(documents) - 1)
    other += other >= number
    found, start = [], rng.randrange(len(documents[other]))
    for sentence in documents[other][start:]:
        found += sentence
        if len(found) >= wanted:
            break
    return found


def masked_row(pair: tuple[list[int], list[int], bool], vocabulary: Vocabulary, most: int, rng: random.Random) -> Row:
    """15 % of the tokens, at most `most`, are predicted: 80 % of them become [MASK], 10 % a random token."""
    a, b, is_random = pair
    ids = [vocabulary.cls, *a, vocabulary.sep, *b, vocabulary.sep]
    places = [*range(1, len(a) + 1), *range(len(a) + 2, len(ids) - 1)]
    masked = {}
    for place in sorted(rng.sample(places, min(most, max(1, round(len(ids) * 0.15)), len(places)))):
        masked[place] = ids[place]
        if rng.random() < 0.8:
            ids[place] = vocabulary.mask
        elif rng.random() < 0.5:
            ids[place] = rng.randrange(vocabulary.size)
    return Row(ids, len(a) + 2, is_random, masked)


def write(path: Path, rows: list[Row], length: int, most: int) -> None:
    columns = {
        "input_ids": np.zeros((len(rows), length), np.int32),
        "input_mask": np.zeros((len(rows), length), np.int8),
        "segment_ids": np.zeros((len(rows), length), np.int8),
        "masked_lm_positions": np.zeros((len(rows), most), np.int32),
        "masked_lm_ids": np.zeros((len(rows), most), np.int32),
        "next_sentence_labels": np.array([row.is_random for row in rows], np.int8),
    }
    for number, row in enumerate(rows):
        columns["input_ids"][number, : len(row.ids)] = row.ids
        columns["input_mask"][number, : len(row.ids)] = 1
        columns["segment_ids"][number, row.second : len(row.ids)] = 1
        columns["masked_lm_positions"][number, : len(row.masked)] = list(row.masked)
        columns["masked_lm_ids"][number, : len(row.masked)] = list(row.masked.values())
    chunk_rows = min(len(rows), CHUNK_VALUES // length)
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            chunks = (chunk_rows, *values.shape[1:])
            file.create_dataset(name, data=values, chunks=chunks, compression="gzip", compression_opts=1, shuffle=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_file", type=Path, required=True)
    parser.add_argument("--vocab_file", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--max_seq_length", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--max_predictions_per_seq", type=int, nargs="+", default=[20, 80])
    parser.add_argument("--dupe_factor", type=int, default=5)
    parser.add_argument("--short_seq_prob", type=float, default=0.1)
    parser.add_argument("--random_seed", type=int, default=12345)
    args = parser.parse_args()
    rng = random.Random(args.random_seed)
    tokenizer = open_tokenizer(args.vocab_file)
    vocabulary = Vocabulary(
        tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id, tokenizer.vocab_size
    )
    documents = read_documents(args.input_file, tokenizer)
    rng.shuffle(documents)
    for length, most in zip(args.max_seq_length, args.max_predictions_per_seq, strict=True):
        rows = [
            masked_row(pair, vocabulary, most, rng)
            for _ in range(args.dupe_factor)
            for number in range(len(documents))
            for pair in document_pairs(documents, number, length - SPECIALS, args.short_seq_prob, rng)
        ]
        rng.shuffle(rows)
        folder = args.output_dir / f"seq_len_{length}"
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "peer_training_0.hdf5", rows, length, most)


if __name__ == "__main__":
    main()
