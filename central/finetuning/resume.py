"""What a checkpoint of a fine-tuning records beside Hugging Face's state: what decides the run, its losses and time.

A resume compares the first, as a schedule or an order of the data that changes midway is that of no run, and goes on
with the others, so that its metrics are those of the whole run.
"""

import hashlib
import json
import math
import reprlib
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from central.errors import BadRequest
from central.finetuning.features import Features, Ragged
from central.finetuning.output_folder import unreadable
from central.runtime.checkpoints import checksum
from central.runtime.tensor_files import SQUARES, moment_fault

DECIDING = (  # names of TrainingArguments, beside the data, the batch of all ranks and the precision
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "dataloader_drop_last",
    "seed",
    "data_seed",
)
SAVED = {"state": dict, "param_groups": list}  # parts of an optimizer's state
MOMENTS = ("exp_avg", SQUARES, "momentum_buffer")  # of a parameter's shape


class Record(TrainerCallback, ExportableState):
    """Kept in `trainer_state.json`; before a checkpoint the trainer sets `loss`, the sum over the steps done, and
    `checksums`, by the names of its files."""

    def __init__(self, settings: dict | None = None):
        self.settings = settings or {}
        self.checksums: dict[str, str] = {}
        self.loss = self.loss_before = 0.0  # sums over steps
        self.seconds_before = 0.0  # of training before this process
        self.began_at: list[int] = []  # steps at which a process began
        self._began = time.time()

    def take_up(self, state: TrainerState) -> None:
        """Go on from what the state of a checkpoint holds; one without a record is taken as it is."""
        known = _attributes(state.stateful_callbacks)
        self.loss_before = known.get("loss", 0.0)
        self.seconds_before = known.get("seconds", 0.0)
        self.began_at = [*known.get("began_at", []), state.global_step]
        self._began = time.time()
        cast(dict, state.stateful_callbacks).setdefault(type(self).__name__, {})

    def state(self) -> dict:
        """What `trainer_state.json` holds of this."""
        seconds = self.seconds_before + time.time() - self._began
        kept = {"settings": self.settings, "loss": self.loss, "seconds": seconds, "began_at": self.began_at}
        return {"args": {}, "attributes": {**kept, "sha256": self.checksums}}


def deciding(training: TrainingArguments, features: Features) -> dict[str, str | int | float | None]:
    """What decides a run: its examples as the model reads them, the batch of all ranks, the precision, and DECIDING."""
    batch = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    named = {name: getattr(training, name) for name in DECIDING}
    # The fused form is the same optimizer: hpu has none of torch's, cpu and cuda take it, and a run may change device.
    named["optim"] = getattr(named["optim"], "value", named["optim"]).removesuffix("_fused")
    return {
        "training data": fingerprint(features),
        "global batch size": batch,
        "precision": "bf16" if training.bf16 else "fp32",
        **{f"--{name}": getattr(value, "value", value) for name, value in named.items()},
    }


def fingerprint(features: Features) -> str:
    """Number of examples, and a hash of them as the model reads them."""
    digest = hashlib.sha256()
    for name, column in sorted(features.inputs.items()):
        arrays = (column.values, column.offsets) if isinstance(column, Ragged) else (column,)
        for array in arrays:
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return f"{len(features)} examples ({digest.hexdigest()[:16]})"


def refuse_damage(checkpoint: Path) -> None:
    """Raise BadRequest that names a file which is not as it was written; a checkpoint without a record passes."""
    state = _state(checkpoint)
    wrong = _impossible(state, checkpoint)
    if not wrong:
        for name, expected in _attributes(state.get("stateful_callbacks")).get("sha256", {}).items():
            if checksum(checkpoint / name) != expected:
                fault = ValueError("its content is not what was written, by a damaged disk or copy")
                raise unreadable(checkpoint / name, fault)
        named, step = checkpoint.name.rpartition("-")[2], state.get("global_step")
        wrong = f"global_step is {step}" if named.isdecimal() and step != int(named) else ""
    if wrong:
        raise unreadable(checkpoint / "trainer_state.json", ValueError(f"its {wrong}, which no training writes"))


def check_moments(saved: object, optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError where a saved state is none of this optimizer and its parameters: torch would go on with zeros,
    with NaN, or beyond the end of a tensor. Habana's and ours name the moments as torch does."""
    if not isinstance(saved, dict) or not all(isinstance(saved.get(part), kind) for part, kind in SAVED.items()):
        raise ValueError(f"holds no {' and '.join(SAVED)}")
    if not saved["state"] and "betas" in optimizer.defaults:
        raise ValueError("holds no moments")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters):  # groups of other lengths: load_state_dict says so
        for name, moment in saved["state"].get(number, {}).items():
            if not isinstance(moment, torch.Tensor) or not moment.is_floating_point():
                continue
            shape = parameter.shape if name in MOMENTS else moment.shape
            if fault := moment_fault(name, moment, shape):
                raise ValueError(f"{name} of parameter {number} {fault}")


def refuse_another_run(checkpoint: Path, settings: dict) -> None:
    """Raise BadRequest that names what differs from the run that wrote the checkpoint; one without a record passes."""
    known = _recorded(checkpoint).get("settings", {})
    differing = [
        f"{name} {settings[name]}, was {known[name]}"
        for name in settings
        if name in known and known[name] != settings[name]
    ]
    if differing:
        raise BadRequest(
            f"--resume_from_checkpoint {checkpoint}: is of another run: {'; '.join(differing)}: give what it had, or "
            f"begin a new run from its weights, with --model_name_or_path {checkpoint} and another --output_dir"
        )


def _impossible(state: dict, checkpoint: Path) -> str:
    """The first value that no training writes into the state of a checkpoint; nothing where all can be."""
    callbacks, known = state.get("stateful_callbacks", {}), vars(TrainerState())
    record = _attributes(callbacks)
    sums, begun, history = record.get("sha256", {}), record.get("began_at", []), state.get("log_history", [])
    wanted = {name: name in known and _is_like(value, known[name]) for name, value in state.items()}
    wanted |= {  # whether it can be
        "global_step": _is_step(state.get("global_step")),
        "train_batch_size": state.get("train_batch_size") is None or _is_step(state["train_batch_size"]),
        "epoch": _is_number(state.get("epoch", 0)),
        "best_metric": state.get("best_metric") is None or _is_number(state["best_metric"], -math.inf),
        "log_history": isinstance(history, list) and all(isinstance(entry, dict) for entry in history),
        "stateful_callbacks": isinstance(callbacks, dict) and "TrainerControl" in callbacks,
        "loss": _is_number(record.get("loss", 0), -math.inf),
        "seconds": _is_number(record.get("seconds", 0)),
        "began_at": isinstance(begun, list) and all(map(_is_step, begun)),
        "sha256": isinstance(sums, dict) and all((checkpoint / Path(name).name).is_file() for name in sums),
        "settings": isinstance(record.get("settings", {}), dict),
    }
    wrong = next((name for name, holds in wanted.items() if not holds), None)
    return f"{wrong} is {reprlib.repr((state | record).get(wrong))}" if wrong else ""


def _is_like(value: object, default: object) -> bool:
    """Whether a value may stand where TrainerState has this default; anything may where that is None."""
    if isinstance(default, int | float) and not isinstance(default, bool):
        return _is_number(value, -math.inf)
    return default is None or isinstance(value, type(default))


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object, least: float = 0) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value < math.inf


def _state(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))


def _recorded(checkpoint: Path) -> dict:
    return _attributes(_state(checkpoint).get("stateful_callbacks"))


def _attributes(callbacks: object) -> dict:
    """The record in the callbacks' part of a state, empty where there is none."""
    found = callbacks.get(Record.__name__) if isinstance(callbacks, dict) else None
    kept = found.get("attributes") if isinstance(found, dict) else None
    return kept if isinstance(kept, dict) else {}
