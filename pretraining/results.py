"""results.json: what each phase came to, one flat object a phase, for a CI job and for people to read."""

import contextlib
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from central.files import COMMIT, known_in, write_json

NAME = "results.json"
GIT_SECONDS = 10  # on a slow disk it looks at every file


@dataclass(frozen=True)
class Facts:
    """What is trained, on what."""

    model: str
    parameters: int  # of a checkpoint, without the padding of the vocabulary
    device: str
    device_name: str
    mode: str
    data_type: str
    world_size: int
    global_batch_size: int  # sequences of an optimizer step, over all ranks

    @property
    def size(self) -> str:
        return f"{self.parameters / 1e6:.1f} M parameters"

    @property
    def title(self) -> str:
        """Of the picture."""
        return f"{self.model}, {self.size}, {self.device} {self.data_type}"


def versions() -> dict[str, str | None]:
    """Of what computes; the project's commit is None where this is no clone."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "commit": _commit(),
    }


def _commit() -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(COMMIT, capture_output=True, text=True, timeout=GIT_SECONDS).stdout.strip() or None
    return None


def add_phase(file: Path, phase: int, numbers: Mapping[str, object]) -> None:
    """Write what a phase came to beside the phases before it; of those behind it nothing stays: they go on from it."""
    there = known_in(file)
    earlier = {name: there[name] for name in map(key, range(1, phase)) if name in there}
    write_json(file, {**earlier, key(phase): dict(numbers)})


def last_step(file: Path, phase: int) -> object:
    """The global step that a phase's entry is of; None where there is none."""
    entry = known_in(file).get(key(phase))
    return entry.get("global_step") if isinstance(entry, dict) else None


def key(phase: int) -> str:
    return f"phase_{phase}"
