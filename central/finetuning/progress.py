"""What a fine-tuning shows while it trains: a bar on a terminal, a line every percent of its steps elsewhere.

Every log, shown or not, is in `log_history` of `trainer_state.json`; the scores of the end are printed by script.py.
"""

import datetime
import re
import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

LINES = 100  # of a training
NO_NEWS = re.compile(r"epoch|total_flos|.*(_runtime|_per_second|_majority_class)")


def shown(logs: Mapping[str, Any]) -> str:
    """The numbers of a log that say how the training goes."""
    numbers = {name.replace("_", " "): value for name, value in logs.items() if not NO_NEWS.fullmatch(name)}
    return "  ".join(f"{name} {float(value):.4g}" for name, value in numbers.items())


class ProgressLines(TrainerCallback):
    """Lines of steps and of the evaluations between them, with the time left."""

    def __init__(self) -> None:
        self._began: float | None = None  # None: not training
        self._first = self._next = 0  # steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began, self._first, self._next = time.monotonic(), state.global_step, 0

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        step = state.global_step
        if self._began is None or not state.is_world_process_zero or not logs or "train_loss" in logs:
            return
        if "loss" in logs and step < min(self._next, state.max_steps):
            return
        if "loss" in logs:
            self._next = step + max(1, state.max_steps // LINES)
        left = (time.monotonic() - self._began) / max(step - self._first, 1) * (state.max_steps - step)
        eta = datetime.timedelta(seconds=round(left))
        print(f"step {step}/{state.max_steps}  {shown(logs)}  ETA {eta}", flush=True)


class ProgressBar(ProgressCallback):
    """Hugging Face's bars, with the numbers of the newest log beside them; evaluations get a line."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is None or not logs or "train_loss" in logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix_str(shown(logs), refresh=False)
        else:
            self.training_bar.write(f"step {state.global_step}/{state.max_steps}  {shown(logs)}")
