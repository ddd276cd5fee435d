"""The training loop: what happens in one optimizer step, and what happens between steps.

It knows nothing of devices: `device.mark_step()` is empty where there is nothing to mark.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from central.runtime.device import Device
from central.runtime.rank import Rank, StopRequest
from central.runtime.watchdog import Watchdog
from pretraining.batches import Step
from pretraining.dataset import BatchShape, Prefetch
from pretraining.distributed import Alone
from pretraining.kernels.choice import Kernels
from pretraining.lamb import global_norm
from pretraining.metrics import Metrics
from pretraining.optimizer import Optimizer
from pretraining.schedule import poly_warmup
from pretraining.settings import Settings

STOP_INTERVAL = 1e6  # microseconds between two looks of several ranks at whether one of them was asked to stop


@dataclass
class TrainState:
    """Where a run stands; with the weights and moments it is all that a resume needs."""

    phase: int
    step: int  # optimizer steps done in this phase
    global_step: int  # and in all phases
    rows_read: int  # rows taken in this phase, over all ranks

    def in_phase(self) -> dict[str, int]:
        return {"phase": self.phase, "step": self.step, "global_step": self.global_step}


@dataclass(frozen=True)
class Parts:
    """What the loop works with."""

    settings: Settings
    state: TrainState
    device: Device
    rank: Rank
    stop: StopRequest
    exchange: Alone
    kernels: Kernels
    model: torch.nn.Module
    optimizer: Optimizer
    batches: Prefetch[Step]
    shape: BatchShape
    metrics: Metrics
    watchdog: Watchdog

    @cached_property
    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.model.parameters())


@dataclass(frozen=True)
class Due:
    """What is to be done after a step. `stop`: a signal asked to, and the state is to be saved."""

    report: bool = False
    save: bool = False
    evaluate: bool = False
    stop: bool = False


def train(run: Parts) -> Iterator[Due]:
    """Train from `run.state` to the stop step, or to the step at which the ranks agree to stop."""
    state, settings, metrics = run.state, run.settings, run.metrics
    micro_step_time = 0  # of the step before, microseconds: integers add up to the same sum everywhere
    while state.step < settings.stop_step:
        began = time.perf_counter()
        metrics.restart()
        run.watchdog.mark(f"step {state.step + 1}, reading data")
        batch = next(run.batches)
        metrics.lap("data")
        run.exchange.settle(run.model, batch.micro_batches[0], run.device)
        run.watchdog.mark(f"step {state.step + 1}, waiting for all ranks to begin it")
        numbers = [*batch.counts, batch.num_sequences, batch.num_tokens, run.stop.requested, micro_step_time]
        *counts, sequences, tokens, stop, times = run.exchange.sum(numbers)  # on the host, over gloo: no device sync
        if stop or not take_step(run, batch, counts, StopAgreement(run.stop, run.exchange, times)):
            yield Due(stop=True)
            return
        state.step += 1
        state.global_step += 1
        state.rows_read += run.shape.global_rows_per_step
        metrics.count(batch, counts, sequences, tokens)
        micro_step_time = int((time.perf_counter() - began) * 1e6 / len(batch.micro_batches))
        run.watchdog.step()
        last = state.step == settings.stop_step
        save = last or state.step % settings.save_steps == 0
        report = last or state.step % settings.log_steps == 0
        yield Due(report, save, last or (state.step % settings.eval_steps == 0 if settings.eval_steps else save))


class StopAgreement:
    """Whether the ranks stop amid a step, which may take minutes: they ask each other about once a second.

    `micro_step_times` is the sum over ranks of the microseconds that a micro-step takes; 0 where nobody knows yet. All
    ranks have the same sum, and so ask before the same micro-steps.
    """

    def __init__(self, stop: StopRequest, exchange: Alone, micro_step_times: float):
        self._stop, self._exchange = stop, exchange
        per_rank = micro_step_times / exchange.world_size
        self._interval = max(1, int(STOP_INTERVAL / per_rank)) if per_rank and exchange.world_size > 1 else 1

    def reached(self, micro_step: int) -> bool:
        """Before a micro-step, counted from 0: whether any rank was asked to stop. All ranks call it together."""
        return (micro_step + 1) % self._interval == 0 and self._exchange.sum([self._stop.requested])[0] > 0


def take_step(run: Parts, batch: Step, counts: Sequence[float], stops: StopAgreement) -> bool:
    """One optimizer step over this rank's micro-batches; `counts` are the divisors of the losses, over all ranks.

    Returns False, with nothing changed, where the ranks agreed to stop on the way.
    """
    settings, state, device, metrics = run.settings, run.state, run.device, run.metrics
    lr = poly_warmup(
        state.step + 1,
        base_lr=settings.lr,
        warmup_proportion=settings.warmup_proportion,
        total_steps=settings.max_steps,
    )
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.kernels.reseed(settings.seed, state.global_step + 1, run.rank.rank)
    # Divisors change every step: as a tensor they do not change a compiled graph. A blocking copy would wait.
    host_weights = torch.tensor([1 / max(count, 1) for count in counts])
    weights = host_weights.to(device.device, non_blocking=True)
    for number, micro_batch in enumerate(batch.micro_batches):
        run.watchdog.mark(f"step {state.step + 1}, micro-step {number + 1}")
        if stops.reached(number):
            return False
        last = number == len(batch.micro_batches) - 1
        with run.exchange.between_micro_steps(run.model, last):
            sums = run.model(micro_batch.to(device.device))
            loss = (sums[: len(counts)] * weights).sum()
            metrics.add(loss, sums)
            metrics.lap("forward")
            (loss * run.exchange.loss_scale).backward()
        device.mark_step()
        metrics.lap("backward")
    run.watchdog.mark(f"step {state.step + 1}, exchange of gradients")
    run.exchange.gradients(run.parameters)
    norm = global_norm([parameter.grad for parameter in run.parameters if parameter.grad is not None])
    metrics.lap("exchange")
    metrics.check(norm, lr, state.step + 1, range(state.rows_read, state.rows_read + run.shape.global_rows_per_step))
    run.optimizer.step(norm)
    run.optimizer.zero_grad()
    device.mark_step()
    metrics.lap("step")
    return True
