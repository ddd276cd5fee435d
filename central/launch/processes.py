"""The one place that starts programs: to ask them something, or to run a command with its output live, and to end it
in an order that lets ranks save.

mpirun kills ranks faster than they can save when it gets SIGTERM, but hands SIGUSR1 on to them, on every host.
torchrun does not, so its ranks get it from us. Ranks take SIGUSR1 as: save, meet, exit 85.

systemd, SLURM and others send their signal to all processes at once. So mpirun and torchrun are started with those
signals blocked, and their ranks get them like ours. To end mpirun we kill its ranks, which it takes as its own end.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from central.files import leads_to
from central.launch.commands import Command
from central.streams import write_all

TYPE_CHECKING = False  # these are slow to import
if TYPE_CHECKING:
    import subprocess
    import threading
    from typing import Any

Hurry = Callable[[], int]  # how often more speed was asked for
Ended = Callable[[], bool]
Hearer = Callable[[bytes], None]

LAST_SECONDS = 5
ASKED_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # of a whole run, by others than us


def members(session: int) -> list[int]:
    """Processes of a session that still run."""
    return [pid for pid, state, _parent, in_session in _processes() if in_session == session and state not in "ZX"]


def end(session: int, by_torchrun: bool, grace: float, hurry: Hurry = lambda: 0, ended: Ended = lambda: False) -> None:
    """End a session, led by the process of its number: SIGUSR1 and `grace` seconds to save, then terminate it.

    `hurry()` counts calls for more speed: each ends a wait. `ended()` tells of an end that /proc does not show yet.
    """
    calls = hurry()
    ranks = [pid for pid, _state, parent, _session in _processes() if parent == session]
    for pid in ranks if by_torchrun else [session]:
        _send(pid, signal.SIGUSR1)
    if not _gone(session, grace, lambda: ended() or hurry() > calls):
        terminate(session, hurry, ended)


def terminate(session: int, hurry: Hurry = lambda: 0, ended: Ended = lambda: False) -> None:
    """SIGKILL to the ranks of a session, a few seconds for mpirun to take it in, then SIGKILL to all of it."""
    calls = hurry()
    children = [pid for pid, _state, parent, _session in _processes() if parent == session]
    if not ended():
        for pid in filter(_is_rank, children):
            _send(pid, signal.SIGKILL)
        _gone(session, LAST_SECONDS, lambda: ended() or hurry() > calls)
    for pid in {*members(session), *children}:  # torchrun's ranks have sessions of their own
        _send(pid, signal.SIGKILL)


def end_stragglers(session: int, patience: float) -> bool:
    """Wait `patience` seconds for what a session left behind, then kill it; whether there was any for long."""
    if _gone(session, min(patience, LAST_SECONDS), lambda: False):
        return False
    if not _gone(session, patience - LAST_SECONDS, lambda: False):
        for pid in members(session):
            _send(pid, signal.SIGKILL)
    return True


def _gone(session: int, seconds: float, give_up: Ended) -> bool:
    """Whether the session ended within these seconds."""
    deadline = time.monotonic() + seconds
    while members(session):
        if time.monotonic() >= deadline or give_up():
            return False
        if (session, "T") in ((pid, state) for pid, state, _parent, _session in _processes()):
            _send(session, signal.SIGCONT)  # suspended it would hear nothing, and save nothing
        time.sleep(0.1)
    return True


def _is_rank(pid: int) -> bool:
    """Whether a child of mpirun is no ssh or srun to another host; torchrun has ranks only."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return False
    return any(variable.startswith((b"OMPI_COMM_WORLD_RANK=", b"RANK=")) for variable in variables)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _processes() -> Iterator[tuple[int, str, int, int]]:
    """(pid, state, parent, session) of every process; one that ends meanwhile is left out."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                # The program's name, in brackets, may hold spaces: fields count from behind it.
                state, parent, _group, session = file.read().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        yield int(name), state, int(parent), int(session)


@dataclass(frozen=True)
class Captured:
    """What a program that was asked something said. Status 127: there is no such program; 124: no answer in time."""

    status: int
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """The last line on standard error."""
        return (self.stderr.strip().splitlines() or ["no answer"])[-1]


def capture(argv: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float = 10) -> Captured:
    """Ask a program something and wait for the answer, `timeout` seconds at most."""
    return capture_all([argv], env=env, timeout=timeout)[0]


def capture_all(
    argvs: Iterable[Sequence[str]], *, env: Mapping[str, str] | None = None, timeout: float = 10
) -> list[Captured]:
    """Ask several programs at once; the answers in their order."""
    started = [_ask(argv, env) for argv in argvs]
    deadline = time.monotonic() + timeout
    return [_answer(process, deadline) for process in started]


def _ask(argv: Sequence[str], env: Mapping[str, str] | None) -> "subprocess.Popen[str] | Captured":
    """The started process, or why it did not start."""
    import subprocess

    nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
    environ = {**os.environ, **(env or {})}
    try:
        return subprocess.Popen(argv, env=environ, stdin=nothing, stdout=pipe, stderr=pipe, text=True, errors="replace")
    except OSError as error:
        return Captured(127, "", str(error))


def _answer(process: "subprocess.Popen[str] | Captured", deadline: float) -> Captured:
    import subprocess

    if isinstance(process, Captured):
        return process
    try:
        stdout, stderr = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Captured(124, "", "no answer in time")
    return Captured(process.returncode, stdout, stderr)


class Log:
    """A file that gets the output of a run. It is made again where it was deleted; where it cannot be, the run goes on.

    OSError where it cannot be opened at first.
    """

    def __init__(self, path: str):
        self._path = path
        self._descriptor = _open_log(path)
        self._failed = False

    def write(self, chunk: bytes) -> None:
        try:
            if not leads_to(self._path, os.fstat(self._descriptor)):
                os.makedirs(os.path.dirname(self._path), exist_ok=True)
                os.dup2(made := _open_log(self._path), self._descriptor)
                os.close(made)
            self._failed = not write_all(self._descriptor, chunk) or self._failed
        except OSError:
            self._failed = True

    def close(self) -> bool:
        """Whether all that was written is there."""
        os.close(self._descriptor)
        return not self._failed


def _open_log(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)


def child_environment(environ: Mapping[str, str], command: Command) -> dict[str, str]:
    """The environment a command runs in."""
    return {**{name: value for name, value in environ.items() if name not in command.unset}, **dict(command.env)}


@contextmanager
def _blocked(numbers: Iterable[int]) -> Iterator[None]:
    """What is started meanwhile begins with these signals blocked, and we get them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Running:
    """A command that runs in a session of its own. Should the launcher be killed, a guard ends that session."""

    def __init__(self, command: Command, *, log: Log | None, hear: Hearer, grace: float):
        """`hear` gets what the ranks write to standard error; `log` all output."""
        import subprocess

        self.by_torchrun = "torch.distributed.run" in command.argv
        several_ranks = self.by_torchrun or command.argv[0] == "mpirun"
        self.program = "torchrun" if self.by_torchrun else "mpirun" if several_ranks else "the training"
        # One process alone keeps our terminal, and with it its progress bar. mpirun would end of one that goes away.
        heard = bool(log) or several_ranks or not sys.stderr.isatty()
        with _blocked(ASKED_TO_STOP if several_ranks else ()):
            self._process = subprocess.Popen(
                command.argv,
                env=child_environment(os.environ, command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if heard else None,
                stderr=subprocess.PIPE if heard else None,
                start_new_session=True,
            )
        self._session = self._process.pid
        self._guard = _start_guard(self._session, self.by_torchrun, grace)
        hearers = [hear, *([log.write] if log else [])]
        self._threads = [
            _pass_on(self._process.stdout, sys.stdout.fileno(), [log.write] if log else []),
            _pass_on(self._process.stderr, sys.stderr.fileno(), hearers),
        ]

    def status(self) -> int | None:
        """None while it runs; then its status, 128 + N where signal N killed it."""
        status = self._process.poll()
        return 128 - status if status is not None and status < 0 else status

    def end(self, grace: float, hurry: Hurry) -> None:
        """Let the ranks save for `grace` seconds, then end what still runs. `hurry()` counts calls for more speed."""
        end(self._session, self.by_torchrun, grace, hurry, self._has_ended)

    def terminate(self) -> None:
        """End it without waiting for ranks to save: they could not meet any more."""
        terminate(self._session, ended=self._has_ended)

    def _has_ended(self) -> bool:
        return self._process.poll() is not None

    def close(self, patience: float) -> bool:
        """After the end: `patience` seconds for stragglers, then leave nothing behind. Whether there were any."""
        stragglers = end_stragglers(self._session, patience)
        self._process.wait()
        for thread in filter(None, self._threads):
            thread.join(timeout=2)
        os.write(self._guard, b"done")
        os.close(self._guard)
        return stragglers


def _pass_on(source: "Any", target: int, hearers: Sequence[Hearer]) -> "threading.Thread | None":
    """A thread that hands bytes on as they come; None where there is nothing to hand on."""
    import threading

    def work() -> None:
        target_is_there = True
        while chunk := source.read1(65536):
            for hear in hearers:
                hear(chunk)
            # Where the terminal went away, the training goes on.
            target_is_there = target_is_there and write_all(target, chunk)

    if source is None:
        return None
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _start_guard(session: int, by_torchrun: bool, grace: float) -> int:
    """A process that ends a session when we die without a word; returns the pipe end to write that word to."""
    read_end, write_end = os.pipe()
    guard = os.fork()
    if guard:
        os.close(read_end)
        return write_end
    try:
        os.setsid()
        os.close(write_end)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nowhere, standard)
        if not os.read(read_end, 4):
            end(session, by_torchrun, grace)
    finally:
        os._exit(0)
