"""Running a plan: its commands in order, restarts, requests to stop, and whose status is the result."""

import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from central import resources
from central.errors import BAD_REQUEST, DIVERGED, DONE, HUNG, PREEMPTED
from central.launch.commands import Command, Plan
from central.launch.processes import Log, Running
from central.streams import say

LostHost = Callable[[], "str | None"]  # names a host of the run that does not answer any more

# How ranks end because another one did: an error in the exchange, a request to stop, SIGTERM.
CONSEQUENCES = (1, PREEMPTED, 128 + 15)

# mpirun breaks its lines at some width, so these are searched in text whose white space is single blanks.
_FAILURES = (
    re.compile(r"\brank (?P<rank>\d+) on (?P<host>\S+): exit status (?P<status>\d+)"),
    re.compile(r"process rank (?P<rank>\d+) with PID \d+ on node (?P<host>\S+) exited on signal (?P<signal>\d+)"),
    re.compile(r"Process name: \[\S+,(?P<rank>\d+)\] Exit code: (?P<status>\d+)"),
    re.compile(r"failed \(exitcode: (?P<status>-?\d+)\) local_rank: (?P<rank>\d+)"),
)
_SAVING = re.compile(r"\brank \d+ on \S+: asked to stop")
_TORCHRUN_CLOSES = re.compile(r"Sending process \d+ closing signal")
_DAEMON_LOST = re.compile(r"lost communication with a remote daemon.*?Remote daemon *: \S+ on node (\S+)")
_LONGEST_MESSAGE = 4096


@dataclass(frozen=True)
class Failure:
    """A rank that ended with a status other than 0; signal N counts as 128 + N. The host may be unknown: ""."""

    rank: int
    host: str
    status: int

    def __str__(self) -> str:
        host = f" on {self.host}" if self.host else ""
        killed = f" (killed by signal {self.status - 128})" if self.status > 128 else ""
        killed = " (it hung)" if self.status == HUNG else killed
        return f"rank {self.rank}{host}: exit status {self.status}{killed}"


class Listener:
    """Fed with standard error as it comes, remembers the failures it tells of, and a host that mpirun lost.

    Open MPI 5 ends with status 0 when its daemon on another host is gone.
    """

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self.rank_is_gone = False
        self.rank_hangs = False
        self.saving = False  # asked to stop, the ranks save
        self.lost_host: str | None = None
        self._text = ""
        self._unfinished = b""

    def feed(self, chunk: bytes) -> None:
        lines, newline, self._unfinished = (self._unfinished + chunk).rpartition(b"\n")
        if not newline:
            self._unfinished = self._unfinished[-_LONGEST_MESSAGE:]
            return
        text = " ".join((self._text + " " + lines.decode(errors="replace")).split())
        found = find_failures(text)
        self.failures += [failure for _end, failure in found]
        self.rank_is_gone = self.rank_is_gone or bool(found) or bool(_TORCHRUN_CLOSES.search(text))
        self.rank_hangs = self.rank_hangs or any(failure.status == HUNG for _end, failure in found)
        self.saving = self.saving or bool(_SAVING.search(text))
        if lost := _DAEMON_LOST.search(text):
            self.lost_host = lost[1]
        self._text = text[found[-1][0] if found else 0 :][-_LONGEST_MESSAGE:]


def find_failures(text: str) -> list[tuple[int, Failure]]:
    """(end in the text, failure) of each failure told of, in the order of the text."""
    matches = [match for pattern in _FAILURES for match in pattern.finditer(text)]
    return [(match.end(), _failure(match.groupdict())) for match in sorted(matches, key=lambda match: match.end())]


def first_failure(failures: Sequence[Failure], status: int, stop_requested: bool) -> Failure | None:
    """The failure that caused the others: the first one that is no consequence, else the first.

    A killed rank says nothing itself, and mpirun names it only after its peers have complained. `status` is that of
    mpirun or torchrun: where it agrees with no rank, mpirun itself failed, and the ranks only followed.
    """
    if stop_requested:
        return failures[0] if failures else None
    causes = [failure for failure in failures if failure.status not in CONSEQUENCES]
    consequences = [failure for failure in failures if status in (1, failure.status)]
    return next(iter([*causes, *consequences]), None)


def _failure(found: Mapping[str, str]) -> Failure:
    status = 128 + int(found["signal"]) if "signal" in found else int(found["status"])
    return Failure(int(found["rank"]), found.get("host", ""), status if status >= 0 else 128 - status)


GRACE = 60  # seconds for ranks to save once they are asked to stop
AFTER_A_DEAD_RANK = 15  # seconds the other ranks may take to notice
ONE_PRESS = 1.0  # second within which two signals may come of one press of Ctrl-C
AFTER_A_SECOND_SIGNAL = 15  # seconds to begin to save
STRAGGLERS = 30  # seconds a rank may outlive its mpirun
OUT_OF_MEMORY = (
    ": the memory limit of its control group was reached: take smaller batches or fewer ranks, or raise the limit"
)
LOST_HOST = 1  # status of a run whose host is gone


def run(
    plan: Plan,
    *,
    log_path: str | None = None,
    max_restarts: int = 0,
    grace: float = GRACE,
    lost_host: LostHost = lambda: None,
) -> int:
    """Run the commands of a plan; the first status that is not 0 is the plan's and, without a summary, its end.

    What one command is refused for, those behind it would be, too: that ends every plan.

    `lost_host()` names a host of the run that does not answer any more.
    """
    statuses: list[int] = []
    log = Log(log_path) if log_path else None
    with StopSignals() as stop:
        for command in plan.commands:
            statuses.append(_run_with_restarts(command, stop, log, max_restarts, grace, lost_host))
            if statuses[-1] == BAD_REQUEST or statuses[-1] != DONE and (stop.count or not plan.summary):
                break
        else:
            if plan.summary:
                failed = [command for command, status in zip(plan.commands, statuses) if status != DONE]
                words = [word for command in failed for word in command.if_failed]
                summary = replace(plan.summary, argv=(*plan.summary.argv, *words))
                statuses.append(_run_with_restarts(summary, stop, log, 0, grace, lost_host))
    if log and not log.close():
        say(f"{log_path}: not all of the output could be written there")
    return next((status for status in statuses if status != DONE), DONE)


class StopSignals:
    """Counts signals in place of dying of them. A SIGHUP that nohup set aside stays aside.

    Schedulers send SIGTERM twice, and wrappers hand on the Ctrl-C that a terminal has sent already: only a Ctrl-C some
    time after the signal before it is a call to hurry.
    """

    def __init__(self) -> None:
        self.count = 0
        self.last = 0
        self.hurries = 0
        self.repeated_at: float | None = None  # when a second signal came
        self._last_at = 0.0
        self._shell = os.getppid() if "SLURM_JOB_ID" in os.environ else None

    def __enter__(self) -> "StopSignals":
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        handlers = {number: signal.getsignal(number) for number in numbers}
        self._before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            # Another request to stop must not change the status of a run that has just stopped.
            signal.signal(number, signal.SIG_IGN if self.count else handler)

    def look_for_shell(self) -> None:
        """Count the end of the shell of a batch job as a request: what SLURM sends to it alone, ends it alone."""
        if self._shell and os.getppid() != self._shell:
            self._shell = None
            self._note(signal.SIGTERM, None)

    def _note(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        self.count += 1
        self.last = number
        if self.count > 1:
            self.repeated_at = self.repeated_at or now
            self.hurries += number == signal.SIGINT and now - self._last_at > ONE_PRESS
        self._last_at = now


def _run_with_restarts(
    command: Command, stop: StopSignals, log: Log | None, max_restarts: int, grace: float, lost_host: LostHost
) -> int:
    """Run a command; where it fails for no reason that would stay, run it again from its checkpoint."""
    restart = 0
    while True:
        status = _run_once(command, stop, log, grace, lost_host)
        final = status in (DONE, BAD_REQUEST, DIVERGED, PREEMPTED) or lost_host()
        if final or stop.count or restart == max_restarts:
            return status
        restart += 1
        say(f"{command.name}: restart {restart} of {max_restarts}, from the newest checkpoint")
        command = replace(command, argv=command.again)


def _run_once(command: Command, stop: StopSignals, log: Log | None, grace: float, lost_host: LostHost) -> int:
    """Run a command to its end. The status is that of the rank that failed first."""
    if stop.count:
        return 128 + stop.last
    listener, killed_before = Listener(), resources.killed_for_memory()
    running = Running(command, log=log, hear=listener.feed, grace=grace)
    try:
        status = _wait(running, listener, stop, grace, lost_host)
    finally:
        stragglers = running.close(STRAGGLERS)
    if lost := lost_host() or listener.lost_host:
        say(f"{command.name}: host {lost} does not answer any more")
        return LOST_HOST
    if status == DONE and stragglers:
        say(f"{command.name}: ended as if done, but its ranks still ran")
        return LOST_HOST
    if status == DONE:
        return DONE
    failure = first_failure(listener.failures, status, stop.count > 0)
    status = failure.status if failure else status
    if stop.count and status == 128 + signal.SIGUSR1:
        say(f"{command.name}: stopped before training began; there was nothing to save")
        return 128 + stop.last
    unsaved = "stopped without saving: " if stop.count and status != PREEMPTED else ""
    end = "stopped after saving" if status == PREEMPTED else failure or _own_end(running.program, status)
    within = status == 128 + signal.SIGKILL and resources.killed_for_memory() > killed_before
    say(f"{command.name}: {unsaved}{end}{OUT_OF_MEMORY if within else ''}")
    return status


def _own_end(program: str, status: int) -> str:
    """How a command ended that no rank explains: mpirun and torchrun may be killed, too."""
    killed = f" ({program} was killed by signal {status - 128})" if status > 128 else ""
    return f"exit status {status}{killed}"


def _hurries(stop: StopSignals, listener: Listener) -> int:
    """Reasons to wait for the ranks no longer. A second SIGTERM is one where they do not say that they save."""
    repeated = stop.repeated_at is not None and time.monotonic() - stop.repeated_at > AFTER_A_SECOND_SIGNAL
    return stop.hurries + (repeated and not listener.saving) + listener.rank_hangs


def _wait(running: Running, listener: Listener, stop: StopSignals, grace: float, lost_host: LostHost) -> int:
    """Wait for the end. Asked to stop, let ranks save; when a rank or a host is gone, end the others soon."""
    gone_since: float | None = None
    told = False
    while (status := running.status()) is None:
        stop.look_for_shell()
        if stop.count:
            if not told:  # a process whose threads end after it comes here again
                say(f"stopping: ranks have {grace} s to save; a second Ctrl-C cuts that short")
            told = True
            running.end(grace, lambda: _hurries(stop, listener))
            continue
        if listener.rank_is_gone:
            gone_since = gone_since or time.monotonic()
        if lost_host() or listener.rank_hangs or gone_since and time.monotonic() - gone_since > AFTER_A_DEAD_RANK:
            running.terminate()
        time.sleep(0.1)
    return status
