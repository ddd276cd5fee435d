"""Writing and reading checkpoints: Hugging Face folders that are complete or absent.

Knows names and steps, not the data. Everything on disk is unpadded; padded vocabulary rows live in the run only.
"""

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from central.errors import first_line
from central.files import move_aside, sync
from central.runtime import tensor_files
from central.runtime.checkpoints import (
    checksum,
    list_checkpoints,
    numbered_checkpoints,
    read_state,
    remedy,
    sealed,
)
from central.runtime.exits import BadRequest, Diverged, errno_of, refusal
from pretraining.modeling import PADDED_ROW_BIAS, BertConfig, BertForPreTraining
from pretraining.optimizer import Optimizer

WEIGHTS, MOMENTS, STATE = "model.safetensors", "optimizer.pt", "state.json"
MOST_STEPS = 1 << 53  # more than any training has, and still exact as a double
PADDED = ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias")
TEMPORARY = ".writing_"  # before a checkpoint is whole
DISCARDED = ".discarded_"  # after it was decided to delete it


def unpadded(name: str, tensor: torch.Tensor, config: BertConfig) -> torch.Tensor:
    return tensor[: config.vocab_size] if name in PADDED else tensor


def copy_weights(model: BertForPreTraining) -> dict[str, torch.Tensor]:
    """The weights on the host, under Hugging Face's names, as a copy that training does not touch."""
    parts = {name: unpadded(name, tensor.detach(), model.config) for name, tensor in model.named_parameters()}
    return {name: _host_copy(tensor) for name, tensor in parts.items()}


def copy_moments(optimizer: Optimizer, model: BertForPreTraining) -> dict[str, Any]:
    """The optimizer's state_dict on the host, parameters by their number."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = optimizer.state_dict()
    moments = {
        index: {name: _host_copy(unpadded(order[index], values[name], model.config)) for name in optimizer.moments}
        for index, values in state["state"].items()
    }
    groups = [{key: _number(value) for key, value in group.items()} for group in state["param_groups"]]
    return {"state": moments, "param_groups": groups, "names": order}


def _host_copy(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.clone(memory_format=torch.contiguous_format) if tensor.is_cpu else tensor.cpu()


def _number(value: object) -> object:
    return value.item() if isinstance(value, torch.Tensor) else value


@torch.no_grad()
def load_weights(model: BertForPreTraining, weights: dict[str, torch.Tensor], where: Path) -> None:
    """Copy unpadded weights into the model; every name and shape must be the model's own."""
    expected = dict(model.named_parameters())
    problems = [f"{where}: no weight {name}" for name in expected if name not in weights]
    problems += [f"{where}: unknown weight {name}" for name in weights if name not in expected]
    for name, parameter in expected.items():
        wanted = unpadded(name, parameter, model.config).shape
        if name in weights and weights[name].shape != wanted:
            problems.append(f"{where}: {name} is {list(weights[name].shape)}, the model has {list(wanted)}")
    if problems:
        raise BadRequest(f"{_first(problems)}: a model of another size; give the --config_file it was made with")
    problems = [f"{where}: {name} holds {found}" for name in expected if (found := _no_weights(weights[name]))]
    if problems:
        raise BadRequest(f"{_first(problems)}: quantized, damaged, or of a training that diverged: take another copy")
    for name, parameter in expected.items():
        unpadded(name, parameter, model.config).copy_(weights[name])
    word_embeddings = model.bert.embeddings.word_embeddings.weight
    word_embeddings[model.config.vocab_size :] = 0
    model.cls.predictions.bias[model.config.vocab_size :] = PADDED_ROW_BIAS


def _no_weights(tensor: torch.Tensor) -> str:
    """What a tensor holds instead of weights; nothing for floating-point numbers, all finite."""
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return str(tensor.dtype).removeprefix("torch.")
    return "" if tensor.isfinite().all() else "NaN or infinity"


def _first(problems: list[str]) -> str:
    more = f" (and {len(problems) - 1} more differences)" if len(problems) > 1 else ""
    return f"{problems[0]}{more}"


def check_moments(saved: object, optimizer: Optimizer, model: BertForPreTraining, folder: Path) -> None:
    """Raise BadRequest where what a checkpoint holds is no state of this optimizer and model."""
    if problems := _moment_problems(saved, optimizer.moments, model):
        raise BadRequest(
            f"{folder / MOMENTS}: {_first(problems)}: not the optimizer state of this model: {remedy(folder)}"
        )


def _moment_problems(saved: object, moment_names: tuple[str, ...], model: BertForPreTraining) -> list[str]:
    parts = ("state", "names", "param_groups")
    if not isinstance(saved, dict) or any(not isinstance(saved.get(part), dict | list) for part in parts):
        return [f"holds no {', '.join(parts)}"]
    if not all(isinstance(name, str) for name in saved["names"]):
        return ["names that are no text"]
    steps = [_updates(group) for group in saved["param_groups"]]
    if None in steps:
        return ["a group without a count of its steps"]
    wanted = {name: unpadded(name, p, model.config).shape for name, p in model.named_parameters()}
    names = dict(enumerate(saved["names"]))
    state = saved["state"] if isinstance(saved["state"], dict) else {}
    found = {names.get(index): moments for index, moments in state.items() if isinstance(moments, dict)}
    if not found and not any(steps):
        return []  # saved before the first step
    problems = [f"no moments of {name}" for name in wanted if name not in found]
    problems += [f"moments of {name}, which the model does not have" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        for moment in moment_names:
            if fault := tensor_files.moment_fault(moment, found[name].get(moment), wanted[name]):
                problems.append(f"{moment} of {name} {fault}")
    return problems


def _updates(group: object) -> int | None:
    """How many updates a saved group counts, 0 where it says nothing; None for what is no count."""
    step: Any = group.get("step", 0) if isinstance(group, dict) else None
    if isinstance(step, torch.Tensor) and step.numel() == 1:
        step = step.item()
    whole = type(step) in (int, float) and 0 <= step < MOST_STEPS and step == int(step)
    return int(step) if whole else None


@torch.no_grad()
def load_moments(optimizer: Optimizer, model: BertForPreTraining, saved: dict[str, Any]) -> None:
    """Put moments, by name, and the optimizer's own step count into it, on the device of its parameters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_name = {saved["names"][index]: moments for index, moments in saved["state"].items()}
    step = max((_updates(group) or 0 for group in saved["param_groups"]), default=0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = by_name.get(names[parameter])
            if moments is None:
                continue
            for key in optimizer.moments:
                full = torch.zeros_like(parameter)
                unpadded(names[parameter], full, model.config).copy_(moments[key])
                optimizer.state[parameter][key] = full
    optimizer.resume_at(step)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BadRequest(f"{folder / WEIGHTS}: cannot be read ({error}): {remedy(folder)}") from error


def read_moments(folder: Path) -> dict[str, Any] | None:
    """The saved optimizer state, None where a folder has none."""
    if not (folder / MOMENTS).exists():
        return None
    try:
        return tensor_files.load(folder / MOMENTS)
    except Exception as error:  # pickle and torch raise many kinds for a file cut short, with long texts
        raise BadRequest(f"{folder / MOMENTS}: cannot be read ({first_line(error)}): {remedy(folder)}") from error


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written or half deleted."""
    for path in folder.glob(".*"):
        if path.is_dir() and path.name.startswith((TEMPORARY, DISCARDED)):
            shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path, limit: int) -> None:
    """Delete all but the newest `limit` whole checkpoints and the last of each phase."""
    whole = {}
    for path in list_checkpoints(folder):
        try:
            whole[path] = read_state(path)
        except ValueError:
            continue  # not ours to delete: resuming will name it
    kept = set(list(whole)[-limit:])
    kept |= {
        [path for path in whole if whole[path]["phase"] == phase][-1] for phase in {s["phase"] for s in whole.values()}
    }
    for path in whole.keys() - kept:
        discarded = path.with_name(DISCARDED + path.name)
        path.rename(discarded)
        shutil.rmtree(discarded, ignore_errors=True)


def set_aside(folder: Path, global_step: int) -> list[str]:
    """Rename the checkpoints beyond a step to ckpt_<n>.1, .2, ..., and return lines that say so.

    A run that goes on from that step would else be resumed from them, or find their number taken by them.
    """
    beyond = [path for step, path in numbered_checkpoints(folder) if step > global_step]
    return [f"{path.name} is kept as {Path(kept).name}" for path in beyond if (kept := move_aside(path))]


class CheckpointWriter:
    """Writes checkpoints in a thread; training stops for the copy of the state only. One rank of a run has one."""

    def __init__(self, folder: Path, limit: int, architecture: str = "BertForPreTraining"):
        self.folder = folder
        self.limit = limit
        self.architecture = architecture
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self,
        model: BertForPreTraining,
        optimizer: Optimizer,
        state: dict[str, Any],
        texts: dict[str, str],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy the state now, write it meanwhile, call `then` when it is in place."""
        self.wait()
        weights, moments = copy_weights(model), copy_moments(optimizer, model)
        texts = {"config.json": json.dumps(model.config.to_hugging_face(self.architecture), indent=2) + "\n", **texts}
        work = (weights, moments, state, texts, then)
        self._thread = threading.Thread(target=self._write, args=work, name="checkpoint writer")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written; raises what went wrong in the last save."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what went wrong in the last save, without waiting for one under way."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(
        self,
        weights: dict[str, torch.Tensor],
        moments: dict[str, Any],
        state: dict[str, Any],
        texts: dict[str, str],
        then: Callable[[], None],
    ) -> None:
        target = self.folder / f"ckpt_{state['global_step']}"
        try:
            _check_finite(weights, target)
            write_checkpoint(target, weights, moments, state, texts)
            prune(self.folder, self.limit)
            then()
        except OSError as error:
            self._error = _explained(error, target)
        except BaseException as error:
            self._error = error


def _check_finite(weights: dict[str, torch.Tensor], target: Path) -> None:
    """A finite gradient times a huge learning rate is seen here, and nowhere before the next step."""
    bad = next((name for name, tensor in weights.items() if not torch.isfinite(tensor).all()), None)
    if bad:
        raise Diverged(
            f"{target.name}: {bad} is not finite, not saved, the older checkpoints are good: lower --learning_rate"
        )


def write_checkpoint(
    target: Path,
    weights: dict[str, torch.Tensor],
    moments: dict[str, Any],
    state: dict[str, Any],
    texts: dict[str, str],
) -> None:
    """Write beside, sync, rename: `target` is whole or not there. OSError where something has that name already."""
    partial = target.with_name(f"{TEMPORARY}{target.name}_{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        try:
            save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
            tensor_files.save(moments, partial / MOMENTS)
            (partial / WEIGHTS).chmod((partial / MOMENTS).stat().st_mode)  # safetensors leaves it to its owner alone
        except (SafetensorError, RuntimeError) as error:
            raise OSError(errno_of(error) or errno.EIO, str(error)) from error
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        files = sorted(partial.iterdir())
        sizes, checksums = ({path.name: fact(path) for path in files} for fact in (_size, checksum))
        state = sealed({**state, "files": sizes, "sha256": checksums})
        (partial / STATE).write_text(json.dumps(state, indent=2) + "\n")
        for path in (*partial.iterdir(), partial):
            sync(path)
        partial.rename(target)  # refused where a folder with anything in it stands in the way: nothing is replaced
        sync(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _size(path: Path) -> int:
    return path.stat().st_size


def _explained(error: OSError, target: Path) -> BadRequest:
    if why := refusal(error):
        return BadRequest(
            f"{target}: {why}. This checkpoint was not written, the older ones are whole: --resume_from_checkpoint "
            "goes on from there"
        )
    return BadRequest(f"{target}: this checkpoint could not be written ({error}); the older ones are whole")
