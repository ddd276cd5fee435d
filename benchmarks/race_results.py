"""What came of a race: figures of each side over its seeds, their table and picture.

A run is a dictionary: `points`, each with `step`, `seconds` of processor time and held-out `loss`; `pace`, seconds a
step; `learning_rate` and `data_type`.
"""

import statistics
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#1f6f8b", "#c8553d")


def summary(runs: list[dict], others: list[dict], batch_size: int) -> dict:
    """What the seeds of a side came to. `reaches_other`: minutes to the mean final loss of the other side, None where a
    seed does not get there."""
    target = statistics.fmean(final_loss(run) for run in others)
    return {
        "losses": [final_loss(run) for run in runs],
        "minutes": [run["points"][-1]["seconds"] / 60 for run in runs],
        "sequences_per_second": [batch_size / run["pace"] for run in runs],
        "reaches_other": [minutes_to(target, *curve(run)) for run in runs],
        "learning_rate": runs[0]["learning_rate"],
        "data_type": runs[0]["data_type"],
    }


def final_loss(run: dict) -> float:
    return run["points"][-1]["loss"]


def curve(run: dict) -> tuple[np.ndarray, np.ndarray]:
    """Minutes of processor time, and held-out losses."""
    points = run["points"]
    return np.array([point["seconds"] / 60 for point in points]), np.array([point["loss"] for point in points])


def minutes_to(target: float, minutes: np.ndarray, losses: np.ndarray) -> float | None:
    """When a curve first comes down to a loss, on the line that joins two points; None: never."""
    below = np.flatnonzero(losses <= target)
    if not len(below):
        return None
    ends = [max(0, below[0] - 1), below[0]]
    return float(np.interp(-target, -losses[ends], minutes[ends]))


def table(summaries: dict[str, dict], unigram: float) -> list[str]:
    """Means over the seeds, the lowest and highest in brackets."""
    rows = [f"{'':30}{'held-out loss':24}{'minutes':22}{'sequences/s':22}minutes to the other's loss"]
    for name, found in summaries.items():
        reached = found["reaches_other"]
        cells = [told(found["losses"], 3), told(found["minutes"], 1), told(found["sequences_per_second"], 1)]
        end = "not reached" if None in reached else told(reached, 1)
        rows.append(f"{name:30}{cells[0]:24}{cells[1]:22}{cells[2]:22}{end}")
        rows.append(f"    {found['data_type']}, learning rate {found['learning_rate']:g}, seeds: {len(reached)}")
    return [*rows, f"{'word frequencies alone':30}{unigram:.3f}"]


def told(values: list[float], digits: int) -> str:
    mean, low, high = statistics.fmean(values), min(values), max(values)
    return f"{mean:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def draw(seeds: dict[str, list[dict]], unigram: float, file: Path) -> None:
    """A mean line and a band from the lowest to the highest seed for each side, over minutes; 800 x 450 pixels."""
    figure, (axis,) = open_panels(8, 4.5, 1)
    for (name, runs), colour in zip(seeds.items(), COLOURS):
        curves = [curve(run) for run in runs]
        grid = np.linspace(max(m[0] for m, _ in curves), min(m[-1] for m, _ in curves), 200)
        losses = np.array([np.interp(grid, *each) for each in curves])  # seeds x 200
        final = statistics.fmean(final_loss(run) for run in runs)
        axis.fill_between(grid, losses.min(0), losses.max(0), color=colour, alpha=0.25, linewidth=0)
        axis.plot(grid, losses.mean(0), color=colour, linewidth=2, label=f"{name}: {final:.2f}")
    axis.axhline(unigram, color="#666666", linestyle="--", label=f"word frequencies alone: {unigram:.2f}")
    title = "The same text, model and time: what each has learned"
    label_panel(axis, "minutes of processor time, one core", "held-out masked-LM loss (nats)", title)
    figure.savefig(file, dpi=100)


def open_panels(width: float, height: float, panels: int) -> tuple[Figure, list[Axes]]:
    """A figure of some inches with panels side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def label_panel(axis: Axes, x: str, y: str, title: str) -> None:
    axis.set_xlim(left=0)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, loc="left", fontsize=12)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=11)
