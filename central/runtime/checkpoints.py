"""Where pre-training checkpoints lie and which are whole. Standard library only.

A checkpoint is a Hugging Face folder `ckpt_<global_step>` with `state.json` beside the weights; `state.json` lists
the size of every other file, so that a file cut short is seen without reading it.
"""

import json
import re
from pathlib import Path

NAME = re.compile(r"ckpt_(\d+)")


def checkpoint_step(folder: Path) -> int | None:
    """The global step in a checkpoint's name, None for any other name."""
    match = NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def read_state(folder: Path) -> dict:
    """The content of a checkpoint's state.json; ValueError names a checkpoint that is not whole, and what to do."""
    try:
        return _whole_state(folder)
    except ValueError as error:
        raise ValueError(f"{error}: {remedy(folder)}") from error


def is_complete(folder: Path) -> bool:
    try:
        _whole_state(folder)
    except ValueError:
        return False
    return True


def remedy(folder: Path) -> str:
    """How a run goes on where this checkpoint cannot be read: from the whole one before it, if there is one."""
    step = checkpoint_step(folder)
    older = [path for path in list_checkpoints(folder.parent) if step is not None and checkpoint_step(path) < step]
    whole = [path for path in older if is_complete(path)]
    if not whole:
        return "no whole checkpoint lies before it: copy it again from where it was written, or begin anew elsewhere"
    before = checkpoint_step(whole[-1])
    return f"--resume_step {before} goes on from {whole[-1].name}, the whole one before it, and keeps this one aside"


def _whole_state(folder: Path) -> dict:
    try:
        state = json.loads((folder / "state.json").read_text())
        sizes = dict(state["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: not a whole checkpoint, its state.json cannot be read ({error})") from error
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).exists() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise ValueError(f"{folder / name} {what}")
    return state


def list_checkpoints(folder: Path) -> list[Path]:
    """Folders named like checkpoints, oldest first, whole or not."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and checkpoint_step(path) is not None]
    return sorted(found, key=checkpoint_step)


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
