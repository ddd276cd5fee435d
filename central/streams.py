"""Standard output and error that never end a run: what can be written to no more is dropped. Standard library only."""

import io
import os
import select
import sys
from contextlib import suppress

TYPE_CHECKING = False  # typing is slow to import
if TYPE_CHECKING:
    from typing import Any


def protect() -> None:
    """Make this process's standard streams safe to write to, whatever becomes of their other end.

    A descriptor that was closed at the start becomes /dev/null, so that no file opened later takes its number.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and not isinstance(getattr(stream, "raw_stream", None), _Raw):
            safe = _safe(stream, descriptor)
            setattr(sys, name, safe)
            setattr(sys, f"__{name}__", safe)


def write_all(descriptor: int, data: bytes) -> bool:
    """Write all of `data`; False where nobody can read it any more. Waits for a reader that is slow."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # another program that shares this terminal has made it non-blocking
            select.select([], [descriptor], [])
        except OSError:
            return False
    return True


def say(text: str) -> None:
    """A line of the launcher's, on standard error: standard output is the children's, and a dry run's commands'."""
    print(f"demo_bert: {text}", file=sys.stderr, flush=True)


class _Raw(io.FileIO):
    """A descriptor that takes everything and passes on what it can."""

    def write(self, data: "Any") -> int:
        write_all(self.fileno(), bytes(data))
        return len(data)


class _Text(io.TextIOWrapper):
    """Text over such a descriptor. Letters that the terminal lacks are written as escapes."""

    def __init__(self, raw: _Raw, encoding: str, line_buffering: bool):
        self.raw_stream = raw
        buffer = io.BufferedWriter(raw)
        super().__init__(buffer, encoding=encoding, errors="backslashreplace", line_buffering=line_buffering)


def _safe(stream: io.TextIOWrapper | None, descriptor: int) -> io.TextIOWrapper:
    encoding = stream.encoding if stream else "utf-8"
    if stream:
        with suppress(OSError, ValueError):
            stream.flush()
    raw = _Raw(descriptor, "w", closefd=False)
    line_buffering = descriptor == 2 or raw.isatty() or bool(os.environ.get("PYTHONUNBUFFERED"))
    return _Text(raw, encoding, line_buffering)
