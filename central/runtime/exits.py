"""How a training script ends: its exit statuses, the errors that stand for them, and one wrapper around `main`.

Standard library only: an entry script imports this before torch.
"""

import errno
import os
import re
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable

from central import streams
from central.errors import BAD_REQUEST, DIVERGED, DONE, PREEMPTED, BadRequest, first_line
from central.runtime import rank as ranks
from central.runtime.rank import STOP_SIGNALS

# Rank 0 usually finds the same problem, or a rank is gone, whose exit takes the others down: seconds before they speak.
OTHER_RANKS_WAIT = 2.0


class Diverged(RuntimeError):
    """Training produced a non-finite update, which was not saved."""


class Preempted(RuntimeError):
    """Training was asked to stop, has saved, and all ranks have met at a barrier."""


# What the machine refuses, and its remedy: the request cannot run here, and a traceback would say no more.
_REFUSALS = {
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "the quota of the disk is used up: make room",
    errno.EFBIG: "larger than a file may be here: raise the limit (ulimit -f), or choose another disk",
    errno.EROFS: "this disk can only be read: choose another folder",
    errno.EACCES: "no permission: change its owner or mode, or name another path",
    errno.EIO: "the disk reports an error: copy the file from elsewhere, or choose another disk",
    errno.ELOOP: "links that lead in a circle: name what they should lead to",
    errno.ENAMETOOLONG: "longer than a name may be: give a shorter one",
    errno.ENOMEM: "out of memory: take smaller batches or fewer ranks, or raise the limit on memory",
}
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES)
# How a loader, torch on a CPU and torch on a card say that there is no memory.
_NO_MEMORY = ("failed to map segment", "Cannot allocate memory", "can't allocate memory", "out of memory")
# How gloo says that another rank is gone, which has said itself why.
_PEER_IS_GONE = re.compile(r"gloo.*(Connection closed by peer|Connection reset by peer|Broken pipe)")

# How safetensors and HDF5 tell the number, and how torch's writer tells that it could not go on, without one.
_NUMBER_IN_WORDS = re.compile(r"\(os error (\d+)\)|\berrno = (\d+),")
_CUT_SHORT = ("unexpected pos", "failed writing file", "iostream error")


def errno_of(error: BaseException) -> int | None:
    """The number of the system's refusal behind an error, which libraries hide in their own words or errors."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if found := _NUMBER_IN_WORDS.search(str(error)):
        return int(found[1] or found[2])
    if not any(words in str(error) for words in _CUT_SHORT):
        return None
    if isinstance(error.__context__, OSError):
        return error.__context__.errno
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return errno.ENOSPC if limit == resource.RLIM_INFINITY else errno.EFBIG


def refusal(error: BaseException) -> str:
    """The one line for an error by which the machine refuses, "" for any other error."""
    if isinstance(error, ImportError | RuntimeError | OSError) and any(words in str(error) for words in _NO_MEMORY):
        return f"{str(error).partition(chr(10))[0]}: {_REFUSALS[errno.ENOMEM]}"
    if isinstance(error, MemoryError):
        return _REFUSALS[errno.ENOMEM]
    number = None if isinstance(error, BadRequest | Diverged | Preempted) else errno_of(error)
    if number in _REFUSALS:
        return ": ".join(map(str, filter(None, (getattr(error, "filename", None), _REFUSALS[number]))))
    return ""


def is_lost(error: BaseException) -> bool:
    """Whether an error says no more than that another rank has ended."""
    return isinstance(error, RuntimeError) and bool(_PEER_IS_GONE.search(str(error)))


def _status_of(error: BaseException) -> int:
    if refusal(error):
        return BAD_REQUEST
    for kind, status in ((BadRequest, BAD_REQUEST), (Diverged, DIVERGED), (Preempted, PREEMPTED)):
        if isinstance(error, kind):
            return status
    return 1


def _describe(error: BaseException, status: int) -> str:
    """Text for standard error: a line per problem, or the traceback of an error that is ours."""
    if refusal(error):
        return f"error: {refusal(error)}"
    if is_lost(error):
        return f"lost the connection to another rank, which says why: {first_line(error)}"
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
    streams.protect()
    try:
        here = ranks.from_environment()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_REQUEST
    lost = False
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except SystemExit as stop:  # argparse has said what was wrong
        status = stop.code if isinstance(stop.code, int) else (1 if stop.code else 0)
        text = stop.code if isinstance(stop.code, str) else ""
    except KeyboardInterrupt:
        status, text = 130, "interrupted"
    except Exception as error:
        status = _status_of(error)
        text, lost = _describe(error, status), is_lost(error)
    if status == PREEMPTED:  # asked once more, a process that ends would be killed by it
        for number in filter(ranks.is_heard, STOP_SIGNALS):
            signal.signal(number, signal.SIG_IGN)
    if here.world_size > 1 and status != DONE:
        _leave_at_once(here, status, text, lost)
    if text:
        print(text, file=sys.stderr, flush=True)
    return status


def report_failed_imports() -> None:
    """From now on what fails before `run`, at the imports of an entry script, ends as it would within it."""
    sys.excepthook = _uncaught


def _uncaught(_kind: type[BaseException], error: BaseException, _trace: object) -> None:
    status, text = (130, "interrupted") if isinstance(error, KeyboardInterrupt) else (_status_of(error), "")
    try:
        _leave_at_once(ranks.from_environment(), status, text or _describe(error, status))
    finally:
        os._exit(status)


def _leave_at_once(here: ranks.Rank, status: int, text: str, lost: bool = False) -> None:
    """Who most likely echoes what another rank says waits a little: its end takes this one down."""
    if lost or not here.is_main and status == BAD_REQUEST:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(OTHER_RANKS_WAIT)
    sys.stdout.flush()
    line = f"rank {here.rank} on {socket.gethostname()}: exit status {status}" if here.world_size > 1 else ""
    print(*filter(None, (text, line)), sep="\n", file=sys.stderr, flush=True)
    os._exit(status)
