"""Rows of token ids from pairs, and BERT's masks on them, for thousands of sequences at once."""

from dataclasses import dataclass

import numpy as np

from pretraining.data.instances import SPECIALS, Documents, Pairs
from pretraining.data.wordpiece import Vocabulary


@dataclass(frozen=True)
class MaskSettings:
    max_predictions_per_seq: int
    masked_lm_prob: float
    whole_word_masking: bool = False


def token_rows(
    documents: Documents, pairs: Pairs, max_seq_length: int, vocabulary: Vocabulary
) -> dict[str, np.ndarray]:
    """[CLS] a [SEP] b [SEP] and its mask and segments, padded with 0: int32 and int8 [rows, max_seq_length]."""
    rows = np.arange(len(pairs))
    columns = np.arange(max_seq_length)
    second_sep = pairs.lengths - 1
    first_sep = pairs.a_tokens + 1
    in_b = columns > first_sep[:, None]
    # Column c of segment a is token a_start + c - 1; of segment b, b_start + c - (a_tokens + 2).
    index = columns + np.where(in_b, (pairs.b_start - first_sep - 1)[:, None], (pairs.a_start - 1)[:, None])
    input_ids = documents.tokens.take(index, mode="clip").astype(np.int32)
    input_ids[:, 0] = vocabulary.ids["[CLS]"]
    input_ids[rows, first_sep] = vocabulary.ids["[SEP]"]
    input_ids[rows, second_sep] = vocabulary.ids["[SEP]"]
    real = columns <= second_sep[:, None]
    input_ids *= real
    return {
        "input_ids": input_ids,
        "input_mask": real.view(np.int8),
        "segment_ids": (in_b & real).view(np.int8),
        "next_sentence_labels": pairs.is_random.view(np.int8),
    }


def mask_rows(
    arrays: dict[str, np.ndarray],
    pairs: Pairs,
    settings: MaskSettings,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> None:
    """Choose the predicted positions, put [MASK] (80 %), a random token (10 %) or nothing (10 %) there, in place.

    Adds masked_lm_positions and masked_lm_ids, int32 [rows, max_predictions_per_seq]: ascending, 0 where unused.
    """
    input_ids = arrays["input_ids"]
    wanted = np.rint(pairs.lengths * settings.masked_lm_prob).astype(np.int64)  # half to even, as Python's round
    wanted = np.clip(wanted, 1, np.minimum(settings.max_predictions_per_seq, pairs.lengths - SPECIALS))
    choose = _whole_words if settings.whole_word_masking else _single_tokens
    positions, used = choose(input_ids, pairs, wanted, settings.max_predictions_per_seq, vocabulary, rng)

    labels = np.take_along_axis(input_ids, positions, axis=1)
    draw = rng.random(positions.shape, dtype=np.float32)
    random_tokens = rng.integers(0, len(vocabulary), positions.shape, dtype=np.int32)
    replaced = np.where(draw < 0.8, np.int32(vocabulary.ids["[MASK]"]), np.where(draw < 0.9, labels, random_tokens))
    rows, slots = np.nonzero(used)
    input_ids[rows, positions[rows, slots]] = replaced[rows, slots]
    arrays["masked_lm_positions"] = (positions * used).astype(np.int32)
    arrays["masked_lm_ids"] = labels * used


def _single_tokens(
    input_ids: np.ndarray,
    pairs: Pairs,
    wanted: np.ndarray,
    slots: int,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """(positions in order, which slots are used), [rows, slots]: the `wanted` candidates with the smallest random keys.

    A key is random bits above the position's own bits, so one sort of plain integers is a choice without replacement.
    """
    seq_len = input_ids.shape[1]
    columns, position_bits = _columns(seq_len, np.uint32)
    keys = _random_integers(input_ids.shape, np.uint32, rng)
    keys &= ~position_bits
    keys |= columns
    _forbid(keys, pairs)
    keys.sort(axis=1)
    keys = keys[:, :slots]
    return _in_order(keys & position_bits, np.arange(slots) < wanted[:, None], slots, seq_len)


def _whole_words(
    input_ids: np.ndarray,
    pairs: Pairs,
    wanted: np.ndarray,
    slots: int,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """As `_single_tokens`, but all pieces of a word or none: in random order, one that does not fit is skipped."""
    rows = np.arange(len(pairs))
    columns, position_bits = _columns(input_ids.shape[1], np.uint64)
    starts_word = ~vocabulary.continuation[input_ids]
    starts_word[:, 1] = True
    starts_word[rows, pairs.a_tokens + 2] = True
    word_start = np.maximum.accumulate(np.where(starts_word, columns, np.uint64(0)), axis=1)
    # Random bits of the word's first piece, that piece's position, the own position: a word's pieces stay together.
    shift = np.uint64(int(position_bits).bit_length())
    random_bits = _random_integers(input_ids.shape, np.uint64, rng) & ~(position_bits << shift | position_bits)
    keys = np.take_along_axis(random_bits, word_start.astype(np.int64), axis=1) | word_start << shift | columns
    _forbid(keys, pairs)
    keys.sort(axis=1)

    candidate = columns < (pairs.lengths - SPECIALS)[:, None]
    word_start = keys >> shift & position_bits
    word = np.cumsum(word_start != np.roll(word_start, 1, axis=1), axis=1)
    word -= word[:, :1]
    width = word.max() + 1
    sizes = np.bincount((word + rows[:, None] * width)[candidate], minlength=len(rows) * width).reshape(-1, width)
    taken, count = np.zeros(sizes.shape, bool), np.zeros(len(rows), np.int64)
    for number in range(width):
        taken[:, number] = count + sizes[:, number] <= wanted
        count += sizes[:, number] * taken[:, number]
        if (count == wanted).all():
            break
    used = np.take_along_axis(taken, word, axis=1) & candidate
    return _in_order(keys & position_bits, used, slots, input_ids.shape[1])


def _columns(seq_len: int, kind: type[np.unsignedinteger]) -> tuple[np.ndarray, np.unsignedinteger]:
    """Positions of a row, and a mask of the bits that hold them."""
    return np.arange(seq_len, dtype=kind), kind((1 << (seq_len - 1).bit_length()) - 1)


def _random_integers(shape: tuple[int, int], kind: type[np.unsignedinteger], rng: np.random.Generator) -> np.ndarray:
    """Random bits; drawn as 64-bit integers, which costs half as much as 32-bit ones."""
    width = np.dtype(kind).itemsize
    count = shape[0] * shape[1]
    drawn = rng.integers(0, (1 << 64) - 1, -(-count * width // 8), dtype=np.uint64, endpoint=True)
    return drawn.view(kind)[:count].reshape(shape)


def _forbid(keys: np.ndarray, pairs: Pairs) -> None:
    """Give [CLS], [SEP] and padding the largest key, so that they are sorted last and never chosen."""
    last = np.iinfo(keys.dtype).max
    keys[:, 0] = last
    keys[np.arange(len(pairs)), pairs.a_tokens + 1] = last
    keys[np.arange(keys.shape[1]) >= (pairs.lengths - 1)[:, None]] = last


def _in_order(positions: np.ndarray, used: np.ndarray, slots: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """The used positions of each row, ascending, then 0."""
    ordered = np.where(used, positions, seq_len).astype(np.int32)
    ordered.sort(axis=1)
    ordered = ordered[:, :slots]
    used = ordered < seq_len
    return ordered * used, used
