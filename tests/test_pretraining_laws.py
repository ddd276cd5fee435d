"""Laws of a step that no other test would miss: divisors, seeds, dropout's scale, what is on disk before a rename."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pretraining_helpers import VOCAB_SIZE, make_columns, make_corpus
from test_pretraining_modeling import (
    WITH_DROPOUT,
    assert_same_gradients,
    gradients,
    hugging_face,
    make_model,
    rows_of,
)

from central.files import write_json
from central.launch import batch as batch_sizes
from central.runtime.device import Cpu
from pretraining import checkpoint
from pretraining.batches import Step, flat_micro_batches
from pretraining.data.files import write_synced
from pretraining.dataset import Limits, ShardReader, open_shards
from pretraining.distributed import Alone
from pretraining.evaluation import HeldOut, evaluate
from pretraining.kernels.cpu import CpuKernels, DropoutAddNorm
from pretraining.objective import OBJECTIVES
from pretraining.train_loop import Due, StopAgreement, TrainState, take_step, train


class Silent:
    """Stands in for what only watches: every call does nothing."""

    def __getattr__(self, _name):
        return lambda *_args, **_named: None


def loop_over(model, rows, *, rows_per_micro_batch=3, **state):
    """What `take_step` needs of a run, with an update that keeps the gradients; and its step."""
    micro_batches = tuple(flat_micro_batches(rows, rows_per_micro_batch))
    batch = Step(micro_batches, OBJECTIVES["mlm_nsp"].counts(rows), rows.num_sequences, rows.num_tokens)
    settings = SimpleNamespace(seed=11, lr=0.1, warmup_proportion=0.1, max_steps=100)
    run = SimpleNamespace(
        settings=settings,
        state=TrainState(**{"phase": 1, "step": 0, "global_step": 0, "rows_read": 0, **state}),
        device=SimpleNamespace(device=torch.device("cpu"), mark_step=lambda: None),
        metrics=Silent(),
        watchdog=Silent(),
        optimizer=SimpleNamespace(
            param_groups=[{}],
            step=lambda norm: run.kept.update(gradients(model), norm=norm),
            zero_grad=model.zero_grad,
        ),
        kernels=SimpleNamespace(reseed=lambda *integers: run.seeds.append(integers)),
        seeds=[],
        rank=SimpleNamespace(rank=0, world_size=1),
        shape=SimpleNamespace(global_rows_per_step=len(rows)),
        exchange=Alone(),
        model=model,
        parameters=list(model.parameters()),
        kept={},
    )
    return run, batch


def step(run, batch):
    stops = StopAgreement(SimpleNamespace(requested=0), run.exchange, 0)
    assert take_step(run, batch, batch.counts, stops)
    return run.kept


@pytest.mark.parametrize("rows_per_micro_batch", [1, 3, 8])
def test_the_gradient_of_a_step_is_that_of_hugging_faces_loss(rows_per_micro_batch):
    """Law 1: the masked-LM sum by the masked tokens and the next-sentence sum by the sequences of the whole batch."""
    rows = rows_of(make_columns(8, 24, 4, seed=3))
    assert rows.num_masked != rows.num_sequences
    model = make_model(CpuKernels())
    _, wanted = hugging_face(model, rows)
    kept = step(*loop_over(model, rows, rows_per_micro_batch=rows_per_micro_batch))
    norm = kept.pop("norm")
    found = {name: g[:VOCAB_SIZE] if len(g) > VOCAB_SIZE else g for name, g in kept.items()}
    assert_same_gradients(found, wanted)
    total = torch.stack([gradient.square().sum() for gradient in wanted.values()]).sum().sqrt()
    assert float(norm) == pytest.approx(float(total), rel=1e-4)


def test_a_training_counts_what_it_does_and_checks_each_step():
    """Two steps of 8 rows each, begun after step 3: rows, learning rate and norm of each are what is checked."""
    run, batch = loop_over(make_model(CpuKernels()), rows_of(make_columns(8, 24, 4, seed=3)), step=3, global_step=9)
    settled, checked = [], []
    vars(run.settings).update(stop_step=5, save_steps=2, log_steps=2, eval_steps=0)
    vars(run).update(batches=iter([batch, batch]), stop=SimpleNamespace(requested=False))
    run.exchange.settle = lambda *words: settled.append(words)
    run.metrics.check = lambda *words: checked.append(words)
    assert list(train(run)) == [Due(report=True, save=True, evaluate=True)] * 2  # of step 4, and of the last
    assert vars(run.state) == {"phase": 1, "step": 5, "global_step": 11, "rows_read": 16}
    assert settled == [(run.model, batch.micro_batches[0], run.device)] * 2
    norm, rates = run.kept["norm"], (pytest.approx(0.04), pytest.approx(0.05))  # of a warmup to 0.1 in 10 steps
    assert checked == [(norm, rates[0], 4, range(8)), (norm, rates[1], 5, range(8, 16))]


def test_ranks_ask_each_other_about_once_a_second_whether_to_stop():
    """Two of them, a quarter of a second a micro-step; all ranks have asked each other before the first one."""
    stops = StopAgreement(SimpleNamespace(requested=1), SimpleNamespace(world_size=2, sum=list), 2 * 250_000)
    assert [number for number in range(12) if stops.reached(number)] == [3, 7, 11]


def test_dropout_of_a_step_is_seeded_by_seed_global_step_and_rank():
    rows = rows_of(make_columns(4, 24, 4, seed=3))
    run, batch = loop_over(make_model(CpuKernels()), rows, phase=2, step=2, global_step=9)
    for rank in (0, 3):
        run.rank.rank = rank
        step(run, batch)
    assert run.seeds == [(11, 10, 0), (11, 10, 3)]


def test_an_evaluation_is_without_dropout_and_says_how_far_it_is():
    rows, told = rows_of(make_columns(8, 24, 4, seed=3)), []
    model, device = make_model(CpuKernels(), WITH_DROPOUT), Cpu(torch.device("cpu"), "eager", "fp32")
    loss, _ = hugging_face(make_model(CpuKernels()), rows)
    stop = SimpleNamespace(requested=False)
    found = evaluate(model, OBJECTIVES["mlm_nsp"], HeldOut(rows, {}), 3, device, Alone(), told.append, stop)
    assert found["eval_mlm_loss"] + found["eval_nsp_loss"] == pytest.approx(loss, rel=1e-5)
    assert told == [*(f"evaluation, row {row}" for row in (0, 3, 6)), "evaluation, waiting for all ranks"]
    assert model.training


def test_masks_differ_by_seed_step_and_rank_and_repeat_for_the_same():
    rows = rows_of(make_columns(4, 24, 4, seed=3))
    kernels = CpuKernels()
    model = make_model(kernels, WITH_DROPOUT)
    (micro_batch,) = flat_micro_batches(rows, 4)

    def loss(*integers):
        kernels.reseed(*integers)
        return model(micro_batch)[0].item()

    assert loss(1, 2, 0) == loss(1, 2, 0)
    assert len({loss(1, 2, 0), loss(1, 2, 1), loss(1, 3, 0), loss(2, 2, 0)}) == 4


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_add_norm_is_its_formula(p):
    """layer_norm(x / (1 - p) where kept + residual), forward and backward, with the very masks it drew."""
    torch.manual_seed(0)
    kernels = CpuKernels()
    x, residual = (torch.randn(64, 32, requires_grad=True) for _ in range(2))
    weight, bias = torch.randn(32, requires_grad=True), torch.randn(32, requires_grad=True)
    kernels.reseed(5)
    out = DropoutAddNorm.apply(kernels.bits, x, residual, weight, bias, 1e-12, p)
    kernels.reseed(5)
    kept = kernels.bits.kept(x.detach(), p) != 0
    assert 0 < int(kept.sum()) < kept.numel()
    scaled = torch.where(kept, x / (1 - p), torch.zeros(()))
    wanted = torch.nn.functional.layer_norm(scaled + residual, (32,), weight, bias, 1e-12)
    torch.testing.assert_close(out, wanted)
    leaves, upstream = (x, residual, weight, bias), torch.randn(64, 32)
    found, expected = (torch.autograd.grad(y, leaves, upstream) for y in (out, wanted))
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_the_mean(p):
    kernels = CpuKernels()
    kernels.reseed(3)
    x = torch.ones(400, 500)
    mean = float(kernels.dropout(x, p, training=True).mean())
    assert mean == pytest.approx(1.0, abs=5 * (p / (1 - p) / x.numel()) ** 0.5)  # five standard errors


def order_of_disk(monkeypatch) -> list[tuple[str, int, int]]:
    """What is synced and what gets its name from here on, in order: ("synced" or "named", inode, size)."""
    events = []

    def synced(descriptor, fsync=os.fsync):
        status = os.fstat(descriptor)
        events.append(("synced", status.st_ino, status.st_size))
        fsync(descriptor)

    def naming(move):
        def named(source, target):
            paths = (Path(source), *Path(source).rglob("*"))
            events.extend(("named", path.stat().st_ino, path.stat().st_size) for path in paths)
            move(source, target)

        return named

    monkeypatch.setattr(os, "fsync", synced)
    for move in ("rename", "replace"):
        monkeypatch.setattr(os, move, naming(getattr(os, move)))
    return events


def write_checkpoint(folder: Path):
    weights = {"a": torch.zeros(3)}
    texts = {"config.json": "{}"}
    checkpoint.write_checkpoint(folder / "ckpt_1", weights, {"state": {}}, {"global_step": 1}, texts)


@pytest.mark.parametrize(
    "write",
    [
        write_checkpoint,
        lambda folder: write_json(folder / "a", {}),
        lambda folder: write_synced(folder / "a", b"data"),
    ],
    ids=["checkpoint", "JSON", "data"],
)
def test_what_gets_its_name_is_on_the_disk(tmp_path, monkeypatch, write):
    """A power cut may lose all that was not synced: every file in full before its name, a checkpoint's name after."""
    with monkeypatch.context() as patched:
        events = order_of_disk(patched)
        write(tmp_path)
    named = [event for event in events if event[0] == "named"]
    assert len(named) == (
        1 if write is not write_checkpoint else 5
    )  # the folder, weights, moments, config.json, state.json
    before = events[: events.index(named[0])]
    assert all(("synced", *what) in before for _, *what in named)
    after = [inode for what, inode, _ in events[events.index(named[-1]) :] if what == "synced"]
    assert after == ([tmp_path.stat().st_ino] if write is write_checkpoint else [])


def test_more_than_one_micro_step_needs_to_be_asked_for():
    for micro_steps in range(2, 100):
        size = 4 * micro_steps
        with pytest.raises(ValueError, match=f"add --accumulate_gradients \\({micro_steps} micro-steps\\)"):
            batch_sizes.split(size, world_size=2, micro_batch_size=2, accumulate=False)
        exact = batch_sizes.split(size, world_size=2, micro_batch_size=2, accumulate=True)
        assert exact.grad_accum_steps == micro_steps


@pytest.mark.parametrize(("shards", "rows"), [(1, 40), (40, 1)], ids=["rows of a shard", "shards"])
def test_an_epoch_has_an_order_of_its_own(tmp_path, shards, rows):
    limits = Limits(VOCAB_SIZE, 32, 64, 5)
    reader = ShardReader(
        open_shards(make_corpus(tmp_path / "c", shards=shards, rows=rows, test=0), "training", limits), 3, limits
    )
    places = [[reader.locate(place)[1:] for place in range(40 * epoch, 40 * epoch + 40)] for epoch in range(3)]
    assert sorted(places[0]) == sorted(places[1]) == sorted(places[2])
    assert places[0] != places[1] and places[1] != places[2] and places[0] != places[2]
