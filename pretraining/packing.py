"""Several sequences in one row, in Habana's packed layout: which go together, and how the row is laid out.

A packed row has up to three sequences end to end. `input_mask` numbers them 1, 2, 3 (0 is padding) so that attention
stays within one, `positions` restart at each, and next-sentence labels are given at the places of their [CLS].
"""

import numpy as np

MAX_SEQUENCES_PER_PACK = 3


def pack_lengths(lengths: np.ndarray, seq_len: int) -> np.ndarray:
    """Which sequences share a row: int64 [packs, 3] of their numbers, -1 where there is none.

    Works on the histogram of lengths: the longest left takes the two lengths (or the one) that fill its row best,
    as often as they last. Fills 99 % and more where fullest-row-first with three sequences a row stays below 98 %.
    """
    left = np.bincount(lengths, minlength=seq_len + 1)
    taken = []  # (packs, lengths in each)
    for longest in range(seq_len, 0, -1):
        while left[longest]:
            left[longest] -= 1
            row = (longest, *_best_partners(left, min(longest, seq_len - longest), seq_len - longest))
            left[longest] += 1
            parts, uses = np.unique(row, return_counts=True)
            packs = int((left[parts] // uses).min())
            left[parts] -= packs * uses
            taken.append((packs, row))
    return _hand_out(lengths, taken)


def _best_partners(left: np.ndarray, most: int, room: int) -> tuple[int, ...]:
    """Up to two lengths of at most `most` that together come nearest to `room`: two rather than one when equal."""
    present = np.flatnonzero(left[1 : most + 1]) + 1
    if not len(present):
        return ()
    single = int(present[-1])
    best_below = np.zeros(room + 1, np.int64)  # the longest one present that fits into a room of this size
    best_below[present] = present
    best_below = np.maximum.accumulate(best_below)
    first = present[present <= room // 2]
    second = best_below[room - first]
    possible = (second > first) | ((second == first) & (left[first] > 1))
    together = np.where(possible, first + second, 0)
    if len(first) and together.max() >= single:
        pair = int(together.argmax())
        return int(first[pair]), int(second[pair])
    return (single,)


def _hand_out(lengths: np.ndarray, taken: list[tuple[int, tuple[int, ...]]]) -> np.ndarray:
    """Give each place of each pack a sequence of its length, in the order in which they come."""
    packs = sum(count for count, _ in taken)
    wanted = np.zeros((packs, MAX_SEQUENCES_PER_PACK), np.int64)
    start = 0
    for count, row in taken:
        wanted[start : start + count, : len(row)] = row
        start += count
    numbers = np.full(wanted.size, -1)
    places = np.argsort(wanted, axis=None, kind="stable")[wanted.size - len(lengths) :]  # after the empty places
    numbers[places] = np.argsort(lengths, kind="stable")
    return numbers.reshape(wanted.shape)


def predictions_needed(predictions: np.ndarray, packs: np.ndarray) -> int:
    """Most masked tokens in one pack, from the number in each sequence."""
    return int((np.where(packs >= 0, predictions[packs], 0)).sum(axis=1).max(initial=0))


def pack_rows(rows: dict[str, np.ndarray], packs: np.ndarray, predictions: int) -> dict[str, np.ndarray]:
    """Lay out packs: from arrays of single sequences [rows, ...] to the packed arrays [packs, ...].

    `predictions` is the number of slots for masked tokens in a row.
    """
    seq_len = rows["input_ids"].shape[1]
    there = packs >= 0
    lengths = np.where(there, np.count_nonzero(rows["input_mask"], axis=1)[packs], 0)
    masked = np.where(there, np.count_nonzero(rows["masked_lm_positions"], axis=1)[packs], 0)
    token_slot, token_column, real = _places(lengths, seq_len)
    mask_slot, mask_column, used = _places(masked, predictions)
    token_row = np.take_along_axis(packs, token_slot, axis=1)
    mask_row = np.take_along_axis(packs, mask_slot, axis=1)
    starts = np.cumsum(lengths, axis=1) - lengths
    labels = rows["next_sentence_labels"].reshape(-1)[packs]
    return {
        "input_ids": rows["input_ids"][token_row, token_column] * real,
        "input_mask": ((token_slot + 1) * real).astype(np.int32),
        "segment_ids": rows["segment_ids"][token_row, token_column] * real.astype(np.int8),
        "positions": (token_column * real).astype(np.int32),
        "masked_lm_positions": (
            (rows["masked_lm_positions"][mask_row, mask_column] + np.take_along_axis(starts, mask_slot, axis=1)) * used
        ).astype(np.int32),
        "masked_lm_ids": rows["masked_lm_ids"][mask_row, mask_column] * used,
        "next_sentence_positions": (starts * there).astype(np.int32),
        "next_sentence_labels": (labels * there).astype(np.int8),
        "next_sentence_weights": there.astype(np.int32),
    }


def _places(counts: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For rows of `counts` [packs, 3] things end to end: (which of the three, its column in it, is one there)."""
    ends = np.cumsum(counts, axis=1)
    columns = np.arange(width)
    slot = (columns >= ends[:, :1]).astype(np.int64) + (columns >= ends[:, 1:2])
    column = columns - np.take_along_axis(ends - counts, slot, axis=1)
    there = columns < ends[:, 2:]
    return slot, np.where(there, column, 0), there
