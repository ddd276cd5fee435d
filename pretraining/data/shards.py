"""Which document goes to which shard, and a shard's way from stored tokens to HDF5 files of all phases."""

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from central.files import write_synced
from central.runtime.exits import BadRequest
from pretraining.data.hdf5 import rows_per_chunk, write_rows
from pretraining.data.instances import SPECIALS, Documents, Pairs, covered_tokens, cut_long_sentences, make_pairs
from pretraining.data.masking import MaskSettings, mask_rows, token_rows
from pretraining.data.tokens import SENTENCE_TYPE, Part, PartSummary
from pretraining.data.wordpiece import Vocabulary, VocabularyFile

FORMAT = "bert-hdf5-1"
TOKENS_PER_SHARD = 4_000_000  # about 16 MiB of English
SHARDS_TO_SHARE = 32  # of a smaller corpus: so many that the cores of a machine end at about the same time
LEAST_TOKENS_PER_SHARD = 250_000  # below that, opening files costs more than even work saves
MOST_TOKENS_PER_SHARD = 100_000_000  # what a shard in memory may cost
GROUP_PARTS = 4096  # parts (16 GiB of text) whose documents are shuffled together: bounds memory for any corpus
BLOCK_CHUNKS = 4  # HDF5 chunks made at once
TRAINING, TEST = "training", "test"


@dataclass(frozen=True)
class Phase:
    max_seq_length: int
    max_predictions_per_seq: int


@dataclass(frozen=True)
class ShardSettings:
    """What the content of the HDF5 files depends on, besides the tokens."""

    phases: tuple[Phase, ...]
    vocabulary_file: VocabularyFile
    masked_lm_prob: float
    short_seq_prob: float
    whole_word_masking: bool
    dupe_factor: int
    random_seed: int
    num_shards: int
    test_fraction: float


@dataclass(frozen=True)
class Shard:
    """Documents of one shard: where each lies in the parts, in order of parts. Arrays int64[documents]."""

    split: str
    number: int
    part: np.ndarray
    token_start: np.ndarray
    tokens: np.ndarray
    sentence_start: np.ndarray
    sentences: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.split}_{self.number}"


def choose_num_shards(asked: int, documents: int, tokens: int) -> int:
    """The number asked for, else by size; at least two documents each, so that a pair can come from two documents."""
    to_share = min(SHARDS_TO_SHARE, round(tokens / LEAST_TOKENS_PER_SHARD))
    num_shards = asked or max(1, to_share, round(tokens / TOKENS_PER_SHARD))
    least = -(-tokens // MOST_TOKENS_PER_SHARD)
    if num_shards < least:
        raise BadRequest(f"--num_shards {num_shards}: too few for {tokens} tokens in 1 GB of memory; at least {least}")
    return max(1, min(num_shards, documents // 2))


def draw_shards(
    folder: Path, parts: list[PartSummary], num_shards: int, test_fraction: float, seed: int
) -> Iterator[Shard]:
    """Training and test shards of about equally many tokens, documents drawn at random by the seed alone."""
    groups = [parts[start : start + GROUP_PARTS] for start in range(0, len(parts), GROUP_PARTS)]
    total = sum(part.tokens for part in parts)
    num_test_shards = max(1, round(num_shards * test_fraction))
    tokens_before, first = 0, {TRAINING: 0, TEST: 0}
    for number, group in enumerate(groups):
        tokens_after = tokens_before + sum(part.tokens for part in group)
        documents = _document_table(folder, group)
        order = np.random.Generator(np.random.SFC64([seed, number])).permutation(len(documents))
        num_test = _num_test_documents(len(order), test_fraction)
        for split, chosen, wanted in (
            (TEST, order[:num_test], num_test_shards),
            (TRAINING, order[num_test:], num_shards),
        ):
            share = round(wanted * tokens_after / total) - round(wanted * tokens_before / total)
            for members in _cut_equally(chosen, documents[chosen, 2], max(1, share)):
                yield Shard(split, first[split], *documents[np.sort(members)].T)
                first[split] += 1
        tokens_before = tokens_after


def _num_test_documents(documents: int, fraction: float) -> int:
    """At least two documents on either side, or none held out."""
    return max(2, round(documents * fraction)) if fraction and documents >= 4 else 0


def _document_table(folder: Path, parts: list[PartSummary]) -> np.ndarray:
    """int64[documents, 5]: part, first token, tokens, first sentence, sentences."""
    tables = []
    for part in parts:
        index = Part(folder, part.number).index()
        tokens, sentences = index["document_tokens"], index["document_sentences"]
        columns = (np.full(len(tokens), part.number), np.cumsum(tokens) - tokens, tokens)
        tables.append(np.stack([*columns, np.cumsum(sentences) - sentences, sentences], axis=1))
    return np.concatenate(tables)


def _cut_equally(members: np.ndarray, tokens: np.ndarray, count: int) -> list[np.ndarray]:
    """`count` runs (fewer when documents are few) of about equally many tokens and at least two documents."""
    if not len(members):
        return []
    count = max(1, min(count, len(members) // 2))
    number = np.arange(1, count)
    totals = np.cumsum(tokens)
    cuts = np.searchsorted(totals, totals[-1] * number / count) + 1
    cuts = np.maximum.accumulate(np.maximum(cuts, 2) - 2 * number) + 2 * number
    cuts = np.minimum(cuts, len(members) - 2 * (count - number))
    return np.split(members, cuts)


def write_shard(
    shard: Shard, tokens_folder: Path, outputs: tuple[Path, ...], settings: ShardSettings, common: dict
) -> int:
    """Write one shard's file of every phase that is not there yet, and its token counts; return sequences written."""
    vocabulary = settings.vocabulary_file.read()
    documents = _read_documents(shard, tokens_folder, vocabulary)
    counts = np.bincount(documents.tokens, minlength=len(vocabulary))
    write_synced(counts_file(tokens_folder, shard.name), array_bytes(counts))
    written = 0
    for phase, path in zip(settings.phases, outputs, strict=True):
        if not path.exists():
            written += _write_phase(
                shard, documents, phase, path, settings, vocabulary, common | _counts_attributes(counts)
            )
    return written


def _write_phase(
    shard: Shard,
    documents: Documents,
    phase: Phase,
    path: Path,
    settings: ShardSettings,
    vocabulary: Vocabulary,
    attributes: dict,
) -> int:
    is_test = shard.split == TEST
    rng = np.random.Generator(np.random.SFC64([settings.random_seed, phase.max_seq_length, is_test, shard.number]))
    dupe_factor = 1 if is_test else settings.dupe_factor
    cut = cut_long_sentences(documents, phase.max_seq_length - SPECIALS)
    pairs = make_pairs(cut, phase.max_seq_length, dupe_factor, settings.short_seq_prob, rng)
    attributes |= {
        "max_seq_length": phase.max_seq_length,
        "max_predictions_per_seq": phase.max_predictions_per_seq,
        "dupe_factor": dupe_factor,
        "split": shard.split,
        "documents": len(documents),
        "sentences": len(documents.sentence_ends) - 1,
        "sequences": len(pairs),
        "tokens": int(pairs.lengths.sum()),
        "random_next": int(pairs.is_random.sum()),
        "text_tokens": len(documents.tokens),
        "covered_tokens": covered_tokens(pairs),
    }
    chunk_rows = rows_per_chunk(phase.max_seq_length)
    blocks = _blocks(documents, pairs, phase, chunk_rows * BLOCK_CHUNKS, settings, vocabulary, rng)
    write_rows(path, len(pairs), chunk_rows, blocks, attributes, {"masked_tokens": "masked_lm_positions"})
    return len(pairs)


def _blocks(
    documents: Documents,
    pairs: Pairs,
    phase: Phase,
    block_rows: int,
    settings: ShardSettings,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> Iterator[dict[str, np.ndarray]]:
    """The rows of a file, some at a time."""
    masks = MaskSettings(phase.max_predictions_per_seq, settings.masked_lm_prob, settings.whole_word_masking)
    for start in range(0, len(pairs), block_rows):
        block = pairs[start : start + block_rows]
        arrays = token_rows(documents, block, phase.max_seq_length, vocabulary)
        mask_rows(arrays, block, masks, vocabulary, rng)
        yield arrays


def _counts_attributes(counts: np.ndarray) -> dict[str, float]:
    share = counts[counts > 0] / counts.sum()
    return {"unigram_entropy": float(-(share * np.log(share)).sum())}  # nats a token


def _read_documents(shard: Shard, folder: Path, vocabulary: Vocabulary) -> Documents:
    tokens, sentences = [], []
    for number in np.unique(shard.part):
        part = Part(folder, int(number))
        rows = shard.part == number
        tokens += _read_slices(part.path("tokens"), vocabulary.id_type, shard.token_start[rows], shard.tokens[rows])
        sentences += _read_slices(
            part.path("sentences"), SENTENCE_TYPE, shard.sentence_start[rows], shard.sentences[rows]
        )
    return Documents(
        tokens=np.concatenate(tokens),
        sentence_ends=np.concatenate([[0], np.cumsum(np.concatenate(sentences), dtype=np.int64)]),
        document_ends=np.concatenate([[0], np.cumsum(shard.sentences)]),
    )


def _read_slices(path: Path, kind: type, starts: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    width = np.dtype(kind).itemsize
    with open(path, "rb", buffering=0) as file:
        return [
            np.frombuffer(os.pread(file.fileno(), int(count) * width, int(start) * width), kind)
            for start, count in zip(starts, counts, strict=True)
        ]


def counts_file(tokens_folder: Path, name: str) -> Path:
    return tokens_folder / f"counts_{name}.npy"


def array_bytes(array: np.ndarray) -> bytes:
    """The content of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def shard_attributes(path: Path, names: Iterable[str]) -> dict[str, object]:
    """What a finished file says of itself under these names; each is a read."""
    with h5py.File(path, "r") as file:
        return {name: file.attrs[name] for name in names}


def check_finished(path: Path, expected: dict[str, object]) -> str | None:
    """What is wrong with a file that stands under a shard's name: None when it is this request's own."""
    try:
        with h5py.File(path, "r") as file:
            found = {name: file.attrs[name] for name in expected if name in file.attrs}
    except OSError as error:
        return f"{path}: damaged ({error})"
    different = [name for name, value in expected.items() if name not in found or found[name] != value]
    if different:
        return f"{path}: made with another {', '.join(different)}"
    return None
