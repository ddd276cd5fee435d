"""What a run is seen to do between two reports: sums on the device, counts and times on the host."""

import time
from collections.abc import Callable, Sequence

import torch

from central.runtime.device import Device
from central.runtime.exits import Diverged
from pretraining.batches import Step
from pretraining.distributed import Alone
from pretraining.model_stats import batch_flops
from pretraining.modeling import BertConfig
from pretraining.objective import Objective

STAGES = ("data", "forward", "backward", "exchange", "step")


class Metrics:
    """Gathers without waiting for the device; `read` waits once. `name_rows` puts places of rows into words.

    `peak_flops` is that of this rank's device; None: reports have no mfu.
    """

    def __init__(
        self,
        device: Device,
        config: BertConfig,
        objective: Objective,
        peak_flops: float | None,
        exchange: Alone,
        name_rows: Callable[[range], str],
    ):
        self._device, self._config, self._objective = device, config, objective
        self._exchange, self._name_rows = exchange, name_rows
        peak, lacking = exchange.sum([peak_flops or 0.0, float(peak_flops is None)])  # of all ranks together
        self._peak = None if lacking else peak
        self.train_time = 0.0  # s in steps, without evaluation and saving
        self.steps = 0  # of this process
        self.sequences = self.tokens = 0.0  # trained on in them, over all ranks
        self._mark = time.perf_counter()
        self._reset()

    def _reset(self) -> None:
        self._steps = self._micro_steps = 0
        self._sequences = self._tokens = self._flops = 0.0
        self._counts = [0.0] * len(self._objective.losses)
        self._totals = torch.zeros(2 * len(self._counts), device=self._device.device)
        self._loss = torch.zeros((), device=self._device.device)
        self._step_loss = torch.zeros((), device=self._device.device)
        # Steps not looked at yet: global norm, learning rate, step, places of its rows.
        self._unread: list[tuple[torch.Tensor, float, int, range]] = []
        self._norm = self._lr = 0.0
        self._times = dict.fromkeys(STAGES, 0.0)

    def restart(self) -> None:
        """Begin a step: what came before it (evaluation, saving) is no training time."""
        self._mark = time.perf_counter()
        self._step_loss = torch.zeros_like(self._step_loss)

    def lap(self, stage: str) -> None:
        """Book the time since the last lap on a stage (host time: a card may still be working)."""
        now = time.perf_counter()
        self._times[stage] += now - self._mark
        self._mark = now

    def add(self, loss: torch.Tensor, sums: torch.Tensor) -> None:
        loss = loss.detach()
        self._step_loss = self._step_loss + loss
        self._loss = self._loss + loss
        self._totals = self._totals + sums.detach()
        self._micro_steps += 1

    def count(self, batch: Step, counts: Sequence[float], sequences: float, tokens: float) -> None:
        """Book a finished step: this rank's batch and the numbers of all ranks."""
        self._steps += 1
        self._counts = [total + count for total, count in zip(self._counts, counts)]
        self._sequences += sequences
        self._tokens += tokens
        self._flops += sum(batch_flops(self._config, micro_batch) for micro_batch in batch.micro_batches)

    def check(self, norm: torch.Tensor, lr: float, step: int, rows: range) -> None:
        """Remember a step's gradient norm; look at it at once where that costs nothing, before the update."""
        self._unread.append((norm, lr, step, rows))
        if self._device.checks_every_step:
            self.settle()

    def settle(self) -> None:
        """Wait for the device and raise Diverged if an update since the last look was not finite."""
        if not self._unread:
            return
        norms = torch.stack([norm for norm, *_ in self._unread]).tolist()  # the host sync of a report or save
        for norm, (_, _, step, rows) in zip(norms, self._unread):
            if not norm < float("inf"):
                raise Diverged(
                    f"step {step}: the gradient is not finite (norm {norm}), from {self._name_rows(rows)}: no update "
                    "was saved, the last checkpoint is good. Lower --learning_rate, or look at these rows"
                )
        self._norm, self._lr = norms[-1], self._unread[-1][1]
        self._unread = []

    def throughput(self) -> dict[str, float | None]:
        """Of all steps that were read, over all ranks; None where there were none."""
        steps, seconds = self.steps, self.train_time
        return {
            "sequences_per_second": self.sequences / seconds if steps else None,
            "tokens_per_second": self.tokens / seconds if steps else None,
            "step_time": seconds / steps if steps else None,
        }

    def read(self) -> dict[str, float]:
        """The numbers of the steps since the last report, over all ranks. All ranks call it together."""
        self.settle()
        numbers = [self._loss.item(), self._step_loss.item(), *self._totals.tolist(), self._flops, 1.0]
        self.lap("step")
        loss, step_loss, *sums, flops, ranks = self._exchange.sum(numbers)
        seconds = sum(self._times.values())
        self.train_time += seconds
        self.sequences += self._sequences
        self.tokens += self._tokens
        steps = self._steps
        self.steps += steps
        report = {
            "average_loss": loss / steps,
            "step_loss": step_loss,
            "learning_rate": self._lr,
            "average_training_time_step": seconds / self._micro_steps,
            "average_perf_per_step": self._sequences / ranks / seconds,
            **self._objective.means(sums, self._counts),
            "grad_norm": self._norm,
            "sequences_per_second": self._sequences / seconds,
            "tokens_per_second": self._tokens / seconds,
            "step_time": seconds / steps,
            **({"mfu": flops / seconds / self._peak} if self._peak else {}),
            **{f"time_{stage}": self._times[stage] / steps for stage in STAGES},
        }
        self._reset()
        return report
