"""What ranks tell each other, with two of them that meet over gloo: this process, and one forked from it."""

import os
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from pretraining.distributed import Alone, DdpExchange, FlatExchange, open_exchange

X = torch.arange(36.0).view(2, 2, 3, 3).sin()  # ranks x micro-batches x rows x numbers
DEVICE = SimpleNamespace(device=torch.device("cpu"), mark_step=lambda: None)


@pytest.fixture
def of_two_ranks(tmp_path, monkeypatch):
    """A function of a function of the rank: what that gives on either rank."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")

    def run(work, rank):
        store = dist.FileStore(str(tmp_path / "store"), 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=20))
        try:
            return work(rank)
        finally:
            dist.destroy_process_group()

    def of_both(work):
        other = os.fork()
        if not other:
            status = 1
            try:
                torch.save(run(work, 1), tmp_path / "found")
                status = 0
            finally:
                os._exit(status)
        try:
            here = run(work, 0)
        finally:
            _, status = os.waitpid(other, 0)
        assert status == 0
        return here, torch.load(tmp_path / "found")

    return of_both


def two_micro_steps(exchange, rank):
    """Weights and gradients of a rank whose weights began as its own."""
    torch.manual_seed(rank)
    model = torch.nn.Linear(3, 2)
    wrapped = exchange.wrap(model)
    for _ in range(2):  # the second time there is nothing to do
        exchange.settle(wrapped, X[rank, 0], DEVICE)
    for number, last in enumerate((False, True)):
        with exchange.between_micro_steps(wrapped, last):
            (wrapped(X[rank, number]).square().sum() * exchange.loss_scale).backward()
    exchange.gradients(list(model.parameters()))
    return [model.weight.detach(), model.bias.detach(), model.weight.grad, model.bias.grad]


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("flat", [False, True], ids=["ddp", "flat"])
def test_the_gradient_of_two_ranks_is_that_of_one_over_all_rows(of_two_ranks, flat, bf16):
    found = of_two_ranks(lambda rank: two_micro_steps(open_exchange(2, flat, bf16), rank))
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    model(X).square().sum().backward()
    for weight, bias, *gradients in found:
        assert torch.equal(weight, model.weight) and torch.equal(bias, model.bias)
        for gradient, parameter in zip(gradients, model.parameters()):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-2 if bf16 else 0, atol=2e-2 if bf16 else 1e-5)
            assert torch.equal(gradient, gradient.bfloat16().float()) == bf16
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("kind", [FlatExchange, DdpExchange])
def test_ranks_add_up_numbers_and_know_whether_they_agree(of_two_ranks, kind):
    def told(rank):
        exchange = kind(False)
        exchange.barrier()
        return exchange.sum([1, 10 * rank]), exchange.agree([5, 7]), exchange.agree([5, rank]), exchange.world_size

    assert of_two_ranks(told) == (([2, 10], True, False, 2),) * 2


def test_before_the_first_step_the_model_runs_once_and_leaves_no_gradient(of_two_ranks):
    def calls(rank):
        exchange, model, seen = DdpExchange(False), torch.nn.Linear(3, 2), []
        wrapped = exchange.wrap(model)
        wrapped.register_forward_hook(lambda *_: seen.append(rank))
        for _ in range(3):
            exchange.settle(wrapped, X[rank, 0], DEVICE)
        return seen, [parameter.grad for parameter in model.parameters()]

    assert of_two_ranks(calls) == (([0], [None, None]), ([1], [None, None]))


def test_a_rank_alone_exchanges_nothing():
    alone, model = open_exchange(1, True, True), torch.nn.Linear(3, 2)
    assert type(alone) is Alone and alone.wrap(model) is model and alone.loss_scale == 1
    assert alone.sum([3, 4]) == [3, 4] and alone.agree([1]) is True


@pytest.mark.parametrize("asked", [None, 0, 1])
def test_a_fine_tuning_stops_on_both_ranks_where_either_was_asked(of_two_ranks, asked):
    from central.finetuning.trainer import StopBetweenSteps

    def stops(rank):
        listening = StopBetweenSteps(SimpleNamespace(requested=rank == asked), SimpleNamespace(mark=lambda _: None))
        control = SimpleNamespace(should_training_stop=False)
        listening.on_substep_end(None, SimpleNamespace(global_step=0), control)
        return control.should_training_stop

    assert of_two_ranks(stops) == (asked is not None,) * 2
