"""Which devices this machine has. Counting never acquires a card: a card that the parent holds, no rank can open."""

import os
import sys

from central.launch.values import Value


class Devices(Value):
    """The device of a run and how many cards of it there are; None where that is not known or does not count.

    `missing` says why a device that was asked for cannot be had.
    """

    type: str
    cards: int | None = None
    missing: str = ""


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
    """The device asked for, or for auto the best there is: hpu, else cuda, else cpu."""
    if wanted == "cpu":
        return Devices("cpu")
    found = {"hpu": hpu_count(capture, environ), "cuda": cuda_count(capture, environ)}
    if wanted == "auto":
        best = next((name for name, cards in found.items() if cards), "cpu")
        return Devices(best, found.get(best))
    return Devices(wanted, found[wanted], "" if found[wanted] else _why_missing(wanted, found))


def _why_missing(wanted, found):
    reason = {
        "hpu": "no card is seen" if _is_installed("habana_frameworks") else "habana_frameworks is not installed",
        "cuda": "torch sees no GPU",
    }[wanted]
    others = ", ".join(f"{cards} {name} cards" for name, cards in found.items() if name != wanted)
    return f"--device {wanted}: {reason}; found {others} and the cpu (--device cpu)"


def _is_installed(package):
    import importlib.util

    return importlib.util.find_spec(package) is not None


def _names(folder):
    return os.listdir(folder) if os.path.isdir(folder) else []
