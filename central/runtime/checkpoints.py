"""Where pre-training checkpoints lie and which are whole. Standard library only.

A checkpoint is a Hugging Face folder `ckpt_<global_step>` with `state.json` beside the weights; `state.json` lists
the size of every other file, so that a file cut short is seen without reading it, and the SHA-256 of each, itself
included, so that a flipped bit is seen when it is read.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from central.files import checkpoint_step, is_special, parse_json

NONE_BEFORE = "no whole checkpoint lies before it: copy it again from where it was written, or begin anew elsewhere"


class LacksVocabulary(ValueError):
    """A checkpoint without its vocab.txt, which is the same in all of its run."""


def read_state(folder: Path) -> dict:
    """The content of a checkpoint's state.json; ValueError names a checkpoint that is not whole, and what to do."""
    try:
        return _whole_state(folder)
    except LacksVocabulary as error:
        raise ValueError(f"{error}: copy the model's vocab.txt into it") from error
    except ValueError as error:
        raise ValueError(f"{error}: {remedy(folder)}") from error


def is_ours(folder: Path) -> bool:
    """Whether a folder's state.json is of a pre-training here: others leave files of that name beside models, too."""
    file = folder / "state.json"
    try:
        state = parse_json(file.read_text()) if file.is_file() else None
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and {"files", "global_step"} <= state.keys()


def is_complete(folder: Path) -> bool:
    try:
        _whole_state(folder)
    except ValueError:
        return False
    return True


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(state: dict) -> dict:
    """A state with the checksum of itself, as its JSON without that checksum gives it."""
    return {**state, "state_sha256": _state_checksum(state)}


def check_content(folder: Path, state: dict, suffixes: tuple[str, ...] = ("",)) -> None:
    """Compare files, by the ends of their names, with their checksums; ValueError names one that is not as written.

    Checkpoints of earlier versions have no checksums.
    """
    for name, expected in state.get("sha256", {}).items():
        if name.endswith(suffixes) and checksum(folder / name) != expected:
            raise ValueError(
                f"{folder / name}: its content is not what was written (a damaged disk or copy): {remedy(folder)}"
            )


def _state_checksum(state: dict) -> str:
    rest = {key: value for key, value in state.items() if key != "state_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def remedy(folder: Path) -> str:
    """How a run goes on where this checkpoint cannot be read: from the whole one before it, if there is one."""
    step = checkpoint_step(folder)
    if step is None:  # named by hand: no other one is of its run
        return "copy it again from where it was written"
    older = [(at, path) for at, path in numbered_checkpoints(folder.parent) if at < step]
    whole = [(at, path) for at, path in older if is_complete(path)]
    if not whole:
        return NONE_BEFORE
    at, before = whole[-1]
    return f"--resume_step {at} goes on from {before.name}, the whole one before it, and keeps this one aside"


def _whole_state(folder: Path) -> dict:
    try:
        if is_special(folder / "state.json"):
            raise ValueError("a pipe, socket or device")
        state: Any = parse_json((folder / "state.json").read_text())
        sizes = dict(state["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: not a whole checkpoint, its state.json cannot be read ({error})") from error
    if state.get("state_sha256", seal := _state_checksum(state)) != seal:
        raise ValueError(f"{folder / 'state.json'}: its content is not what was written (a damaged disk, or edited)")
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).exists() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes instead of {size}"
            kind = LacksVocabulary if name == "vocab.txt" and found is None else ValueError
            raise kind(f"{folder / name} {what}")
    return state


def list_checkpoints(folder: Path) -> list[Path]:
    """Folders named like checkpoints, oldest first, whole or not."""
    return [path for _, path in numbered_checkpoints(folder)]


def numbered_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """`list_checkpoints` with the global step of each."""
    if not folder.is_dir():
        return []
    steps = ((checkpoint_step(path), path) for path in folder.iterdir() if path.is_dir())
    return sorted((step, path) for step, path in steps if step is not None)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of `folder`, which is a model folder itself, a folder of `ckpt_<global_step>`, or
    the output folder of a pre-training run."""
    folder = Path(folder)
    if (folder / "state.json").is_file():
        return folder if is_complete(folder) else None
    if (folder / "config.json").is_file():
        return folder
    for place in (folder, folder / "results" / "checkpoints", folder / "checkpoints"):
        whole = [path for path in list_checkpoints(place) if is_complete(path)]
        if whole:
            return whole[-1]
    return None
