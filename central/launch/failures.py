"""Which rank failed first, from what ranks, mpirun and torchrun write to standard error."""

import re

from central.launch.problems import PREEMPTED
from central.launch.values import Value

# How ranks end because another one did: an error in the exchange, a request to stop, SIGTERM.
CONSEQUENCES = (1, PREEMPTED, 128 + 15)

# mpirun breaks its lines at some width, so these are searched in text whose white space is single blanks.
_FAILURES = (
    re.compile(r"\brank (?P<rank>\d+) on (?P<host>\S+): exit status (?P<status>\d+)"),
    re.compile(r"process rank (?P<rank>\d+) with PID \d+ on node (?P<host>\S+) exited on signal (?P<signal>\d+)"),
    re.compile(r"Process name: \[\S+,(?P<rank>\d+)\] Exit code: (?P<status>\d+)"),
    re.compile(r"failed \(exitcode: (?P<status>-?\d+)\) local_rank: (?P<rank>\d+)"),
)
_TORCHRUN_CLOSES = re.compile(r"Sending process \d+ closing signal")
_DAEMON_LOST = re.compile(r"lost communication with a remote daemon.*?Remote daemon *: \S+ on node (\S+)")
_LONGEST_MESSAGE = 4096


class Failure(Value):
    """A rank that ended with a status other than 0; signal N counts as 128 + N. The host may be unknown: ""."""

    rank: int
    host: str
    status: int

    def __str__(self):
        host = f" on {self.host}" if self.host else ""
        killed = f" (killed by signal {self.status - 128})" if self.status > 128 else ""
        return f"rank {self.rank}{host}: exit status {self.status}{killed}"


class Listener:
    """Fed with standard error as it comes, remembers the failures it tells of, and a host that mpirun lost.

    Open MPI 5 ends with status 0 when its daemon on another host is gone.
    """

    def __init__(self):
        self.failures = []
        self.rank_is_gone = False
        self.lost_host = None
        self._text = ""
        self._unfinished = b""

    def feed(self, chunk):
        lines, newline, self._unfinished = (self._unfinished + chunk).rpartition(b"\n")
        if not newline:
            self._unfinished = self._unfinished[-_LONGEST_MESSAGE:]
            return
        text = " ".join((self._text + " " + lines.decode(errors="replace")).split())
        found = find_failures(text)
        self.failures += [failure for _end, failure in found]
        self.rank_is_gone = self.rank_is_gone or bool(found) or bool(_TORCHRUN_CLOSES.search(text))
        if lost := _DAEMON_LOST.search(text):
            self.lost_host = lost[1]
        self._text = text[found[-1][0] if found else 0 :][-_LONGEST_MESSAGE:]


def find_failures(text) -> list[tuple[int, Failure]]:
    """(end in the text, failure) of each failure told of, in the order of the text."""
    matches = [match for pattern in _FAILURES for match in pattern.finditer(text)]
    return [(match.end(), _failure(match.groupdict())) for match in sorted(matches, key=lambda match: match.end())]


def first_failure(failures, status, stop_requested) -> Failure | None:
    """The failure that caused the others: the first one that is no consequence, else the first.

    A killed rank says nothing itself, and mpirun names it only after its peers have complained. `status` is that of
    mpirun or torchrun: where it agrees with no rank, mpirun itself failed, and the ranks only followed.
    """
    if stop_requested:
        return failures[0] if failures else None
    causes = [failure for failure in failures if failure.status not in CONSEQUENCES]
    consequences = [failure for failure in failures if status in (1, failure.status)]
    return next(iter([*causes, *consequences]), None)


def _failure(found):
    status = 128 + int(found["signal"]) if "signal" in found else int(found["status"])
    return Failure(int(found["rank"]), found.get("host", ""), status if status >= 0 else 128 - status)
