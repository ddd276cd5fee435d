"""Batches by length: a pure function of seed and epoch, equal cost for all ranks; the collator; cached features."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from central.runtime.features import Features, Ragged, cache_file, cached, tokenizer_key
from central.runtime.length_batches import Collator, LengthBatches, buckets_of, epoch_order

pytest_plugins = ("finetuning_fixtures",)

LENGTHS = np.random.default_rng(0).integers(8, 128, 2000)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 300), per_rank=st.integers(1, 9), ranks=st.integers(1, 4), epoch=st.integers(0, 3))
def test_an_epoch_holds_each_example_once(count, per_rank, ranks, epoch):
    lengths = LENGTHS[:count]
    order = epoch_order(lengths, per_rank * ranks, seed=1, epoch=epoch, ranks=ranks)
    assert sorted(order) == list(range(count))
    filled = epoch_order(lengths, per_rank * ranks, seed=1, epoch=epoch, ranks=ranks, fill=True)
    assert len(filled) % (per_rank * ranks) == 0 and set(filled) == set(range(count))
    assert len(LengthBatches(lengths, per_rank * ranks, 1, ranks, fill=True)) == len(filled)


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return epoch_order(LENGTHS, 32, seed, epoch).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1) and order(1, 0) != order(2, 0)


def test_little_is_padded_and_the_batches_have_no_trend():
    batches = LENGTHS[epoch_order(LENGTHS, 16, 3, 0)[:1984]].reshape(-1, 16)
    assert batches.max(1).sum() * 16 < 1.06 * batches.sum()
    assert abs(np.corrcoef(np.arange(len(batches)), batches.mean(1))[0, 1]) < 0.4


def test_neighbours_change_from_epoch_to_epoch():
    def partners(epoch):
        batches = epoch_order(LENGTHS, 16, 3, epoch)[:1984].reshape(-1, 16)
        return {frozenset((a, b)) for batch in batches for a in batch for b in batch if a < b}

    first, second = partners(0), partners(1)
    assert len(first & second) < 0.3 * len(first)


def test_ranks_of_a_step_get_batches_of_equal_cost():
    order = epoch_order(LENGTHS, 32, 5, 0, ranks=2)[:1984]
    steps = LENGTHS[order].reshape(-1, 2, 16)  # what accelerate deals to the ranks in turn
    assert np.abs(steps[:, 0].sum(1) - steps[:, 1].sum(1)).max() < 16 * 4


def features(lengths):
    return Features(
        {"input_ids": Ragged.of([list(range(1, n + 1)) for n in lengths]), "labels": np.arange(len(lengths))},
        {"offsets": Ragged.of([[(i, i + 1) for i in range(n)] for n in lengths])},
    )


@pytest.mark.parametrize(("side", "ids"), [("right", [1, 2, 9, 9]), ("left", [9, 9, 1, 2])])
def test_the_collator_pads_to_the_longest_or_to_a_bucket(side, ids):
    rows = [features([2, 4])[i] for i in range(2)]
    batch = Collator(pad_token_id=9, padding_side=side)(rows)
    assert batch["input_ids"][0].tolist() == ids
    assert batch["attention_mask"][0].tolist() == [int(i != 9) for i in ids]
    assert batch["labels"].tolist() == [0, 1]
    assert Collator(9, side, buckets=(3, 6, 8))(rows)["input_ids"].shape == (2, 6)
    assert Collator(9, side, multiple=8)(rows)["input_ids"].shape == (2, 8)


def test_buckets_are_few_and_end_at_the_maximum():
    assert buckets_of(128) == (32, 64, 96, 128)
    assert buckets_of(384) == (96, 192, 288, 384)
    assert buckets_of(10) == (8, 10)


def test_features_come_back_from_their_file(tmp_path):
    stored = features([3, 1, 2])
    stored.save(tmp_path / "f.npz")
    again = Features.load(tmp_path / "f.npz")
    assert again[2]["input_ids"].tolist() == [1, 2] and again.lengths.tolist() == [3, 1, 2]
    assert again.extras["offsets"][1].tolist() == [[0, 1]]
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]


def test_the_cache_is_keyed_by_everything_and_repairs_itself(tmp_path, capsys):
    path = cache_file(str(tmp_path), data="a", max_length=128)
    assert path != cache_file(str(tmp_path), data="b", max_length=128)
    assert path != cache_file(str(tmp_path), data="a", max_length=64)
    made = []
    make = lambda: made.append(1) or features([2])  # noqa: E731
    cached(path, make, overwrite=False)
    cached(path, make, overwrite=False)
    assert len(made) == 1
    cached(path, make, overwrite=True)
    path.write_bytes(path.read_bytes()[:100])
    assert len(cached(path, make, overwrite=False)) == 1
    assert len(made) == 3 and "damaged" in capsys.readouterr().out


def test_the_key_of_a_tokenizer_is_what_it_does_to_a_text(tiny_tokenizer):
    key, names = tokenizer_key(tiny_tokenizer), tiny_tokenizer.model_input_names
    assert len(tiny_tokenizer("good " * 9, truncation=True, max_length=4)["input_ids"]) == 4
    assert tokenizer_key(tiny_tokenizer) == key  # a call leaves its settings behind
    other = copy.deepcopy(tiny_tokenizer)
    other.model_input_names = [name for name in names if name != "token_type_ids"]
    assert tokenizer_key(other) != key
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["w99"])
    assert tokenizer_key(other) != key


def test_a_cache_that_cannot_be_written_costs_no_run(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert len(cached(tmp_path / "file" / "f.npz", lambda: features([2]), overwrite=False)) == 1
    assert "not cached" in capsys.readouterr().out
