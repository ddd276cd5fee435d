"""Weights made elsewhere: Hugging Face folders, and the `.pt` files of the reference and of NVIDIA.

A `.pt` is a pickle and could run any code. It is read by an unpickler that knows tensors and plain containers; every
other class becomes an inert object that holds nothing.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeGuard

import torch
from safetensors.torch import load_file

from central.errors import first_line
from central.files import refuse_inflated
from central.runtime import tensor_files
from central.runtime.exits import BadRequest
from pretraining.checkpoint import PADDED
from pretraining.lamb import Lamb
from pretraining.modeling import BertConfig, BertForPreTraining, decays

# Older names -> today's. "decoder" is the word embedding itself.
RENAMED = (
    ("module.", ""),
    ("_orig_mod.", ""),
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
    ("intermediate.dense_act.", "intermediate.dense."),
    ("pooler.dense_act.", "pooler.dense."),
    ("transform.dense_act.", "transform.dense."),
)
DROPPED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "bert.embeddings.position_ids")
HEADS = ("cls.predictions.", "cls.seq_relationship.", "bert.pooler.")


@dataclass(frozen=True)
class Converted:
    weights: dict[str, torch.Tensor]  # Hugging Face's names, unpadded
    moments: dict[str, Any] | None  # as checkpoint.load_moments reads it
    notes: tuple[str, ...]


def convert(path: Path, model: BertForPreTraining) -> Converted:
    """Weights, and moments where there are any, for `model`; heads that `path` lacks stay the model's own, said."""
    found, optimizer = (_read_folder(path), None) if path.is_dir() else _read_pt(path)
    if not _are_weights(found):
        raise BadRequest(f"{path}: holds no model weights: give a model's folder, or a .pt of the reference or NVIDIA")
    weights = {}
    for name, tensor in found.items():
        for old, new in RENAMED:
            name = name.replace(old, new)
        if not name.startswith(("bert.", "cls.")):
            name = f"bert.{name}"
        if name not in DROPPED:
            weights[name] = _trimmed(name, tensor, model.config)
    own = {name: tensor.detach() for name, tensor in model.named_parameters()}
    made = [name for name in own if name not in weights and name.startswith(HEADS)]
    for name in made:
        weights[name] = _trimmed(name, own[name], model.config)
    weights = {name: tensor for name, tensor in weights.items() if name in own or name.startswith("bert.enc")}
    notes = [f"{path}: has no {_head_names(made)}: made anew"] if made else []
    moments = _moments(optimizer, model)
    if optimizer and moments is None:
        notes.append(f"{path}: its optimizer state is of another kind: moments begin at zero")
    return Converted(weights, moments, tuple(notes))


def _are_weights(found: object) -> TypeGuard[dict[str, torch.Tensor]]:
    if not isinstance(found, dict) or not found:
        return False
    return all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items())


def _head_names(names: list[str]) -> str:
    labels = {"cls.predictions.": "masked-LM head", "cls.seq_relationship.": "next-sentence head"}
    labels["bert.pooler."] = "pooler"
    return " and ".join(label for prefix, label in labels.items() if any(name.startswith(prefix) for name in names))


def _trimmed(name: str, tensor: torch.Tensor, config: BertConfig) -> torch.Tensor:
    """NVIDIA and the reference pad the vocabulary to a multiple of 8 on disk too."""
    if name in PADDED and len(tensor) == config.padded_vocab_size:
        return tensor[: config.vocab_size]
    return tensor


def _read_folder(folder: Path) -> Any:
    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            parts = map(load_file, tensor_files.indexed_files(index))
            return {name: weight for part in parts for name, weight in part.items()}
        if (folder / "model.safetensors").is_file():
            return load_file(folder / "model.safetensors")
        if (older := folder / "pytorch_model.bin").is_file():
            refuse_inflated(older)
            if zipfile.is_zipfile(older):
                return tensor_files.load(older, foreign=Inert)
            return torch.load(older, map_location="cpu", weights_only=True)  # of torch before 1.6
    except BadRequest:
        raise
    except Exception as error:  # torch and safetensors raise many kinds for a file cut short
        raise BadRequest(f"{folder}: its weights cannot be read ({first_line(error)}): copy it again") from error
    raise BadRequest(f"{folder}: no model.safetensors or pytorch_model.bin in it: give a model folder or a .pt")


def _read_pt(path: Path) -> tuple[Any, Any]:
    """What stands in a `.pt` for weights, and for the optimizer's state."""
    refuse_inflated(path)
    try:
        content = tensor_files.load(path, foreign=Inert)
    except Exception as error:  # whatever a broken pickle leads to
        raise BadRequest(f"{path}: not a checkpoint that can be read ({first_line(error)}): copy it again") from error
    return (content.get("model", content), content.get("optimizer")) if isinstance(content, dict) else (None, None)


def _moments(saved: object, model: BertForPreTraining) -> dict[str, Any] | None:
    """The optimizer state of the reference, whose parameters come in the model's order, decayed ones first."""
    if not isinstance(saved, dict) or not saved.get("state"):
        return None
    names = [name for name, _ in model.named_parameters()]
    order = [name for name in names if decays(name)] + [name for name in names if not decays(name)]
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state = {}
    for index, moments in saved["state"].items():
        if not isinstance(index, int) or index >= len(order) or not isinstance(moments, dict):
            return None
        tensors: list[Any] = [moments.get(key) for key in Lamb.moments]
        fits = [isinstance(t, torch.Tensor) and t.shape[1:] == shapes[order[index]][1:] for t in tensors]
        if not all(fits):
            return None
        trimmed = [_trimmed(order[index], tensor.float(), model.config) for tensor in tensors]
        state[index] = dict(zip(Lamb.moments, trimmed))
    steps = [group.get("step", 0) for group in saved.get("param_groups", []) if isinstance(group, dict)]
    steps += [moments.get("step", 0) for moments in saved["state"].values()]
    whole = [int(step) for step in steps if isinstance(step, int | float | torch.Tensor)]
    return {"state": state, "param_groups": [{"step": max(whole, default=0)}], "names": order}


class Inert:
    """Stands for an object of a class that is not read."""

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> Self:
        return self

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass
