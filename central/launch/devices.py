"""Which devices this machine has. Counting never acquires a card: a card that the parent holds, no rank can open."""

import os
import sys
from dataclasses import dataclass

from central.launch.problems import BadRequest


@dataclass(frozen=True, eq=False)
class Devices:
    """The device of a run and how many cards of it there are; None where that is not known or does not count."""

    type: str
    cards: int | None = None


def hpu_count(capture, environ) -> int:
    """Gaudi cards that may be used: none without habana_frameworks, else as hl-smi or the device folder counts them."""
    if not _is_installed("habana_frameworks"):
        return 0
    answer = capture(["hl-smi", "-Q", "index,module_id", "-f", "csv"], env={"ENABLE_CONSOLE": "true"})
    cards = [line for line in answer.stdout.splitlines() if line[:1].isdigit()]
    if answer.status != 0:
        cards = [name for name in _names("/dev/accel") if name.removeprefix("accel").isdigit()]
    visible = environ.get("HABANA_VISIBLE_MODULES")
    return min(len(cards), len(visible.split(","))) if visible else len(cards)


def cuda_count(capture, environ) -> int:
    """GPUs torch can use: none where nvidia-smi lists none, else torch is asked, in a process of its own."""
    if "GPU " not in capture(["nvidia-smi", "-L"]).stdout:
        return 0
    answer = capture([sys.executable, "-c", "import torch; print(torch.cuda.device_count())"], timeout=120)
    return int(answer.stdout.strip() or 0) if answer.status == 0 else 0


def choose(wanted, capture, environ) -> Devices:
    """The device asked for, which must be there; for auto hpu, else cuda, else cpu."""
    if wanted == "cpu":
        return Devices("cpu")
    counted = {}
    for name, count in (("hpu", hpu_count), ("cuda", cuda_count)):
        counted[name] = count(capture, environ)
        if counted[name] and wanted in ("auto", name):
            return Devices(name, counted[name])
    if wanted == "auto":
        return Devices("cpu")
    found = ", ".join(f"{cards} on {name}" for name, cards in counted.items())
    missing = "habana_frameworks is not installed" if not _is_installed("habana_frameworks") else "no card is visible"
    reason = missing if wanted == "hpu" else "nvidia-smi and torch see no GPU"
    raise BadRequest(f"--device {wanted}: {reason}; found cards: {found}; --device cpu works everywhere")


def _is_installed(package):
    import importlib.util

    return importlib.util.find_spec(package) is not None


def _names(folder):
    return os.listdir(folder) if os.path.isdir(folder) else []
