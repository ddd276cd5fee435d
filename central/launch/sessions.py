"""The processes of a session: who is in it, and how to end it in an order that lets ranks save.

mpirun kills ranks faster than they can save when it gets SIGTERM, but hands SIGUSR1 on to them, on every host.
torchrun does not, so its ranks get it from us. Ranks take SIGUSR1 as: save, meet, exit 85.
"""

import os
import signal
import time
from contextlib import suppress

LAST_SECONDS = 5


def members(session) -> list[int]:
    """Processes of a session that still run."""
    return [pid for pid, state, _parent, in_session in _processes() if in_session == session and state not in "ZX"]


def end(session, by_torchrun, grace, hurry=lambda: 0, ended=lambda: False):
    """End a session, led by the process of its number: SIGUSR1 and `grace` seconds to save, then terminate it.

    `hurry()` counts calls for more speed: each ends a wait. `ended()` tells of an end that /proc does not show yet.
    """
    calls = hurry()
    ranks = [pid for pid, _state, parent, _session in _processes() if parent == session]
    for pid in ranks if by_torchrun else [session]:
        _send(pid, signal.SIGUSR1)
    if not _gone(session, grace, lambda: ended() or hurry() > calls):
        terminate(session, hurry, ended)


def terminate(session, hurry=lambda: 0, ended=lambda: False):
    """SIGTERM to the leader of a session, a few seconds, then SIGKILL to all of it."""
    calls = hurry()
    ranks = [pid for pid, _state, parent, _session in _processes() if parent == session]  # torchrun's have own sessions
    if not ended():
        _send(session, signal.SIGTERM)
        _gone(session, LAST_SECONDS, lambda: ended() or hurry() > calls)
    for pid in {*members(session), *ranks}:
        _send(pid, signal.SIGKILL)


def end_stragglers(session, patience) -> bool:
    """Wait `patience` seconds for what a session left behind, then kill it; whether there was any for long."""
    if _gone(session, min(patience, LAST_SECONDS), lambda: False):
        return False
    if not _gone(session, patience - LAST_SECONDS, lambda: False):
        for pid in members(session):
            _send(pid, signal.SIGKILL)
    return True


def _gone(session, seconds, give_up) -> bool:
    """Whether the session ended within these seconds."""
    deadline = time.monotonic() + seconds
    while members(session):
        if time.monotonic() >= deadline or give_up():
            return False
        time.sleep(0.1)
    return True


def _send(pid, number):
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _processes():
    """(pid, state, parent, session) of every process; one that ends meanwhile is left out."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                # The program's name, in brackets, may hold spaces: fields count from behind it.
                state, parent, _group, session = file.read().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        yield int(name), state, int(parent), int(session)
