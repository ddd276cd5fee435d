"""How a training script ends: its exit statuses, the errors that stand for them, and one wrapper around `main`.

Standard library only: an entry script imports this before torch.
"""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable

from central.errors import BAD_REQUEST, DIVERGED, DONE, PREEMPTED, BadRequest
from central.runtime import rank as ranks

# Rank 0 usually finds the same problem and its exit takes the others down; they wait this long (s) before they speak.
OTHER_RANKS_WAIT = 2.0


class Diverged(RuntimeError):
    """Training produced a non-finite update, which was not saved."""


class Preempted(RuntimeError):
    """Training was asked to stop, has saved, and all ranks have met at a barrier."""


def _status_of(error: BaseException) -> int:
    for kind, status in ((BadRequest, BAD_REQUEST), (Diverged, DIVERGED), (Preempted, PREEMPTED)):
        if isinstance(error, kind):
            return status
    return 1


def _describe(error: BaseException, status: int) -> str:
    """Text for standard error: a line per problem, or the traceback of an error that is ours."""
    if status == 1:
        return "".join(traceback.format_exception(error)).rstrip()
    if isinstance(error, BadRequest):
        return "\n".join(f"error: {problem}" for problem in error.problems)
    return str(error)


def run(main: Callable[[list[str]], int], argv: list[str] | None = None) -> int:
    """Call `main(argv)` and turn its errors into an exit status and lines on standard error.

    A rank of several ends with the line `rank 3 on hostb: exit status 2`, by which the launcher knows who failed
    first, and leaves at once: a collective that waits for ranks already gone must not keep it.
    """
    try:
        here = ranks.from_environment()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_REQUEST
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except SystemExit as stop:  # argparse has said what was wrong
        status = stop.code if isinstance(stop.code, int) else (1 if stop.code else 0)
        text = stop.code if isinstance(stop.code, str) else ""
    except KeyboardInterrupt:
        status, text = 130, "interrupted"
    except Exception as error:
        status = _status_of(error)
        text = _describe(error, status)
    if here.world_size > 1 and status != DONE:
        _leave_at_once(here, status, text)
    if text:
        print(text, file=sys.stderr, flush=True)
    return status


def _leave_at_once(here: ranks.Rank, status: int, text: str) -> None:
    if not here.is_main and status == BAD_REQUEST:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(OTHER_RANKS_WAIT)
    sys.stdout.flush()
    line = f"rank {here.rank} on {socket.gethostname()}: exit status {status}"
    print(*filter(None, (text, line)), sep="\n", file=sys.stderr, flush=True)
    os._exit(status)
