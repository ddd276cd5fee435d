"""Which of how many processes this one is, and the two signs by which it is told to stop.

Standard library only: an entry script imports this before torch.
"""

import importlib.util
import os
import re
import signal
import threading
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

# (source, rank, local rank, world size, local world size) as each launcher names them.
VARIABLES = (
    ("torchrun", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    (
        "openmpi",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("slurm", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"),
)
# Set by MPICH, Intel MPI and other PMI launchers, which name ranks in ways of their own: mpi4py knows them.
OTHER_MPI = ("PMI_RANK", "PMIX_RANK", "MPI_LOCALRANKID")
# Set by whoever starts ranks as its own children: without it a shell that ends must not end its nohup job.
STARTED_BY_A_LAUNCHER = ("BERT_LAUNCHER", "OMPI_COMM_WORLD_RANK", "TORCHELASTIC_RUN_ID")

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
    """Read RANK/LOCAL_RANK/WORLD_SIZE, else OMPI_COMM_WORLD_*, else SLURM_*, else ask mpi4py under another MPI.

    Raises ValueError for a half-set or impossible group of variables.
    """
    for source, *names in VARIABLES:
        if all(name in environ for name in names[:3]) and not (source == "slurm" and _in_slurm_batch_script(environ)):
            return _checked(source, names, environ)
    torchrun = VARIABLES[0][1:4]
    present = [name for name in torchrun if name in environ]
    if "RANK" in present or "LOCAL_RANK" in present:
        missing = ", ".join(name for name in torchrun if name not in environ)
        raise ValueError(f"{', '.join(present)} set without {missing}: set all three, or none to run alone")
    if any(name in environ for name in OTHER_MPI) and importlib.util.find_spec("mpi4py"):
        return _from_mpi4py()
    return Rank()


def _checked(source: str, names: list[str], environ: Mapping[str, str]) -> Rank:
    values = {}
    for name in names:
        text = environ.get(name, "")
        if text and not text.isdecimal():
            raise ValueError(f"{name}={text!r} is not a count: unset it or let {source} set it")
        values[name] = int(text) if text else None
    rank, local_rank, world_size, local_world_size = (values[name] for name in names)
    rank, local_rank, world_size = rank or 0, local_rank or 0, world_size or 1
    if source == "slurm" and local_world_size is None:
        local_world_size = _slurm_tasks_here(environ)
    if max(rank, local_rank) >= world_size:
        raise ValueError(
            f"{names[0]}={rank}, {names[1]}={local_rank} and {names[2]}={world_size} do not fit together: "
            "rank and local rank are below the world size"
        )
    return Rank(rank, local_rank, world_size, local_world_size or world_size, source)


def _in_slurm_batch_script(environ: Mapping[str, str]) -> bool:
    """A batch script has SLURM_PROCID=0 and the job's task count, yet is one process: only `srun` makes steps."""
    return "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" not in environ


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
    """Give a rank of several the names torch.distributed reads, keeping what is set already."""
    if rank.world_size == 1:
        return
    values = {
        "RANK": rank.rank,
        "LOCAL_RANK": rank.local_rank,
        "WORLD_SIZE": rank.world_size,
        "LOCAL_WORLD_SIZE": rank.local_world_size,
        "MASTER_ADDR": first_slurm_host(environ) if rank.source == "slurm" else "localhost",
        "MASTER_PORT": 12345,
    }
    for name, value in values.items():
        environ.setdefault(name, str(value))


def first_slurm_host(environ: Mapping[str, str]) -> str:
    """First host of a SLURM node list: `node[07-09,12],other` -> `node07`."""
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or "localhost"
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes)
    return (match[1] + (match[2] or "")) if match else "localhost"


class StopRequest:
    """Set by SIGTERM or SIGUSR1, alike, and read by the training loop between steps."""

    def __init__(self):
        self.requested = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._request)

    def _request(self, number, frame) -> None:
        self.requested = True


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
