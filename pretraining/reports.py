"""What a run tells: a log in dllogger's format, lines or a bar on the terminal, TensorBoard, a picture."""

import contextlib
import datetime
import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from central.files import leads_to, move_aside, parse_json
from central.runtime.exits import BadRequest
from pretraining import results
from pretraining.metrics import Metrics
from pretraining.objective import Objective, Panel
from pretraining.results import Facts
from pretraining.settings import Settings
from pretraining.train_loop import TrainState

BAR = "[{bar:24}] {n_fmt}/{total_fmt}  {postfix}"
PICTURE = "training.png"
MOST_SECONDS = 10**11  # a time left of some 3,000 years; a timedelta holds no more than 10**14
START = "start_global_step"  # in the log: the step that a process began at, with its phase
LACKING = float("nan")  # in the picture: a gap, for what the reference or an older version did not log
MOST_POINTS = 1000  # of a curve in a picture of 900 pixels, give or take a factor of two
RUN_PANELS = (Panel("learning rate", "learning_rate"), Panel("sequences / s", "sequences_per_second"))
COLOURS = ("#1f6f8b", "#c8553d", "#588157")


class Curve:
    """Points of a line in the picture, by rising steps: at most twice `MOST_POINTS`, about evenly spaced, however many
    are added. The newest is always among them."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self._gap = 1  # steps between two points that stay

    def add(self, step: int, numbers: dict[str, float]) -> None:
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

    def __init__(self, objective: Objective):
        self.training: dict[int, Curve] = {}
        self.held_out: dict[int, Curve] = {}
        self._evaluated = objective.evaluated
        panels = (*objective.panels, *RUN_PANELS)
        self._drawn = {name for panel in panels for name in (panel.number, panel.baseline)}

    def at(self, state: TrainState) -> dict[str, float]:
        """What was reported of the steps up to where a run stands, of what is drawn."""
        points = self.training.get(state.phase, Curve()).points
        return dict(points[-1][1]) if points and points[-1][0] == state.global_step else {}

    def add(self, step: str | Sequence[int], data: Mapping[str, Any]) -> None:
        """An entry of the log, in the log's order."""
        if step == "PARAMETER" and START in data:
            begin = data[START], data.get("phase", 1)
            for curves in (self.training, self.held_out):
                for phase, curve in curves.items():
                    curve.cut(begin[0] if phase <= begin[1] else begin[0] - 1)
        elif _is_of_a_step(step):
            drawn = {name: value for name, value in data.items() if name in self._drawn}
            for curves, sign in ((self.training, "average_loss"), (self.held_out, self._evaluated)):
                if sign in data:
                    curves.setdefault(data.get("phase", 1), Curve()).add(int(step[1]), drawn)


class DlLogger:
    """Appends lines as the package dllogger writes them; that package does it where it is installed.

    `history` is what the picture shows of it and of what was there before.
    """

    def __init__(self, path: Path, fresh: bool, objective: Objective):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.kept_as = move_aside(path) if fresh else None  # the log of an earlier run that left no checkpoint
        self.history = read_history(path, objective) if path.exists() else History(objective)
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

    def log(self, step: str | Sequence[int], data: Mapping[str, object]) -> bool:
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


def read_history(path: Path, objective: Objective) -> History:
    """What the picture shows of a log."""
    history = History(objective)
    for entry in _entries(path):
        history.add(*entry)
    return history


def _is_of_a_step(step: str | Sequence[int]) -> bool:
    return isinstance(step, list) and len(step) == 2


def _entries(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    with path.open(errors="replace") as lines:
        for line in lines:
            try:
                entry = parse_json(line.removeprefix("DLLL "))
                step, data = entry["step"], dict(entry["data"])
            except (ValueError, KeyError, TypeError):
                continue
            yield step, data


class Console:
    """A bar on a terminal, plain lines elsewhere, with the time left reckoned from the steps of this run."""

    def __init__(self, total_steps: int, done_steps: int, bar: bool):
        self._total, self._first = total_steps, done_steps
        self._began = time.monotonic()
        self._bar = None
        if bar and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = tqdm(total=total_steps, initial=done_steps, bar_format=BAR, dynamic_ncols=True)

    def say(self, text: str) -> None:
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text, file=sys.stderr)

    def step(self, step: int, text: str) -> None:
        done = step - self._first
        left = (time.monotonic() - self._began) / max(done, 1) * (self._total - step)
        text = f"{text}  ETA {datetime.timedelta(seconds=round(min(left, MOST_SECONDS)))}"
        if self._bar is None:
            print(f"step {step}/{self._total}  {text}", flush=True)
        else:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Reporter:
    """What the main rank of a run writes of it: log, terminal, TensorBoard and picture."""

    def __init__(
        self,
        settings: Settings,
        objective: Objective,
        facts: Facts,
        rows_per_epoch: int,
        state: TrainState,
        peak_flops: float | None,
        fresh: bool,
    ):
        """`fresh`: log and results begin anew, and earlier ones are kept under other names. Raises BadRequest."""
        self._settings, self._objective, self._facts = settings, objective, facts
        self._rows_per_epoch, self._state, self._peak = rows_per_epoch, state, peak_flops
        self._console = Console(settings.stop_step, state.step, not settings.disable_progress_bar)
        with self._writing(self._settings.json_summary):
            self._log = DlLogger(settings.json_summary, fresh, objective)
            if fresh:
                move_aside(self._results)
        try:
            self._board = open_tensorboard(settings.results_dir / "tensorboard") if settings.tensorboard else None
        except ValueError as error:
            raise BadRequest(str(error)) from error
        self._versions = results.versions()  # of the files that run, whatever is pulled meanwhile
        self._training = self._log.history.at(state) if settings.do_train else {}  # the last report
        self._evaluation: dict[str, float] = {}  # the last one
        self._passed_peak = self._no_picture = False

    @property
    def log_kept_as(self) -> str | None:
        """The name that an earlier log has now."""
        return self._log.kept_as

    def say(self, line: str) -> None:
        self._console.say(line)

    def parameters(self, **values: object) -> None:
        self._record("PARAMETER", values)

    def report(self, numbers: dict[str, float]) -> None:
        """The steps since the last report."""
        self._training = {"phase": self._state.phase, **numbers}
        self._record(self._place, self._training)
        if self._peak is not None and numbers.get("mfu", 0) > 1 and not self._passed_peak:
            self._passed_peak = True
            self.say(
                f"mfu above 100 %: {self._peak / 1e9:.0f} GFLOP/s, the matrix peak measured at the start, was too low; "
                "take no mfu of this run for a measurement"
            )
        says_mfu = "mfu" in numbers and not self._passed_peak
        self._console.step(
            self._state.step,
            f"loss {numbers['average_loss']:.4f}  lr {numbers['learning_rate']:.2e}  "
            f"{numbers['sequences_per_second']:.1f} seq/s  {numbers['tokens_per_second']:.0f} tokens/s"
            + (f"  mfu {numbers['mfu']:.1%}" if says_mfu else ""),
        )

    def evaluation(self, numbers: dict[str, float]) -> None:
        self._evaluation = numbers
        self._record(self._place, {"phase": self._state.phase, **numbers})
        self.say(f"held out: {self._objective.summary(numbers)}, {numbers['eval_sequences']} sequences")

    def draw(self) -> None:
        try:
            picture = self._settings.results_dir / PICTURE
            draw_training(self._log.history, picture, self._facts.title, self._objective)
        except Exception as error:  # a picture is not worth a run: matplotlib is missing, the disk is full, ...
            if not self._no_picture:
                self.say(f"no training.png: {type(error).__name__}: {error}")
            self._no_picture = True
        gc.collect()  # a figure's parts know each other: its megabytes would wait for a collection that comes rarely

    def finish(self, e2e_train_time: float, metrics: Metrics, peak_memory: int) -> None:
        """The line of the whole run, the results, the last picture, and where all of it lies."""
        self._console.end()
        seconds = metrics.train_time
        self._record(
            (),
            {
                "e2e_train_time": e2e_train_time,
                "raw_train_time": seconds,
                "training_sequences_per_second": metrics.sequences / seconds if seconds else 0.0,
                "final_loss": self._training.get("average_loss"),
                **self._objective.final(self._evaluation),
                "peak_memory_bytes": peak_memory,
            },
        )
        if self._settings.do_train:
            self._add_results(metrics, peak_memory)
        if self._training or self._evaluation:
            self.draw()
        self.say(self._where_all_is())

    def _add_results(self, metrics: Metrics, peak_memory: int) -> None:
        """What the phase came to, as far as it has come."""
        numbers = {
            **self._state.in_phase(),
            "max_steps": self._settings.max_steps,
            **asdict(self._facts),
            "train_loss": self._training.get("average_loss"),
            **self._evaluation,
            **metrics.throughput(),
            "peak_memory_bytes": peak_memory,
            **self._versions,
        }
        with self._writing(self._results):
            results.add_phase(self._results, self._state.phase, numbers)

    def _where_all_is(self) -> str:
        """The line that ends a run: what lies where."""
        folder, model = self._settings.results_dir, self._settings.output_dir / f"ckpt_{self._state.global_step}"
        files = {
            "the model": model,
            "picture": folder / PICTURE,
            "log": self._settings.json_summary,
            "results": self._results,
        }
        there = {
            what: file.relative_to(folder) if file.is_relative_to(folder) else file
            for what, file in files.items()
            if file.exists()
        }
        return f"in {folder}: {', '.join(f'{what} ({file})' for what, file in there.items())}"

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    @property
    def _results(self) -> Path:
        return self._settings.results_dir / results.NAME

    @property
    def _place(self) -> list[int]:
        return [self._state.rows_read // self._rows_per_epoch, self._state.global_step]

    def _record(self, place: str | Sequence[int], numbers: Mapping[str, object]) -> None:
        """A line of the log; what belongs to a step goes to TensorBoard, too."""
        with self._writing(self._settings.json_summary):
            if not self._log.log(place, numbers):
                self.say(f"{self._settings.json_summary}: was deleted, and begins anew")
            if self._board is not None and place == self._place:
                for name, value in numbers.items():
                    self._board.add_scalar(name, value, self._state.global_step)

    @contextlib.contextmanager
    def _writing(self, file: Path) -> Iterator[None]:
        """Reports that cannot be written, most likely because the disk is full, end the run in one line."""
        try:
            yield
        except OSError as error:
            raise BadRequest(
                f"{file}: cannot be written ({error.strerror or error}): make room, then "
                "--resume_from_checkpoint; the checkpoints are whole"
            ) from error


def open_tensorboard(folder: Path) -> Any:
    """A SummaryWriter; ValueError where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard: the package tensorboard is not installed: pip install tensorboard") from error
    return SummaryWriter(str(folder))


def draw_training(history: History, picture: Path, title: str, objective: Objective) -> None:
    """Losses, learning rate and throughput over global steps, phases marked; replaced at once."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's is a module that need not be here
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    training, held_out = _lines(history.training), _lines(history.held_out)
    loss, *evaluated = objective.panels
    panels = [
        (loss, training, "-"),
        *((panel, held_out, "o-") for panel in evaluated),
        *((panel, training, "-") for panel in RUN_PANELS),
    ]
    panels = [panel for panel in panels if panel[1]]
    figure = Figure(figsize=(9, 1 + 2.2 * max(1, len(panels))))
    figure.subplots_adjust(left=0.1, right=0.97, top=0.95, bottom=0.07, hspace=0.12)
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (panel, lines, style) in zip(axes, panels):
        for phase, points in lines.items():
            steps = [step for step, _ in points]
            colour = COLOURS[(phase - 1) % len(COLOURS)]
            values = [numbers.get(panel.number, LACKING) for _, numbers in points]
            axis.plot(steps, values, style, color=colour, markersize=3, label=f"phase {phase}")
            if panel.baseline:
                values = [numbers.get(panel.baseline, LACKING) for _, numbers in points]
                axis.plot(steps, values, ":", color=colour, label=f"{panel.baseline_label}, phase {phase}")
        for end in [points[-1][0] for points in training.values()][:-1]:
            axis.axvline(end, color="#999999", linestyle=":", linewidth=1)
        axis.set_ylabel(panel.label)
        axis.grid(alpha=0.25)
        if panel is loss or panel.baseline:
            axis.legend(frameon=False, fontsize=8)
    axes[-1].set_ylim(bottom=0)
    axes[-1].set_xlabel("global step")
    axes[0].set_title(title, loc="left", fontsize=10)
    partial = picture.with_name(f".{picture.name}")  # one name: a killed run leaves one file, which the next replaces
    figure.savefig(partial, format="png", dpi=100)
    partial.replace(picture)


def _lines(curves: dict[int, Curve]) -> dict[int, list[tuple[int, dict[str, float]]]]:
    """Points by phase, as they are now: training goes on while a picture is drawn."""
    return {phase: list(curve.points) for phase, curve in sorted(curves.items()) if curve.points}
