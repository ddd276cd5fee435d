"""Pairs and masks: what must hold for every sequence, and statistics equal to a slow program of BERT's algorithm."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.data.instances import Documents, Pairs, covered_tokens, cut_long_sentences, make_pairs
from pretraining.data.masking import MaskSettings, mask_rows, token_rows
from pretraining.data.wordpiece import SPECIAL_TOKENS, Vocabulary

VOCABULARY = Vocabulary((*SPECIAL_TOKENS, *(f"w{n}" for n in range(600)), *(f"##p{n}" for n in range(395))))
PAD, UNK, CLS, SEP, MASK = range(5)
DUPES = 24  # enough that chance differences are small


def documents_of(lists: list[list[list[int]]]) -> Documents:
    """Flat arrays of documents given as lists of sentences of ids."""
    sentences = [sentence for document in lists for sentence in document]
    return Documents(
        tokens=np.array([token for sentence in sentences for token in sentence], np.uint16),
        sentence_ends=np.cumsum([0, *map(len, sentences)]),
        document_ends=np.cumsum([0, *map(len, lists)]),
    )


def random_documents(seed: int, count: int, sentences: int = 30, tokens: int = 25) -> list[list[list[int]]]:
    rng = random.Random(seed)
    return [
        [[rng.randrange(5, 1000) for _ in range(rng.randint(1, tokens))] for _ in range(rng.randint(1, sentences))]
        for _ in range(count)
    ]


def into_sentence(sentences, dropped: int) -> int:
    """Tokens between the start of a sentence and what is left of these after so many are dropped from the front."""
    for sentence in sentences:
        if dropped < len(sentence):
            break
        dropped -= len(sentence)
    return dropped


def slow_sequences(lists, seq_len: int, short_prob: float, rng: random.Random) -> list[tuple]:
    """(tokens of a, of b, random, how far a begins in a sentence, and b), as the paper's program walks the text."""
    found = []
    for number, sentences in enumerate(lists):
        room = seq_len - 3
        goal = rng.randint(2, room) if rng.random() < short_prob else room
        at = 0
        while at < len(sentences):
            held = 0
            stop = at
            while stop < len(sentences) and held < goal:
                held += len(sentences[stop])
                stop += 1
            cut = at + (rng.randint(1, stop - at - 1) if stop - at > 1 else 1)
            first = sum(len(sentence) for sentence in sentences[at:cut])
            is_random = stop - at == 1 or rng.random() < 0.5
            if is_random:
                other = rng.choice([k for k in range(len(lists)) if k != number])
                start, second = rng.randrange(len(lists[other])), 0
                of_b = lists[other][start:]
                for sentence in of_b:
                    second += len(sentence)
                    if second >= goal - first:
                        break
            else:
                of_b = sentences[cut:stop]
                second = sum(map(len, of_b))
            front_a = front_b = 0
            while first + second > room:
                from_front = rng.random() < 0.5
                if first > second:
                    first, front_a = first - 1, front_a + from_front
                else:
                    second, front_b = second - 1, front_b + from_front
            into = into_sentence(sentences[at:cut], front_a), into_sentence(of_b, front_b)
            found.append((first, second, is_random, *into))
            at = cut if is_random else stop
    return found


@pytest.mark.parametrize(("seq_len", "tokens"), [(64, 25), (128, 25), (64, 90)])
def test_statistics_equal_the_slow_algorithm(seq_len, tokens):
    lists = random_documents(1, 200, tokens=tokens)
    rng = random.Random(2)
    slow = [sequence for _ in range(DUPES) for sequence in slow_sequences(lists, seq_len, 0.1, rng)]
    documents = documents_of(lists)
    pairs = make_pairs(documents, seq_len, DUPES, 0.1, np.random.Generator(np.random.SFC64(3)))
    ends = documents.sentence_ends
    into = [start - ends[np.searchsorted(ends, start, side="right") - 1] for start in (pairs.a_start, pairs.b_start)]
    fast = list(zip(pairs.a_tokens, pairs.b_tokens, pairs.is_random, *into, strict=True))
    assert len(fast) == pytest.approx(len(slow), rel=0.02)
    columns = [lambda s, column=column: s[column] for column in range(5)]
    for what in (*columns, lambda s: s[0] + s[1], lambda s: s[0] > s[1]):
        a, b = np.array([what(s) for s in slow], float), np.array([what(s) for s in fast], float)
        error = np.hypot(a.std() / len(a) ** 0.5, b.std() / len(b) ** 0.5)
        assert abs(a.mean() - b.mean()) < 4 * error + 1e-9
    bins = np.linspace(0, seq_len, 9)
    shares = [np.histogram([s[0] + s[1] for s in sequences], bins)[0] / len(sequences) for sequences in (slow, fast)]
    assert np.abs(shares[0] - shares[1]).max() < 0.02


DOCUMENTS = st.lists(
    st.lists(st.lists(st.integers(5, 999), min_size=1, max_size=40), min_size=1, max_size=12), min_size=1, max_size=8
)


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS, st.integers(5, 70), st.integers(1, 3), st.integers(0, 2**32))
def test_what_holds_for_every_pair(lists, seq_len, dupe_factor, seed):
    documents = documents_of(lists)
    pairs = make_pairs(documents, seq_len, dupe_factor, 0.1, np.random.Generator(np.random.SFC64(seed)))
    assert (pairs.a_tokens >= 1).all() and (pairs.b_tokens >= 1).all()
    assert (pairs.lengths <= seq_len).all()
    limits = documents.sentence_ends[documents.document_ends]
    of = {}
    for segment in ("a", "b"):
        start, tokens = getattr(pairs, f"{segment}_start"), getattr(pairs, f"{segment}_tokens")
        of[segment] = np.searchsorted(limits, start, side="right") - 1
        assert (start + tokens <= limits[of[segment] + 1]).all()  # a segment stays inside of a document
    if len(lists) > 1:
        assert ((of["a"] == of["b"]) == ~pairs.is_random).all()
    assert (pairs.b_start[~pairs.is_random] >= (pairs.a_start + pairs.a_tokens)[~pairs.is_random]).all()
    assert set(of["a"]) == set(range(len(lists)))  # every document is used


def test_a_document_of_one_sentence_gets_a_random_partner():
    pairs = make_pairs(documents_of([[[7, 8, 9]], [[10, 11]]]), 16, 4, 0.0, np.random.Generator(np.random.SFC64(0)))
    assert len(pairs) == 8 and pairs.is_random.all()


def test_one_document_alone_pairs_with_itself():
    pairs = make_pairs(documents_of([[[7, 8], [9]]]), 16, 2, 0.0, np.random.Generator(np.random.SFC64(0)))
    assert len(pairs) >= 2


@pytest.mark.parametrize("sentences", [2, 3, 40])
@pytest.mark.parametrize("seq_len", [8, 16, 64])
def test_a_random_segment_of_a_document_alone_never_overlaps_its_first(sentences, seq_len):
    documents = documents_of([[[7] * (1 + number % 5) for number in range(sentences)]])
    pairs = make_pairs(documents, seq_len, 50, 0.1, np.random.Generator(np.random.SFC64(0)))
    apart = (pairs.a_start + pairs.a_tokens <= pairs.b_start) | (pairs.b_start + pairs.b_tokens <= pairs.a_start)
    assert apart.all() and pairs.is_random.any()
    assert (pairs.lengths <= seq_len).all() and (pairs.a_tokens > 0).all()
    if sentences == 40:
        assert (pairs.b_start[pairs.is_random] < pairs.a_start[pairs.is_random]).any()  # from before it, too


def test_long_sentences_are_cut_so_that_sequences_cover_them():
    lists = [[list(range(1000)), [1, 2, 3]], [[4] * 60], [[5] * 61, [6]], [[7] * 125]]
    documents = documents_of(lists)
    cut = cut_long_sentences(documents, 61)
    assert (cut.tokens == documents.tokens).all() and len(cut) == 4
    lengths = np.diff(cut.sentence_ends)
    assert lengths[:-1].max() <= 60 and lengths.min() == 1
    assert cut.sentence_ends[cut.document_ends].tolist() == documents.sentence_ends[documents.document_ends].tolist()
    assert np.diff(cut.document_ends).tolist() == [35, 1, 4, 5]
    assert cut_long_sentences(documents_of([[[1] * 60, [2]]]), 61).sentence_ends.tolist() == [0, 60, 61]
    shares = []
    for made in (documents, cut):
        pairs = make_pairs(made, 64, 5, 0.0, np.random.Generator(np.random.SFC64(0)))
        shares.append(covered_tokens(pairs) / len(documents.tokens))
        labels = pairs.is_random
    assert shares[0] < 0.6 and shares[1] > 0.97 and 0.2 < labels.mean() < 0.9


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 30)] * 4), min_size=1, max_size=20))
def test_covered_tokens_by_counting(rows):
    a, a_tokens, b, b_tokens = np.array(rows).T
    pairs = Pairs(a, a_tokens, b, b_tokens, np.zeros(len(rows), bool))
    covered = {
        place
        for start, count in zip((*a, *b), (*a_tokens, *b_tokens), strict=True)
        for place in range(start, start + count)
    }
    assert covered_tokens(pairs) == len(covered)


def masked(seq_len, slots, whole_words=False, prob=0.15, seed=0, count=150):
    documents = documents_of(random_documents(seed, count))
    rng = np.random.Generator(np.random.SFC64(seed))
    pairs = make_pairs(documents, seq_len, 2, 0.1, rng)
    before = token_rows(documents, pairs, seq_len, VOCABULARY)
    after = {name: array.copy() for name, array in before.items()}
    mask_rows(after, pairs, MaskSettings(slots, prob, whole_words), VOCABULARY, rng)
    return documents, pairs, before, after


def test_rows_hold_the_segments():
    documents, pairs, rows, _ = masked(64, 10)
    for number in range(0, len(pairs), 37):
        p = pairs[number]
        a = documents.tokens[p.a_start : p.a_start + p.a_tokens].tolist()
        b = documents.tokens[p.b_start : p.b_start + p.b_tokens].tolist()
        expected = [CLS, *a, SEP, *b, SEP]
        padding = [0] * (64 - len(expected))
        assert rows["input_ids"][number].tolist() == expected + padding
        assert rows["input_mask"][number].tolist() == [1] * len(expected) + padding
        assert rows["segment_ids"][number].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1) + padding
        assert rows["next_sentence_labels"][number] == p.is_random


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize(("seq_len", "slots", "prob"), [(64, 10, 0.15), (100, 7, 0.15), (64, 60, 0.9), (16, 3, 0.15)])
def test_what_holds_for_every_mask(whole_words, seq_len, slots, prob):
    _, pairs, before, after = masked(seq_len, slots, whole_words, prob)
    positions, labels = after["masked_lm_positions"], after["masked_lm_ids"]
    for number in range(len(pairs)):
        length = int(pairs.lengths[number])
        used = positions[number][positions[number] > 0]
        wanted = min(slots, max(1, round(length * prob)), length - 3)
        assert len(used) <= wanted if whole_words else len(used) == wanted
        assert (np.diff(used) > 0).all()
        assert (positions[number][len(used) :] == 0).all() and (labels[number][len(used) :] == 0).all()
        assert not set(before["input_ids"][number][used]) & {CLS, SEP, PAD}
        assert (labels[number][: len(used)] == before["input_ids"][number][used]).all()
        changed = np.flatnonzero(before["input_ids"][number] != after["input_ids"][number])
        assert set(changed) <= set(used)
        if whole_words:
            assert_whole_words(before["input_ids"][number], pairs[number], set(used))


def assert_whole_words(ids, pair, used):
    starts = {1, int(pair.a_tokens) + 2}
    word = []
    for place in range(1, int(pair.lengths) - 1):
        if place in starts or not VOCABULARY.continuation[ids[place]]:
            assert len({p in used for p in word}) < 2
            word = []
        if ids[place] != SEP:
            word.append(place)
    assert len({p in used for p in word}) < 2


def test_eighty_ten_ten():
    _, _, before, after = masked(128, 20, count=400)
    rows, slots = np.nonzero(after["masked_lm_positions"])
    places = after["masked_lm_positions"][rows, slots]
    new, old = after["input_ids"][rows, places], after["masked_lm_ids"][rows, slots]
    n = len(new)
    share_mask, share_kept = (new == MASK).mean(), (new == old).mean()
    assert abs(share_mask - 0.8 - 0.1 / len(VOCABULARY)) < 4 * (0.16 / n) ** 0.5
    assert abs(share_kept - 0.1 - 0.1 / len(VOCABULARY)) < 4 * (0.09 / n) ** 0.5
    random_tokens = new[(new != MASK) & (new != old)]
    counts = np.histogram(random_tokens, bins=10, range=(0, len(VOCABULARY)))[0]
    assert np.abs(counts - counts.mean()).max() < 5 * counts.mean() ** 0.5  # uniform over the vocabulary


def test_every_place_is_equally_likely():
    pairs = Pairs(*(np.full(20_000, value) for value in (0, 20, 20, 20)), np.zeros(20_000, bool))
    documents = documents_of([[list(range(5, 45))]])
    rows = token_rows(documents, pairs, 64, VOCABULARY)
    mask_rows(rows, pairs, MaskSettings(10, 0.15), VOCABULARY, np.random.Generator(np.random.SFC64(5)))
    counts = np.bincount(rows["masked_lm_positions"].ravel(), minlength=64)[1:42]
    counts = np.delete(counts, 20)  # [SEP]
    expected = counts.sum() / 40
    assert np.abs(counts - expected).max() < 5 * expected**0.5


def test_same_seed_same_rows():
    one, two = masked(64, 10, seed=4)[3], masked(64, 10, seed=4)[3]
    assert all((one[name] == two[name]).all() for name in one)
