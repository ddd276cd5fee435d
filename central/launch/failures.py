"""Which rank failed first, from what ranks, mpirun and torchrun write to standard error."""

import re
from dataclasses import dataclass

PREEMPTED = 85
# How ranks end because another one did: an error in the exchange, a request to stop, SIGTERM.
CONSEQUENCES = (1, PREEMPTED, 128 + 15)

_RANK_ENDED = re.compile(r"rank (?P<rank>\d+) on (?P<host>\S+): exit status (?P<status>\d+)")
_MPIRUN_KILLED = re.compile(r"process rank (?P<rank>\d+) with PID \d+ on node (?P<host>\S+) exited on signal (?P<signal>\d+)")
_TORCHRUN_FAILED = re.compile(r"failed \(exitcode: (?P<status>-?\d+)\) local_rank: (?P<rank>\d+)")
_TORCHRUN_CLOSES = re.compile(r"Sending process \d+ closing signal")


@dataclass(frozen=True)
class Failure:
    """A rank that ended with a status other than 0; a signal N counts as 128 + N."""

    rank: int
    host: str
    status: int

    def __str__(self):
        killed = f" (killed by signal {self.status - 128})" if self.status > 128 else ""
        return f"rank {self.rank} on {self.host}: exit status {self.status}{killed}"


class Listener:
    """Fed with standard error as it comes, remembers the failures it tells of."""

    def __init__(self, hostname):
        self.hostname = hostname
        self.failures = []
        self.rank_is_gone = False
        self._unfinished = ""

    def feed(self, chunk):
        text = chunk.decode(errors="replace")
        *lines, self._unfinished = re.split(r"[\r\n]", self._unfinished[-4096:] + text)
        for line in lines:
            failure = read_line(line, self.hostname)
            if failure:
                self.failures.append(failure)
            if failure or _TORCHRUN_CLOSES.search(line):
                self.rank_is_gone = True


def read_line(line, hostname) -> Failure | None:
    """The failure a line tells of. `hostname` is this host: torchrun does not say it."""
    if found := _RANK_ENDED.search(line):
        return Failure(int(found["rank"]), found["host"], int(found["status"]))
    if found := _MPIRUN_KILLED.search(line):
        return Failure(int(found["rank"]), found["host"], 128 + int(found["signal"]))
    if found := _TORCHRUN_FAILED.search(line):
        status = int(found["status"])
        return Failure(int(found["rank"]), hostname, status if status > 0 else 128 - status)
    return None


def first_failure(failures, stop_requested) -> Failure | None:
    """The failure that caused the others: the first one that is no consequence, else the first.

    A killed rank says nothing itself, and mpirun names it only after its peers have complained.
    """
    if not stop_requested:
        for failure in failures:
            if failure.status not in CONSEQUENCES:
                return failure
    return failures[0] if failures else None
