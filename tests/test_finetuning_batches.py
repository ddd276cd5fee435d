"""Random batches in parts by length: the order, the parts, their gradients; the collator; cached features."""

import copy
import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from question_answering import QuestionAnswering
from text_classification import TextClassification
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from central.finetuning.arguments import ReferenceFlags
from central.finetuning.batching import (
    Collator,
    LengthBatches,
    PartsCollator,
    buckets_of,
    cheapest_parts,
    epoch_order,
    one_part,
    parts_of_rows,
    to_bucket,
    to_longest,
    to_multiple,
    to_tiles,
)
from central.finetuning.features import Features, Ragged, cache_file, cached, tokenizer_key
from central.finetuning.trainer import FineTuningTrainer
from central.runtime.device import open_device
from central.runtime.rank import Rank, StopRequest

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


def test_a_batch_is_a_random_sample():
    """Its mean length varies as that of random examples: with a deviation smaller by the root of their number."""
    means = LENGTHS[epoch_order(LENGTHS, 16, 3, 0)[:1984]].reshape(-1, 16).mean(1)
    assert means.std() == pytest.approx(LENGTHS.std() / 4, rel=0.25)  # 124 batches: 6 % is one standard error
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.4


def test_ranks_of_a_step_get_batches_of_equal_cost():
    order = epoch_order(LENGTHS, 32, 5, 0, ranks=2)[:1984]
    steps = LENGTHS[order].reshape(-1, 2, 16)  # what accelerate deals to the ranks in turn
    assert np.abs(steps[:, 0].sum(1) - steps[:, 1].sum(1)).max() < 16 * 4


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 600), min_size=1, max_size=9),
    cost=st.integers(0, 1000),
    padded=st.sampled_from([to_longest, partial(to_tiles, tile=64, limit=600)]),
)
def test_parts_cost_least(lengths, cost, padded):
    """Against every way to cut so few rows."""
    lengths = sorted(lengths)
    count = len(lengths)

    def total(parts: list[slice]) -> int:
        rows = [lengths[part] for part in parts]
        return sum(len(part) * padded(len(part), max(part)) + cost for part in rows)

    every_way = itertools.chain.from_iterable(itertools.combinations(range(1, count), n) for n in range(count))
    least = min(total([slice(*ends) for ends in itertools.pairwise((0, *cuts, count))]) for cuts in every_way)
    assert total(cheapest_parts(lengths, padded, cost)) == least


@given(lengths=st.lists(st.integers(1, 600), min_size=1, max_size=70))
def test_parts_hold_each_row_once(lengths):
    lengths = sorted(lengths)
    for parts in (cheapest_parts(lengths), parts_of_rows(lengths, 8), one_part(lengths)):
        assert [row for part in parts for row in range(len(lengths))[part]] == list(range(len(lengths)))
        assert all(lengths[part] for part in parts)
    assert [len(lengths[part]) for part in parts_of_rows(lengths, 8)[:-1]] == [8] * ((len(lengths) - 1) // 8)


@pytest.mark.parametrize(("tile", "most", "shapes"), [(1, 1.2, 200), (64, 1.3, 40)])
def test_little_is_padded(tile, most, shapes):
    batches = LENGTHS[epoch_order(LENGTHS, 32, 3, 0)[:1984]].reshape(-1, 32)
    padded = partial(to_tiles, tile=tile, limit=128)
    parts = [batch[part] for batch in batches for part in cheapest_parts(batch, padded)]
    computed = [len(part) * padded(len(part), part.max()) for part in parts]
    assert batches.sum() < sum(computed) < most * batches.sum()
    assert len(parts) > 200 and len(set(computed)) < shapes
    assert batches.max(1).sum() * 32 > 1.7 * batches.sum()  # computed in one part


@given(rows=st.integers(1, 70), longest=st.integers(1, 500), more=st.integers(0, 100))
def test_a_part_is_padded_to_whole_tiles_within_the_limit(rows, longest, more):
    length = to_tiles(rows, longest, tile=64, limit=longest + more)
    assert longest <= length <= longest + more
    whole = [n for n in range(longest, longest + 64) if n * rows % 64 == 0]
    assert length == min(whole[0], longest + more)


@pytest.mark.parametrize("head", [AutoModelForSequenceClassification, AutoModelForQuestionAnswering])
def test_the_gradients_of_parts_add_up_to_those_of_the_batch(tiny_model, tiny_tokenizer, tmp_path, head):
    rng = np.random.default_rng(5)
    rows = []
    for length in sorted(rng.integers(4, 60, 11)):
        answer = rng.integers(0, length, 2)
        targets = {"labels": rng.integers(0, 2)}
        if head is AutoModelForQuestionAnswering:
            targets = {"start_positions": answer.min(), "end_positions": answer.max()}
        rows.append({"input_ids": rng.integers(5, 60, length), **targets})
    found = []
    for cut in (one_part, lambda lengths: cheapest_parts(lengths, cost=10)):
        model = head.from_pretrained(tiny_model, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        for parameter, values in model.named_parameters():  # the same new head each time
            if not parameter.startswith("bert."):
                torch.nn.init.constant_(values, 0.1) if values.ndim == 1 else torch.nn.init.eye_(values)
        trainer = FineTuningTrainer(
            model=model,
            args=TrainingArguments(output_dir=str(tmp_path / "o"), use_cpu=True, report_to=[]),
            processing_class=tiny_tokenizer,
            task=QuestionAnswering if head is AutoModelForQuestionAnswering else TextClassification,
            device=open_device("cpu", "eager", "fp32", Rank()),
            flags=ReferenceFlags(),
            pad_to_max_length=False,
            max_seq_length=64,
            stop=StopRequest(),
        )
        batch = PartsCollator(trainer.data_collator, cut)(rows)
        assert len(batch["parts"]) == 1 if cut is one_part else len(batch["parts"]) > 3
        trainer.current_gradient_accumulation_steps = 1  # as the loop around a step sets it
        loss = trainer.training_step(model, batch)
        found.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (whole_loss, whole), (parts_loss, parts) = found
    torch.testing.assert_close(parts_loss, whole_loss)
    assert whole.keys() == parts.keys()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6)


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
    for padded, length in (
        (partial(to_bucket, buckets=(3, 6, 8)), 6),
        (partial(to_multiple, multiple=8, limit=512), 8),
        (partial(to_multiple, multiple=8, limit=5), 5),
        (partial(to_tiles, tile=64, limit=512), 32),
    ):
        assert Collator(9, side, padded)(rows)["input_ids"].shape == (2, length)


@pytest.mark.parametrize(("longest", "bucket"), [(1, 3), (3, 3), (4, 6), (6, 6), (8, 8)])
def test_the_smallest_bucket_that_holds_the_longest_is_taken(longest, bucket):
    assert to_bucket(2, longest, (3, 6, 8)) == bucket


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


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-3), (True, 5e-2)])
def test_a_training_ends_where_hugging_faces_own_does(tiny_model, tiny_tokenizer, tmp_path, bf16, tolerance):
    """The same random batches, whole and in parts, without dropout: 30 steps of AdamW with clipping."""
    rng = np.random.default_rng(7)
    rows = [list(rng.integers(5, 60, length)) for length in rng.integers(4, 60, 100)]
    labels = np.array([row[0] > 30 for row in rows], np.int64)
    data, asked = Features({"input_ids": Ragged.of(rows), "labels": labels}), torch.as_tensor([row[:4] for row in rows])

    class Theirs(Trainer):
        def _get_train_sampler(self, train_dataset=None):
            return LengthBatches(data.lengths, 16, self.args.seed)

    def trained(trainer_class, **more):
        set_seed(1)
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = AutoModelForSequenceClassification.from_pretrained(tiny_model, **no_dropout)
        training = TrainingArguments(
            output_dir=str(tmp_path / trainer_class.__name__),
            per_device_train_batch_size=16,
            learning_rate=2e-3,
            max_steps=30,
            save_strategy="no",
            use_cpu=True,
            bf16=bf16,
            report_to=[],
            optim="adamw_torch_fused",
            remove_unused_columns=False,
        )
        trainer = trainer_class(model=model, args=training, processing_class=tiny_tokenizer, train_dataset=data, **more)
        loss = trainer.train().training_loss
        with torch.no_grad():
            return loss, model.eval()(asked).logits

    their_loss, theirs = trained(Theirs, data_collator=Collator(tiny_tokenizer.pad_token_id))
    device = open_device("cpu", "eager", "bf16" if bf16 else "fp32", Rank())
    own = {"task": TextClassification, "device": device, "flags": ReferenceFlags(), "stop": StopRequest()}
    own |= {"pad_to_max_length": False, "max_seq_length": 64}
    loss, ours = trained(FineTuningTrainer, **own)
    assert loss == pytest.approx(their_loss, rel=tolerance / 10)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert loss < 0.68  # something was learnt
