"""How far a long step is: a line redrawn on a terminal, a plain line now and then elsewhere."""

import sys
import time

TERMINAL_SECONDS = 0.2
PLAIN_SECONDS = 10.0


class Progress:
    """Counts `done` of `total` units and tells speed and time left; `total` 0 means unknown.

    `before` units were done by an earlier run, in no time of this one.
    """

    def __init__(self, title: str, total: float, unit: str, scale: float = 1.0, before: float = 0.0):
        self.title, self.total, self.unit, self.scale = title, total, unit, scale
        self.done = self.before = before
        self.on_terminal = sys.stderr.isatty()
        self.start = self.last = time.monotonic()

    def update(self, done: float) -> None:
        """Say that `done` units in all are finished."""
        self.done = done
        now = time.monotonic()
        if now - self.last >= (TERMINAL_SECONDS if self.on_terminal else PLAIN_SECONDS):
            self.last = now
            self._show(end="\r" if self.on_terminal else "\n")

    def close(self) -> None:
        self._show(end="\n")

    def _show(self, end: str) -> None:
        seconds = time.monotonic() - self.start
        speed = (self.done - self.before) / seconds if seconds else 0.0
        text = f"{self.title}: {self.done / self.scale:.4g}"
        if self.total:
            text += f" of {self.total / self.scale:.4g}"
        text += f" {self.unit}, {speed / self.scale:.3g} {self.unit}/s"
        if self.total and speed and self.done < self.total:
            text += f", {clock((self.total - self.done) / speed)} left"
        else:
            text += f", {clock(seconds)}"
        print(text.ljust(79) if self.on_terminal else text, end=end, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
