"""What a folder with a model must be before transformers reads it: files that are files, JSON objects, weights.

transformers passes over a link that leads nowhere, as if the file had never been there, waits for a pipe to be filled,
takes whole numbers for weights, and says of damage what it happens to meet.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from central import files
from central.runtime import tensor_files
from central.runtime.exits import BadRequest

OBJECTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is taken, or what its index names
FLOATS = {"F64", "F32", "F16", "BF16"} | {str(kind) for kind in (torch.float64, torch.float32, torch.float16)}
FLOATS |= {str(torch.bfloat16)}
COUNTED = ("position_ids", "token_type_ids")  # ends of names of what some files hold beside weights
MOST_LABELS = 2**20


def refuse_damaged(folder: Path, has_weights: bool = True) -> None:
    """Raise BadRequest with every file that is not what its name says, or where there are no weights to be had."""
    problems = files.misnamed(folder)
    if not problems:
        problems = [*_not_objects(folder), *(_not_weights(folder) if has_weights else ())]
    if problems:
        raise BadRequest(problems)


def _not_objects(folder: Path) -> Iterator[str]:
    for path in (folder / name for name in OBJECTS):
        if not path.exists():
            continue
        try:
            content = files.json_object(path)
        except ValueError as error:
            yield f"{path}: is no JSON object ({error}): copy it again"
            continue
        labels = content.get("num_labels")
        if isinstance(labels, int) and labels > MOST_LABELS:  # transformers makes a name for each
            yield f"{path}: num_labels is {labels}: give 1 to {MOST_LABELS}"


def _not_weights(folder: Path) -> Iterator[str]:
    try:
        paths = _weight_files(folder)
    except ValueError as error:
        yield str(error)
        return
    for path in paths:
        try:
            types = _types_in(path)
        except BadRequest as error:
            yield from error.problems
            continue
        except (SafetensorError, ValueError) as error:
            reason = f" ({error})" if isinstance(error, SafetensorError) else f", or {error}"
            yield f"{path}: is damaged{reason}: copy it again"
            continue
        others = [name for name, kind in types.items() if kind not in FLOATS and not name.endswith(COUNTED)]
        if others:
            yield (
                f"{path}: {len(others)} weights are {types[others[0]]}, such as {others[0]}: weights must be "
                "floating-point numbers of 16 bits or more: take the model that they were made from"
            )


def _weight_files(folder: Path) -> list[Path]:
    """The files whose weights transformers takes; ValueError where there is none, or an index is damaged."""
    for name in WEIGHTS:
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            return tensor_files.indexed_files(index)
    raise ValueError(
        f"{folder}: has no weights, {' or '.join(WEIGHTS)}: save the model by save_pretrained of transformers"
    )


def _types_in(path: Path) -> dict[str, str]:
    """The type of each weight in a file, by its name; raises SafetensorError, or ValueError with what else it holds."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as stored:
            return {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
    files.refuse_inflated(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle's protocol
            content: Any = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # damage shows in a dozen kinds
        raise ValueError("holds other things than weights, which are not loaded") from error
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__} and no weights by name")
    for name, value in content.items():
        if not isinstance(name, str) or isinstance(value, dict | list | tuple):
            raise ValueError(f"holds more than weights by name ({name!r} is a {type(value).__name__})")
    return {name: _type_of(value) for name, value in content.items() if isinstance(value, torch.Tensor)}


def _type_of(weight: torch.Tensor) -> str:
    return str(weight.dtype) if weight.layout is torch.strided else str(weight.layout)
