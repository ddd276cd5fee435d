"""What a training run tells: a log in dllogger's format, lines or a bar on the terminal, TensorBoard, a picture."""

import datetime
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from central.files import leads_to, move_aside, parse_json

BAR_WIDTH = 24
MOST_SECONDS = 10**11  # a time left of some 3,000 years; a timedelta holds no more than 10**14
START = "start_global_step"  # in the log: the step that a process began at, with its phase
LACKING = float("nan")  # in the picture: a gap, for what the reference or an older version did not log
BASELINES = {
    "eval_mlm_loss": ("eval_unigram_loss", "unigram baseline"),
    "eval_nsp_accuracy": ("eval_nsp_majority", "majority"),
}  # of the numbers that are drawn: what stands beside them
DRAWN = ("average_loss", "eval_mlm_loss", "eval_nsp_accuracy", "learning_rate", "sequences_per_second")
DRAWN += tuple(baseline for baseline, _ in BASELINES.values())
MOST_POINTS = 1000  # of a curve in a picture of 900 pixels, give or take a factor of two
COLOURS = ("#1f6f8b", "#c8553d", "#588157")


class Curve:
    """Points of a line in the picture, by rising steps: at most twice `MOST_POINTS`, about evenly spaced, however many
    are added. The newest is always among them."""

    def __init__(self):
        self.points = []  # (step, numbers)
        self._gap = 1  # steps between two points that stay

    def add(self, step: int, numbers: dict) -> None:
        """A step that was there is replaced, and what came after it is dropped: a restart does it again."""
        self.cut(step - 1)
        if len(self.points) > 1 and self.points[-1][0] - self.points[-2][0] < self._gap:
            self.points.pop()
        self.points.append((step, numbers))
        if len(self.points) > 2 * MOST_POINTS:
            self._gap = (step - self.points[0][0]) // MOST_POINTS
            points, self.points = self.points, []
            for at, values in points:
                self.add(at, values)

    def cut(self, last: int) -> None:
        """Drop the points beyond a step."""
        while self.points and self.points[-1][0] > last:
            self.points.pop()


class History:
    """What the picture shows of a log, less what a run left behind when it went back: of bounded size.

    `training` and `held_out` are curves by phase.
    """

    def __init__(self):
        self.training, self.held_out = {}, {}

    def add(self, step, data: dict) -> None:
        """An entry of the log, in the log's order."""
        if step == "PARAMETER" and START in data:
            begin = data[START], data.get("phase", 1)
            for curves in (self.training, self.held_out):
                for phase, curve in curves.items():
                    curve.cut(begin[0] if phase <= begin[1] else begin[0] - 1)
        elif _is_of_a_step(step):
            drawn = {key: data[key] for key in DRAWN if key in data}
            for curves, sign in ((self.training, "average_loss"), (self.held_out, "eval_mlm_loss")):
                if sign in data:
                    curves.setdefault(data.get("phase", 1), Curve()).add(step[1], drawn)


class DlLogger:
    """Appends lines as the package dllogger writes them; that package does it where it is installed.

    `history` is what the picture shows of it and of what was there before.
    """

    def __init__(self, path: Path, fresh: bool):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.kept_as = move_aside(path) if fresh else None  # the log of an earlier run that left no checkpoint
        self.history = read_history(path) if path.exists() else History()
        if path.exists() and not _ends_its_line(path):
            with path.open("a") as file:  # a killed run left half a line
                file.write("\n")
        self._began = time.time()
        self._path = path
        self._open()

    def _open(self) -> None:
        try:
            import dllogger

            self._backend = dllogger.JSONStreamBackend(dllogger.Verbosity.VERBOSE, str(self._path), append=True)
        except (ImportError, TypeError):
            self._backend, self._file = None, self._path.open("a", buffering=1)
        self._status = self._path.stat()

    def log(self, step, data: dict) -> bool:
        """`step` is "PARAMETER", [epoch, global_step], or () for the line of the whole run. Whether the lines before it
        are there still: a log that was deleted is made again."""
        self.history.add(step, data)
        whole = leads_to(self._path, self._status)
        if not whole:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        now = datetime.datetime.now()
        elapsed = time.time() - self._began
        if self._backend is not None:
            self._backend.log(now, elapsed, step, data)
            self._backend.flush()
            return whole
        line = {
            "timestamp": str(now.timestamp()),
            "datetime": str(now),
            "elapsedtime": str(elapsed),
            "type": "LOG",
            "step": step if isinstance(step, str) else list(step),
            "data": data,
        }
        self._file.write(f"DLLL {json.dumps(line)}\n")
        return whole


def _ends_its_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1))
        return file.read() in (b"", b"\n")


def read_log(path: Path) -> Iterator[tuple[list[int], dict]]:
    """([epoch, global_step], data) of a log's lines that belong to a step; half-written lines are passed over."""
    return ((step, data) for step, data in _entries(path) if _is_of_a_step(step))


def read_history(path: Path) -> History:
    """What the picture shows of a log."""
    history = History()
    for entry in _entries(path):
        history.add(*entry)
    return history


def _is_of_a_step(step) -> bool:
    return isinstance(step, list) and len(step) == 2


def _entries(path: Path) -> Iterator[tuple[str | list, dict]]:
    with path.open(errors="replace") as lines:
        for line in lines:
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


def draw_training(history: History, picture: Path, title: str) -> None:
    """Losses, learning rate and throughput over global steps, phases marked; replaced at once."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's is a module that need not be here
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    training, held_out = _lines(history.training), _lines(history.held_out)
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
        for phase, points in lines.items():
            steps = [step for step, _ in points]
            colour = COLOURS[(phase - 1) % len(COLOURS)]
            values = [numbers.get(key, LACKING) for _, numbers in points]
            axis.plot(steps, values, style, color=colour, markersize=3, label=f"phase {phase}")
            if key in BASELINES:
                baseline, name = BASELINES[key]
                values = [numbers.get(baseline, LACKING) for _, numbers in points]
                axis.plot(steps, values, ":", color=colour, label=f"{name}, phase {phase}")
        for end in [points[-1][0] for points in training.values()][:-1]:
            axis.axvline(end, color="#999999", linestyle=":", linewidth=1)
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
        if "loss" in label or key in BASELINES:
            axis.legend(frameon=False, fontsize=8)
    axes[-1].set_ylim(bottom=0)
    axes[-1].set_xlabel("global step")
    axes[0].set_title(title, loc="left", fontsize=10)
    partial = picture.with_name(f".{picture.name}")  # one name: a killed run leaves one file, which the next replaces
    figure.savefig(partial, format="png", dpi=100)
    partial.replace(picture)


def _lines(curves: dict[int, Curve]) -> dict[int, list[tuple[int, dict]]]:
    """Points by phase, as they are now: training goes on while a picture is drawn."""
    return {phase: list(curve.points) for phase, curve in sorted(curves.items()) if curve.points}
