"""How far a long step is: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from typing import Any

PLAIN_SECONDS = 10.0
BYTES = "B"


class Progress:
    """Counts `done` of `total` units and tells speed and time left; `total` 0 means unknown.

    `before` units were done by an earlier run, in no time of this one.
    """

    def __init__(self, title: str, total: float, unit: str, before: float = 0):
        unit = unit if unit == BYTES else f" {unit}"
        self.settings: dict[str, Any] = {
            "total": total or None,
            "unit": unit,
            "unit_scale": unit == BYTES,
            "initial": before,
        }
        self.title, self.done = title, before
        self.bar = None
        if sys.stderr.isatty():
            self.bar = _tqdm()(desc=title, file=sys.stderr, dynamic_ncols=True, **self.settings)
        self.start = self.last = time.monotonic()

    def update(self, done: float) -> None:
        """Say that `done` units in all are finished."""
        self.done = done
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
        elif time.monotonic() - self.last >= PLAIN_SECONDS:
            self.last = time.monotonic()
            self._print_line()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        else:
            self._print_line()

    def _print_line(self) -> None:
        elapsed = time.monotonic() - self.start
        line = _tqdm().format_meter(self.done, elapsed=elapsed, prefix=self.title, ncols=0, **self.settings)
        print(line, file=sys.stderr, flush=True)


def _tqdm() -> Any:
    from tqdm import tqdm  # workers show nothing, and it is a tenth of what a start costs

    return tqdm
