"""BERT's next-sentence pairs for many documents at once: the reference's walk, in lock-step over flat arrays.

A lane is one document of one duplicate. Every turn of the loop takes the next pair from each lane that has sentences
left, so the work is a few dozen array operations a turn, whatever the number of documents.
"""

from dataclasses import dataclass

import numpy as np

SPECIALS = 3  # [CLS] a [SEP] b [SEP]


@dataclass(frozen=True)
class Documents:
    """Tokenised documents end to end."""

    tokens: np.ndarray  # [tokens] ids
    sentence_ends: np.ndarray  # int64[sentences + 1]: running total of tokens, from 0; sentences are not empty
    document_ends: np.ndarray  # int64[documents + 1]: running total of sentences, from 0; documents are not empty

    def __len__(self) -> int:
        return len(self.document_ends) - 1


def cut_long_sentences(documents: Documents, most: int) -> Documents:
    """Sentences of `most` tokens or more as several of about half of that: of longer ones a sequence holds a part."""
    lengths = np.diff(documents.sentence_ends)
    pieces = np.where(lengths >= most, -(-lengths // max(1, most // 2)), 1)
    if (pieces == 1).all():
        return documents
    before = np.cumsum(pieces) - pieces
    place = np.arange(pieces.sum()) - np.repeat(before, pieces) + 1
    ends = np.repeat(documents.sentence_ends[:-1], pieces) + np.repeat(lengths, pieces) * place // np.repeat(
        pieces, pieces
    )
    totals = np.concatenate([[0], np.cumsum(pieces)])
    return Documents(documents.tokens, np.concatenate([[0], ends]), totals[documents.document_ends])


@dataclass(frozen=True)
class Pairs:
    """One sequence a row: where its two segments lie in the tokens. All arrays [sequences]."""

    a_start: np.ndarray
    a_tokens: np.ndarray
    b_start: np.ndarray
    b_tokens: np.ndarray
    is_random: np.ndarray  # bool: the second segment is from another document

    def __len__(self) -> int:
        return len(self.a_start)

    def __getitem__(self, rows: slice | np.ndarray) -> "Pairs":
        return Pairs(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @property
    def lengths(self) -> np.ndarray:
        return self.a_tokens + self.b_tokens + SPECIALS


def covered_tokens(pairs: Pairs) -> int:
    """How many tokens of the text are in at least one of the sequences."""
    starts = np.concatenate([pairs.a_start, pairs.b_start])
    ends = starts + np.concatenate([pairs.a_tokens, pairs.b_tokens])
    order = np.argsort(starts)
    starts, ends = starts[order], ends[order]
    covered_before = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])
    return int(np.maximum(ends - np.maximum(starts, covered_before), 0).sum())


def make_pairs(
    documents: Documents,
    max_seq_length: int,
    dupe_factor: int,
    short_seq_prob: float,
    rng: np.random.Generator,
) -> Pairs:
    """Pairs of all documents, `dupe_factor` times over, shuffled.

    As the reference: a chunk of sentences up to the target length is cut after a random sentence; half of the time,
    or when the chunk is a single sentence, the second half is replaced by text from a random place of another document
    and the unused sentences go back. A target is the full length, or with `short_seq_prob` a random one a document.
    """
    max_tokens = max_seq_length - SPECIALS
    ends, first = documents.sentence_ends, documents.document_ends
    document = np.tile(np.arange(len(documents)), dupe_factor)
    position, stop = first[document], first[document + 1]  # sentences
    short = rng.random(len(document)) < short_seq_prob
    target = np.where(short, rng.integers(2, max_tokens + 1, len(document)), max_tokens)

    turns = []
    while len(position):
        chunk_end = np.minimum(np.searchsorted(ends, ends[position] + target), stop)
        sentences = chunk_end - position
        a_end = position + rng.integers(1, np.maximum(sentences, 2))
        is_random = (sentences == 1) | (rng.random(len(position)) < 0.5)
        a_start, a_tokens = ends[position], ends[a_end] - ends[position]
        b_start, b_tokens = ends[a_end], ends[chunk_end] - ends[a_end]
        lanes = np.flatnonzero(is_random)
        own = (position[lanes], a_end[lanes])
        wanted = (target - a_tokens)[lanes]
        b_start[lanes], b_tokens[lanes] = _random_segments(documents, document[lanes], own, wanted, rng)
        turns.append((*_truncate(a_start, a_tokens, b_start, b_tokens, max_tokens, rng), is_random))

        position = np.where(is_random, a_end, chunk_end)
        alive = np.flatnonzero(position < stop)
        position, stop, target, document = position[alive], stop[alive], target[alive], document[alive]

    pairs = Pairs(*(np.concatenate(column) for column in zip(*turns, strict=True)))
    return pairs[rng.permutation(len(pairs))]


def _random_segments(
    documents: Documents,
    document: np.ndarray,
    own: tuple[np.ndarray, np.ndarray],
    target: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """(start, tokens) of whole sentences of at least `target` tokens from a random place in another document.

    A document that is alone gives its own, but not those of the first segment, `own` (first sentence, end), if it has
    others.
    """
    ends, first = documents.sentence_ends, documents.document_ends
    if len(documents) > 1:
        other = rng.integers(0, len(documents) - 1, len(document))
        other += other >= document  # every document but this one, equally likely
        start, limit = rng.integers(first[other], first[other + 1]), first[other + 1]
    else:
        a_first, a_end = own
        start = rng.integers(0, np.maximum(first[1] - (a_end - a_first), 1), len(document))
        start += np.where(start >= a_first, a_end - a_first, 0)
        start = np.where(a_end - a_first < first[1], start, 0)
        limit = np.where(start < a_first, a_first, first[1])
    stop = np.minimum(np.searchsorted(ends, ends[start] + np.maximum(target, 1)), limit)
    return ends[start], ends[stop] - ends[start]


def _truncate(
    a_start: np.ndarray,
    a_tokens: np.ndarray,
    b_start: np.ndarray,
    b_tokens: np.ndarray,
    max_tokens: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Drop tokens one by one from the longer segment, the second when equal, each from a random end: in closed form."""
    excess = np.maximum(a_tokens + b_tokens - max_tokens, 0)
    difference = a_tokens - b_tokens
    level = np.minimum(excess, np.abs(difference))  # drops until both are equally long
    rest = excess - level  # then in turn, the second first
    a_drop = np.where(difference > 0, level, 0) + rest // 2
    b_drop = excess - a_drop
    a_front, b_front = rng.binomial(np.array([a_drop, b_drop]), 0.5)  # a call costs more than what it draws
    return a_start + a_front, a_tokens - a_drop, b_start + b_front, b_tokens - b_drop
