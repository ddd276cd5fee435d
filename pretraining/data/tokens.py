"""The token store: every document tokenised once, on disk, in parts; from it come all phases and duplicates.

A part holds the documents of one batch in three files: ids, tokens of each sentence, and an index written last, so that
a part with an index is whole. Documents are then drawn into shards by a permutation that depends on the seed alone.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from central.files import write_synced
from pretraining.data.documents import TextSettings, canonical_text
from pretraining.data.report import Histogram, usage_arrays
from pretraining.data.sources import Batch
from pretraining.data.wordpiece import BLOCK_CHARACTERS, Tokenizer, VocabularyFile

SENTENCE_TYPE = np.int32
HASH_SAMPLE = 16  # one sentence in so many, chosen by its hash, is looked at for duplicates


@dataclass(frozen=True)
class Part:
    """Where one part lies."""

    folder: Path
    number: int

    def path(self, what: str) -> Path:
        return self.folder / f"part_{self.number:06d}.{what}"

    @property
    def is_done(self) -> bool:
        """Whether all that the index tells of is there; a file that was cut, or is none, is made again."""
        index = self.whole_index()
        return index is not None and all(
            self.path(what).is_file() and self.path(what).stat().st_size == int(index[f"{what}_bytes"])
            for what in ("tokens", "sentences")
        )

    def whole_index(self) -> dict[str, np.ndarray] | None:
        """The index, None where it is not there or damaged."""
        try:
            return self.index()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None

    def remove_tokens(self) -> None:
        """Free the space; the index stays, so that a finished run is known to be one."""
        self.path("tokens").unlink(missing_ok=True)
        self.path("sentences").unlink(missing_ok=True)

    def index(self) -> dict[str, np.ndarray]:
        with np.load(self.path("npz"), allow_pickle=False) as file:
            return dict(file)


@dataclass(frozen=True)
class PartSummary:
    """What the parent wants to know of a finished part."""

    number: int
    documents: int
    sentences: int
    tokens: int
    left_out: int  # of the input: lines, rows, pages and sentences
    sha256: str  # of the documents' ids and boundaries
    notes: tuple[str, ...]


def tokenize_batch(batch: Batch, folder: Path, vocabulary: VocabularyFile, settings: TextSettings) -> PartSummary:
    """Write the part of one batch."""
    canonical = canonical_text(batch, settings)
    tokenizer = _tokenizer(vocabulary)
    blocks = [tokenizer.encode(block) for block in text_blocks(canonical.text)]
    ids, line_tokens, blank = (np.concatenate(column) for column in zip(*blocks, strict=True))
    is_sentence = line_tokens > 0
    sentence_tokens = line_tokens[is_sentence]
    document = np.cumsum(blank)[is_sentence]
    _, first, document_sentences = np.unique(document, return_index=True, return_counts=True)
    document_tokens = np.add.reduceat(sentence_tokens, first) if len(first) else first

    histogram = Histogram.of(sentence_tokens)
    part = Part(folder, batch.number)
    write_synced(part.path("tokens"), ids.tobytes())
    write_synced(part.path("sentences"), sentence_tokens.astype(SENTENCE_TYPE).tobytes())
    index = {
        **usage_arrays(tokenizer.take_usage()),
        "document_sentences": document_sentences,
        "document_tokens": document_tokens,
        "tokens_bytes": np.array(ids.nbytes),
        "sentences_bytes": np.array(len(sentence_tokens) * np.dtype(SENTENCE_TYPE).itemsize),
        "sentence_values": histogram.values,
        "sentence_counts": histogram.counts,
        "sentence_hashes": _sampled_hashes(ids, sentence_tokens),
        "left_out": np.array(canonical.left_out),
        "notes": np.array(canonical.notes, dtype=str),
        "sha256": np.array(_sha256(ids, sentence_tokens, document_sentences)),
    }
    file = io.BytesIO()
    np.savez(file, **index)  # type: ignore[arg-type]
    write_synced(part.path("npz"), file.getvalue())
    return summary(part)


def summary(part: Part) -> PartSummary:
    """The summary of a part that is done."""
    index = part.index()
    return PartSummary(
        number=part.number,
        documents=len(index["document_tokens"]),
        sentences=int(index["document_sentences"].sum()),
        tokens=int(index["document_tokens"].sum()),
        left_out=int(index["left_out"]),
        sha256=str(index["sha256"]),
        notes=tuple(map(str, index["notes"])),
    )


@lru_cache(maxsize=1)
def _tokenizer(vocabulary: VocabularyFile) -> Tokenizer:
    """One tokenizer a process: its memory of words is what makes it fast."""
    return Tokenizer(vocabulary.read())


def text_blocks(text: str) -> Iterator[str]:
    """Whole lines of about BLOCK_CHARACTERS."""
    start = 0
    while start < len(text):
        stop = text.find("\n", start + BLOCK_CHARACTERS) + 1 or len(text)
        yield text[start:stop]
        start = stop


def _sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _sampled_hashes(ids: np.ndarray, sentence_tokens: np.ndarray) -> np.ndarray:
    """uint64 hashes that are multiples of HASH_SAMPLE: of equal sentences either all are in it or none."""
    if not len(sentence_tokens):
        return np.empty(0, np.uint64)
    starts = np.cumsum(sentence_tokens) - sentence_tokens
    place = (np.arange(len(ids)) - np.repeat(starts, sentence_tokens)).astype(np.uint64)
    mixed = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ place * np.uint64(
        0xC2B2AE3D27D4EB4F
    )
    mixed *= mixed >> np.uint64(29) | np.uint64(1)
    mixed ^= mixed >> np.uint64(32)
    hashes = np.add.reduceat(mixed * np.uint64(0x165667B19E3779F9), starts)
    hashes ^= hashes >> np.uint64(31)
    return hashes[hashes % np.uint64(HASH_SAMPLE) == 0]
