"""Which of how many processes this one is, and the two signs by which it is told to stop.

Standard library only: an entry script imports this before torch.
"""

import importlib.util
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from types import FrameType

from central import meeting
from central.meeting import LAUNCHER, LOCAL_WORLD_SIZE, RUN_ID, WORLD_SIZE
from central.slurm import expand_nodelist

# How each launcher names rank, local rank, world size and local world size.
VARIABLES = {
    "torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    "openmpi": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    # Those of the step. SLURM_NTASKS is the job's, wherever there is a step's.
    "slurm": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS_PER_NODE"),
}
LAUNCHED_BY = {"mpirun": "openmpi", "torchrun": "torchrun", "alone": None}
# Set by MPICH, Intel MPI and other PMI launchers, which name ranks in ways of their own: mpi4py knows them.
OTHER_MPI = ("PMI_RANK", "PMIX_RANK", "MPI_LOCALRANKID")
# Set by whoever starts ranks as its own children: without it a shell that ends must not end its nohup job.
TORCHRUN_STARTED = "TORCHELASTIC_RUN_ID"
STARTED_BY_A_LAUNCHER = (LAUNCHER, "OMPI_COMM_WORLD_RANK", TORCHRUN_STARTED)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

PARENT_POLL = 1.0  # s
ORPHAN_GRACE = 20.0  # s between SIGTERM to itself and the end of a rank whose parent is gone


@dataclass(frozen=True)
class Rank:
    """One process of a run; `source` names the launcher that told."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    source: str = "alone"

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def from_environment(environ: Mapping[str, str] = os.environ) -> Rank:
    """This process's rank, as our launcher tells; in a script started by hand as torchrun, Open MPI, SLURM or MPI do.

    Raises ValueError for a world that is not the launcher's, for variables that contradict each other, and for a
    half-set or impossible group of them.
    """
    if LAUNCHER in environ:
        return _as_launched(environ)
    torchrun = VARIABLES["torchrun"]
    present = [name for name in torchrun[:3] if name in environ]
    others = [_told_by(source, environ) for source in ("openmpi", "slurm") if _is_told_by(source, environ)]
    if len(present) == 3:
        return _without_contradiction(_told_by("torchrun", environ), others, environ)
    a_world_of_one = environ.get("RANK") == "0" and environ.get("WORLD_SIZE") == "1"  # a Kubernetes job's single pod
    if ("RANK" in present or "LOCAL_RANK" in present) and not a_world_of_one:
        missing = ", ".join(name for name in torchrun[:3] if name not in environ)
        raise ValueError(f"{', '.join(present)} set without {missing}: set all three, or none to run alone")
    if others:
        return others[0]
    if any(name in environ for name in OTHER_MPI) and importlib.util.find_spec("mpi4py"):
        return _from_mpi4py()
    return Rank()


def _as_launched(environ: Mapping[str, str]) -> Rank:
    """The rank that mpirun or torchrun gave, which must be one of those that our launcher asked it for."""
    source = LAUNCHED_BY.get(environ[LAUNCHER])
    here = _told_by(source, environ) if source and _is_told_by(source, environ) else Rank()
    for name, found in ((WORLD_SIZE, here.world_size), (LOCAL_WORLD_SIZE, here.local_world_size)):
        if environ.get(name, str(found)) != str(found):
            where = "in all" if name == WORLD_SIZE else "on this host"
            raise ValueError(
                f"{environ[LAUNCHER]} started {found} ranks {where} and the launcher asked for {environ[name]}: "
                "look for settings of Open MPI, SLURM or torchrun on this host that place ranks otherwise"
            )
    return here


def _without_contradiction(here: Rank, others: list[Rank], environ: Mapping[str, str]) -> Rank:
    """RANK and its like, unless they are left over in the environment of what really started this process."""
    for other in others if TORCHRUN_STARTED not in environ else []:
        if other.world_size > 1 and (other.rank, other.world_size) != (here.rank, here.world_size):
            names = VARIABLES[other.source]
            raise ValueError(
                f"RANK={here.rank}, WORLD_SIZE={here.world_size} contradict {names[0]}={other.rank}, "
                f"{names[2]}={other.world_size}: unset RANK, LOCAL_RANK and WORLD_SIZE, which another launcher left"
            )
    return here


def run_id(environ: Mapping[str, str] = os.environ) -> str:
    """What is the same in all ranks of this run, and in no other run; empty where nobody tells."""
    if RUN_ID in environ:
        return environ[RUN_ID]
    if TORCHRUN_STARTED in environ:
        return environ[TORCHRUN_STARTED]
    if "OMPI_COMM_WORLD_RANK" in environ:
        return environ.get("PMIX_NAMESPACE", "")
    return ".".join(environ[name] for name in ("SLURM_JOB_ID", "SLURM_STEP_ID") if name in environ)


def _is_told_by(source: str, environ: Mapping[str, str]) -> bool:
    names = VARIABLES[source]
    if source == "slurm" and names[2] not in environ:
        # A batch script has SLURM_PROCID=0 and the job's task count, yet is one process: only `srun` makes steps.
        return "SLURM_JOB_ID" not in environ and all(name in environ for name in (*names[:2], "SLURM_NTASKS"))
    return all(name in environ for name in names[:3])


def _told_by(source: str, environ: Mapping[str, str]) -> Rank:
    names = list(VARIABLES[source])
    if source == "slurm" and names[2] not in environ:
        names[2] = "SLURM_NTASKS"
    return _checked(source, names, environ)


def _checked(source: str, names: list[str], environ: Mapping[str, str]) -> Rank:
    values = {}
    for name in names:
        text = environ.get(name, "")
        if text and not text.isdecimal():
            raise ValueError(f"{name}={text!r} is not a count: unset it or let {source} set it")
        values[name] = int(text) if text else None
    rank, local_rank, world_size, local_world_size = (values[name] for name in names)
    rank, local_rank, world_size = rank or 0, local_rank or 0, world_size or 1
    if source == "slurm":
        local_world_size = _slurm_tasks_here(environ) or local_world_size
    if max(rank, local_rank) >= world_size:
        raise ValueError(
            f"{names[0]}={rank}, {names[1]}={local_rank} and {names[2]}={world_size} do not fit together: "
            "rank and local rank are below the world size"
        )
    return Rank(rank, local_rank, world_size, local_world_size or world_size, source)


def _slurm_tasks_here(environ: Mapping[str, str]) -> int | None:
    """Tasks of this node: `srun -N 3 -n 10` names them for all nodes in turn, as `4,3(x2)`."""
    counts = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", "")).split(","):
        if match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part):
            counts += [int(match[1])] * int(match[2] or 1)
    node = environ.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None


def _from_mpi4py() -> Rank:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    return Rank(world.Get_rank(), node.Get_rank(), world.Get_size(), node.Get_size(), "mpi4py")


def export(rank: Rank, environ: MutableMapping[str, str] = os.environ) -> None:
    """Give a rank of several the names torch.distributed reads; where they meet stays as set, if that can be."""
    if rank.world_size == 1:
        return
    values = {
        "RANK": rank.rank,
        "LOCAL_RANK": rank.local_rank,
        "WORLD_SIZE": rank.world_size,
        "LOCAL_WORLD_SIZE": rank.local_world_size,
    }
    environ.update({name: str(value) for name, value in values.items()})
    if rank.local_world_size == rank.world_size and rank.source in ("openmpi", "slurm"):
        address = environ.get("MASTER_ADDR", "localhost")
        if address not in meeting.LOCAL_NAMES and not meeting.is_this_machine(address):
            environ["MASTER_ADDR"] = "localhost"  # left over: all ranks are on this server
    if "MASTER_ADDR" not in environ:
        environ["MASTER_ADDR"] = first_slurm_host(environ) if rank.source == "slurm" else "localhost"
    environ.setdefault("MASTER_PORT", "12345")


def first_slurm_host(environ: Mapping[str, str]) -> str:
    """First host of a SLURM node list: `node[07-09,12],other` -> `node07`. Raises ValueError for one that is none."""
    hosts = expand_nodelist(environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or "")
    return hosts[0] if hosts else "localhost"


class StopRequest:
    """Set by SIGTERM or SIGUSR1, alike, and read by the training loop between micro-steps.

    A rank of our launcher takes SIGINT and SIGHUP so, too: who sends them to all processes of a run means that run.
    The main thread may be in a call of minutes, in which Python runs no handler: a thread hears the signal, too, and
    the main rank says at once that it will save, and what stays if it cannot.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ):
        self.requested = False
        self.kept = ""  # the newest whole checkpoint
        self._here = from_environment(environ)
        numbers = {*STOP_SIGNALS, *([signal.SIGINT, signal.SIGHUP] if LAUNCHER in environ else [])}
        heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a worker's signals are its own
        for number in numbers:
            signal.signal(number, self._request)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # torchrun is started with them blocked
        threading.Thread(target=self._listen, args=(heard, numbers), daemon=True, name="stop").start()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def _listen(self, heard: int, numbers: set[int]) -> None:
        while (number := os.read(heard, 1)) and number[0] not in numbers:
            pass
        self.requested = True
        if self._here.is_main:
            stays = f"; if it cannot, {self.kept} stays" if self.kept else "; nothing was saved before"
            where = f"rank {self._here.rank} on {socket.gethostname()}"
            print(f"{where}: asked to stop, and saves soon{stays}", file=sys.stderr, flush=True)


def is_heard(number: int) -> bool:
    """Whether a signal asks for something here, and neither kills nor is passed over."""
    return callable(signal.getsignal(number))


def watch_parent(environ: Mapping[str, str] = os.environ) -> None:
    """End this rank when the launcher that started it is gone, so that nothing is left running on any host.

    Open MPI leaves ranks alive when its daemon on their host is killed. Does nothing for a script started by hand.
    """
    if any(name in environ for name in STARTED_BY_A_LAUNCHER):
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_GRACE)
    os._exit(1)
