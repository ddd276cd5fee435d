"""What a report says: sums over the steps since the last one and over the ranks, by a clock that we turn."""

import math
from types import SimpleNamespace

import pytest
import torch

from central.runtime.exits import Diverged
from pretraining import metrics
from pretraining.batches import Step
from pretraining.metrics import Metrics
from pretraining.objective import OBJECTIVES

SECONDS = {"data": 1.0, "forward": 2.0, "backward": 3.0, "exchange": 4.0, "step": 5.0}


class TwoRanksAlike:
    def sum(self, numbers):
        return [2 * number for number in numbers]


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(metrics, "batch_flops", lambda config, micro_batch: micro_batch)
    return clock


def make(peak=1000.0, checks_every_step=False):
    device = SimpleNamespace(device=torch.device("cpu"), checks_every_step=checks_every_step)
    name = lambda rows: f"rows {rows.start} to {rows.stop}"  # noqa: E731
    return Metrics(device, None, OBJECTIVES["mlm_nsp"], peak, TwoRanksAlike(), name)


def take(found, clock, step):
    """A step of two micro-steps, after as long an evaluation; all ranks together have 6 masked words and 4 rows."""
    clock.now += 100
    found.restart()
    for _ in range(2):
        found.add(torch.tensor(0.5 * step), torch.tensor([6.0, 2.0, 3.0, 1.0]))
    for stage, seconds in SECONDS.items():
        clock.now += seconds
        found.lap(stage)
    found.check(torch.tensor(7.0 + step), 0.1 * step, step, range(step, step + 4))
    found.count(Step((30.0, 40.0), (3, 2), 2, 20), (6, 4), 4, 40)


def test_a_report_is_of_the_steps_since_the_one_before(clock):
    found = make()
    for step in (1, 2):
        take(found, clock, step)
    found.read()
    assert (found.sequences, found.train_time) == (8, 30)
    for step in (3, 4, 5):
        take(found, clock, step)
    report = found.read()
    assert (found.sequences, found.train_time) == (20, 75)
    seconds = 3 * 15
    wanted = {
        "average_loss": 2 * (3 + 4 + 5) / 3,  # both ranks' part of a step, which has two micro-steps of half of it
        "step_loss": 2 * 5,
        "learning_rate": 0.5,
        "grad_norm": 12,
        "average_training_time_step": seconds / 6,
        "average_perf_per_step": 3 * 4 / 2 / seconds,
        "sequences_per_second": 3 * 4 / seconds,
        "tokens_per_second": 3 * 40 / seconds,
        "step_time": 15,
        "mfu": 2 * 3 * 70 / seconds / 2000,
        "mlm_loss": 2 * 6 * 6 / 18,
        "nsp_loss": 2 * 6 * 2 / 12,
        "mlm_accuracy": 2 * 6 * 3 / 18,
        "nsp_accuracy": 2 * 6 * 1 / 12,
        **{f"time_{stage}": seconds for stage, seconds in SECONDS.items()},
    }
    assert report == pytest.approx(wanted)


def test_without_the_peak_of_a_rank_there_is_no_utilisation(clock):
    found = make(peak=None)
    take(found, clock, 1)
    assert "mfu" not in found.read()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_step_whose_gradient_is_not_finite_is_named(clock, bad):
    found = make()
    for step, norm in ((7, 1.0), (8, bad), (9, bad)):
        found.check(torch.tensor(norm), 0.1, step, range(10 * step, 10 * step + 4))
    with pytest.raises(Diverged, match=r"^step 8: the gradient is not finite \(norm (nan|inf)\), from rows 80 to 84: "):
        found.settle()


def test_where_looking_costs_nothing_every_step_is_looked_at(clock):
    found = make(checks_every_step=True)
    found.check(torch.tensor(1.0), 0.1, 1, range(4))
    with pytest.raises(Diverged, match="step 2"):
        found.check(torch.tensor(math.nan), 0.1, 2, range(4))
    found = make()
    found.check(torch.tensor(math.nan), 0.1, 1, range(4))  # until the next report


def test_sums_are_kept_on_the_device():
    device = SimpleNamespace(device=torch.device("meta"), checks_every_step=False)
    found = Metrics(device, None, OBJECTIVES["mlm_nsp"], None, TwoRanksAlike(), str)
    found.restart()
    assert {sums.device.type for sums in (found._totals, found._loss, found._step_loss)} == {"meta"}
