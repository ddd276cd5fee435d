"""The training loop: what happens in one optimizer step, and what happens between steps.

It knows nothing of devices: `device.mark_step()` is empty where there is nothing to mark.
"""

import time
from dataclasses import asdict, dataclass

import torch

from pretraining.lamb import global_norm
from pretraining.schedule import poly_warmup

STOP_INTERVAL = 1e6  # microseconds between two looks of several ranks at whether one of them was asked to stop


@dataclass
class TrainState:
    """Where a run stands; with the weights and moments it is all that a resume needs."""

    phase: int
    step: int  # optimizer steps done in this phase
    global_step: int  # and in all phases
    rows_read: int  # rows taken in this phase, over all ranks

    def state_dict(self) -> dict:
        return asdict(self)


def train(run) -> None:
    """Train from `run.state` to the stop step; raises Preempted when a signal asked to stop, after saving."""
    state, settings, watch = run.state, run.settings, run.watch
    run.evaluate()
    micro_step_time = 0  # of the step before, microseconds: integers add up to the same sum everywhere
    while state.step < settings.stop_step:
        began = time.perf_counter()
        watch.restart()
        run.watchdog.mark(f"step {state.step + 1}, reading data")
        batch = next(run.batches)
        watch.lap("data")
        run.exchange.settle(run.model, batch.micro_batches[0], run.device)
        run.watchdog.mark(f"step {state.step + 1}, waiting for all ranks to begin it")
        counts = [batch.num_masked, batch.num_sequences, batch.num_tokens, run.stop.requested, micro_step_time]
        masked, sequences, tokens, stop, times = run.exchange.sum(counts)  # host integers over gloo, not a device sync
        stops = StopAgreement(run.stop, run.exchange, times)
        if stop or not take_step(run, batch, masked, sequences, stops):
            run.end_early()
        state.step += 1
        state.global_step += 1
        state.rows_read += run.share.global_rows_per_step
        watch.count(batch, masked, sequences, tokens)
        micro_step_time = int((time.perf_counter() - began) * 1e6 / len(batch.micro_batches))
        run.watchdog.step()
        last = state.step == settings.stop_step
        save_due = last or state.step % settings.save_steps == 0
        if last or state.step % settings.log_steps == 0:
            run.report()
        if save_due:
            run.save(wait=False)  # before evaluating, which may take longer than a run told to stop is given
        if last or (state.step % settings.eval_steps == 0 if settings.eval_steps else save_due):
            run.evaluate()


class StopAgreement:
    """Whether the ranks stop amid a step, which may take minutes: they ask each other about once a second.

    `micro_step_times` is the sum over ranks of the microseconds that a micro-step takes; 0 where nobody knows yet. All
    ranks have the same sum, and so ask before the same micro-steps.
    """

    def __init__(self, stop, exchange, micro_step_times: float):
        self._stop, self._exchange = stop, exchange
        per_rank = micro_step_times / exchange.world_size
        self._interval = max(1, int(STOP_INTERVAL / per_rank)) if per_rank and exchange.world_size > 1 else 1

    def reached(self, micro_step: int) -> bool:
        """Before a micro-step, counted from 0: whether any rank was asked to stop. All ranks call it together."""
        return (micro_step + 1) % self._interval == 0 and self._exchange.sum([self._stop.requested])[0] > 0


def take_step(run, batch, masked: float, sequences: float, stops: StopAgreement) -> bool:
    """One optimizer step over this rank's micro-batches; `masked` and `sequences` are counts over all ranks.

    Returns False, with nothing changed, where the ranks agreed to stop on the way.
    """
    settings, state, device, watch = run.settings, run.state, run.device, run.watch
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
    host_weights = torch.tensor([1 / max(masked, 1), 1 / max(sequences, 1)])
    weights = host_weights.to(device.device, non_blocking=True)
    for number, micro_batch in enumerate(batch.micro_batches):
        run.watchdog.mark(f"step {state.step + 1}, micro-step {number + 1}")
        if stops.reached(number):
            return False
        last = number == len(batch.micro_batches) - 1
        with run.exchange.between_micro_steps(run.model, last):
            sums = run.model(micro_batch.to(device.device))
            loss = (sums[:2] * weights).sum()
            watch.add(loss, sums)
            watch.lap("forward")
            (loss * run.exchange.loss_scale).backward()
        device.mark_step()
        watch.lap("backward")
    run.watchdog.mark(f"step {state.step + 1}, exchange of gradients")
    run.exchange.gradients(run.parameters)
    norm = global_norm([parameter.grad for parameter in run.parameters if parameter.grad is not None])
    watch.lap("exchange")
    watch.check(norm, lr, state.step + 1, range(state.rows_read, state.rows_read + run.share.global_rows_per_step))
    run.optimizer.step(norm)
    run.optimizer.zero_grad()
    device.mark_step()
    watch.lap("step")
    return True
