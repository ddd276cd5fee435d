"""What a training run tells: a log in dllogger's format, lines or a bar on the terminal, TensorBoard, a picture."""

import datetime
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from central.files import move_aside, parse_json

BAR_WIDTH = 24
MOST_SECONDS = 10**11  # a time left of some 3,000 years; a timedelta holds no more than 10**14
START = "start_global_step"  # in the log: the step that a process began at, with its phase
LACKING = float("nan")  # in the picture: a gap, for what the reference or an older version did not log
BASELINES = {
    "eval_mlm_loss": ("eval_unigram_loss", "unigram baseline"),
    "eval_nsp_accuracy": ("eval_nsp_majority", "majority"),
}  # of the numbers that are drawn: what stands beside them
COLOURS = ("#1f6f8b", "#c8553d", "#588157")


class DlLogger:
    """Appends lines as the package dllogger writes them; that package does it where it is installed."""

    def __init__(self, path: Path, fresh: bool):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.kept_as = move_aside(path) if fresh else None  # the log of an earlier run that left no checkpoint
        if not fresh and path.exists() and not path.read_bytes().endswith(b"\n"):
            with path.open("a") as file:  # a killed run left half a line
                file.write("\n")
        self._began = time.time()
        try:
            import dllogger

            self._backend = dllogger.JSONStreamBackend(dllogger.Verbosity.VERBOSE, str(path), append=not fresh)
        except (ImportError, TypeError):
            self._backend, self._file = None, path.open("w" if fresh else "a", buffering=1)

    def log(self, step, data: dict) -> None:
        """`step` is "PARAMETER", [epoch, global_step], or () for the line of the whole run."""
        now = datetime.datetime.now()
        elapsed = time.time() - self._began
        if self._backend is not None:
            self._backend.log(now, elapsed, step, data)
            self._backend.flush()
            return
        line = {
            "timestamp": str(now.timestamp()),
            "datetime": str(now),
            "elapsedtime": str(elapsed),
            "type": "LOG",
            "step": step if isinstance(step, str) else list(step),
            "data": data,
        }
        self._file.write(f"DLLL {json.dumps(line)}\n")


def read_log(path: Path) -> list[tuple[list[int], dict]]:
    """([epoch, global_step], data) of a log's lines that belong to a step; half-written lines are passed over."""
    return [(step, data) for step, data in _entries(path) if isinstance(step, list) and len(step) == 2]


def read_history(path: Path) -> list[tuple[list[int], dict]]:
    """The lines of `read_log` less those that a run left behind when it went back to an older step."""
    found = []
    for step, data in _entries(path):
        if step == "PARAMETER" and START in data:
            begin = data[START], data.get("phase", 1)
            found = [line for line in found if (line[0][1], line[1].get("phase", 1)) <= begin]
        elif isinstance(step, list) and len(step) == 2:
            found.append((step, data))
    return found


def _entries(path: Path) -> Iterator[tuple[str | list, dict]]:
    for line in path.read_text().splitlines():
        try:
            entry = parse_json(line.removeprefix("DLLL "))
            step, data = entry["step"], dict(entry["data"])
        except (ValueError, KeyError, TypeError):
            continue
        yield step, data


class Console:
    """One bar on a terminal, plain lines elsewhere, with the time left reckoned from the steps of this run."""

    def __init__(self, total_steps: int, done_steps: int, bar: bool):
        self._total, self._first = total_steps, done_steps
        self._began = time.monotonic()
        self._bar = bar and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def say(self, text: str) -> None:
        print(f"{chr(13) + chr(27) + '[K' if self._bar else ''}{text}", file=sys.stderr if self._bar else sys.stdout)
        sys.stdout.flush()

    def step(self, step: int, text: str) -> None:
        done = step - self._first
        left = (time.monotonic() - self._began) / max(done, 1) * (self._total - step)
        eta = f"ETA {datetime.timedelta(seconds=round(min(left, MOST_SECONDS)))}"
        if not self._bar:
            print(f"step {step}/{self._total}  {text}  {eta}", flush=True)
            return
        filled = BAR_WIDTH * step // max(self._total, 1)
        bar = "#" * filled + "." * (BAR_WIDTH - filled)
        print(f"\r\x1b[K[{bar}] {step}/{self._total}  {text}  {eta}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._bar:
            print(file=sys.stderr)


def open_tensorboard(folder: Path):
    """A SummaryWriter; ValueError where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard: the package tensorboard is not installed: pip install tensorboard") from error
    return SummaryWriter(str(folder))


def draw_training(log: Path, picture: Path, title: str) -> None:
    """Losses, learning rate and throughput over global steps, phases marked, drawn from the log; replaced at once."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's is a module that need not be here
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    training, held_out = {}, {}
    for (_, step), data in read_history(log):  # a step done again after a restart: its last line counts
        phase = data.get("phase", 1)
        if "average_loss" in data:
            training[phase, step] = data
        elif "eval_mlm_loss" in data:
            held_out[phase, step] = data
    panels = [
        ("loss (MLM + NSP)", training, "average_loss", "-"),
        ("held-out MLM loss", held_out, "eval_mlm_loss", "o-"),
        ("held-out NSP accuracy", held_out, "eval_nsp_accuracy", "o-"),
        ("learning rate", training, "learning_rate", "-"),
        ("sequences / s", training, "sequences_per_second", "-"),
    ]
    panels = [panel for panel in panels if panel[1]]
    figure = Figure(figsize=(9, 1 + 2.2 * max(1, len(panels))))
    figure.subplots_adjust(left=0.1, right=0.97, top=0.95, bottom=0.07, hspace=0.12)
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (label, lines, key, style) in zip(axes, panels):
        for phase in sorted({phase for phase, _ in lines}):
            steps = sorted(step for p, step in lines if p == phase)
            colour = COLOURS[(phase - 1) % len(COLOURS)]
            values = [lines[phase, step].get(key, LACKING) for step in steps]
            axis.plot(steps, values, style, color=colour, markersize=3, label=f"phase {phase}")
            if key in BASELINES:
                baseline, name = BASELINES[key]
                values = [lines[phase, step].get(baseline, LACKING) for step in steps]
                axis.plot(steps, values, ":", color=colour, label=f"{name}, phase {phase}")
        for end in _phase_ends(training):
            axis.axvline(end, color="#999999", linestyle=":", linewidth=1)
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
        if "loss" in label or key in BASELINES:
            axis.legend(frameon=False, fontsize=8)
    axes[-1].set_ylim(bottom=0)
    axes[-1].set_xlabel("global step")
    axes[0].set_title(title, loc="left", fontsize=10)
    partial = picture.with_name(f".{picture.name}.{os.getpid()}")
    figure.savefig(partial, format="png", dpi=100)
    partial.replace(picture)


def _phase_ends(training: dict) -> list[int]:
    """Last step of every phase but the last."""
    phases = sorted({phase for phase, _ in training})
    return [max(step for p, step in training if p == phase) for phase in phases[:-1]]
