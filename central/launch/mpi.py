"""The words that put ranks on cores and hosts: mpirun of Open MPI 4 and 5, and torchrun.

Open MPI 4 gets the words of the reference. Open MPI 5 refuses `--rank-by core`, and maps odd counts wrongly with
`ppr:N:socket`, so it gets slots and nodes. On both, local rank and rank line up with the cards.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from central.launch.hosts import Layout
from central.launch.machine import MeetingPoint, Topology, can_bind, cores_per_rank
from central.launch.options import Common

DEFAULT_PREFIX = "/usr/local/openmpi"


@dataclass(frozen=True)
class Mpi:
    """An mpirun: its major version, and where it is installed on every host."""

    major: int
    prefix: str = DEFAULT_PREFIX


def parse_version(text: str) -> int | None:
    """Major version from `mpirun --version`, such as "mpirun (Open MPI) 5.0.11" or "orterun (OpenRTE) 4.1.4"."""
    match = re.search(r"\((?:Open MPI|OpenRTE)\) (\d+)\.", text)
    return int(match[1]) if match else None


def mpirun_version(capture: Callable) -> int | None:
    """Major version of the Open MPI on the path; None without one."""
    return parse_version(capture(["mpirun", "--version"]).stdout)


def mpirun(settings: Common, environ: Mapping[str, str], capture: Callable) -> Mpi:
    """The mpirun to compose for: as --mpi says, else the one found, else Open MPI 4.

    It is installed in MPI_ROOT, else where the one on the path is, else in the usual place; with --mpi the usual
    place goes first, and a dry run does not look.
    """
    major = {"openmpi4": 4, "openmpi5": 5}.get(settings.mpi) or mpirun_version(capture) or 4
    prefix = environ.get("MPI_ROOT") or DEFAULT_PREFIX
    usual_place_first = settings.mpi != "auto" and os.path.isdir(DEFAULT_PREFIX)
    if not settings.dry_run and "MPI_ROOT" not in environ and not usual_place_first:
        prefix = _found_prefix() or prefix
    return Mpi(major, prefix)


def _found_prefix() -> str | None:
    import shutil

    program = shutil.which("mpirun")
    return os.path.dirname(os.path.dirname(os.path.realpath(program))) if program else None


def one_server(mpi: Mpi, layout: Layout, topology: Topology) -> list[str]:
    """mpirun for ranks on this server."""
    binding, mapping = _placement(mpi, layout, topology)
    return ["mpirun", "-n", str(layout.world_size), *binding, *mapping, "--allow-run-as-root"]


def many_servers(
    mpi: Mpi, layout: Layout, topology: Topology, ssh_port: str, forwarded: Iterable[tuple[str, str]]
) -> list[str]:
    """mpirun for the same number of ranks on each host, which get the `forwarded` variables."""
    network, variables = network_of(layout.hosts[0]), dict(forwarded)
    master = [f"{name}={variables.pop(name)}" for name in ("MASTER_ADDR", "MASTER_PORT")]
    binding, mapping = _placement(mpi, layout, topology)
    return [
        *["mpirun", "--allow-run-as-root"],
        *_exported(f"{name}={value}" for name, value in variables.items()),
        *["--prefix", mpi.prefix],
        *(["--mca", "btl_tcp_if_include", network] if network else []),
        *_exported(master),
        *(["--mca", "plm_rsh_args", f"-p {ssh_port}"] if layout.by_ssh else []),
        *binding,
        *["-H", ",".join(f"{host}:{slots(layout, topology)}" for host in layout.hosts)],
        *["-n", str(layout.world_size)],
        *mapping,
    ]


def slots(layout: Layout, topology: Topology) -> int:
    """Slots of each host: its ranks, times the cores of each."""
    per_node = layout.ranks_per_node
    return per_node * (cores_per_rank(topology, per_node) if can_bind(topology, per_node) else 1)


def daemon_out_of_reach(mpi: Mpi | None, python: str) -> dict[str, str]:
    """How mpirun starts its daemon on the nodes of SLURM: with the signals blocked that SLURM sends to all steps.

    Else the daemon would die of them, and its ranks with it. Open MPI splits these words at blanks, so that neither
    code nor path may have one; GNU env could do it, but not yet on RHEL 8.
    """
    if mpi is None or " " in python:
        return {}
    name = {4: "OMPI_MCA_orte_launch_agent", 5: "PRTE_MCA_prte_launch_agent"}[mpi.major]
    program = {4: "orted", 5: "prted"}[mpi.major]
    block = "__import__('signal').pthread_sigmask(0,{1,2,15})"
    words = "__import__('sys').argv[1:]"
    start = f"__import__('os').execvp({words}[0],{words})"
    return {name: f"{python} -c {block};{start} {program}"}


def torchrun(python: str, layout: Layout, meeting_point: MeetingPoint, run_id: str) -> list[str]:
    """torchrun for ranks on this server, of the interpreter that runs us.

    It opens the port itself, the caller's or any free one.
    """
    address, port = meeting_point.address, meeting_point.port if meeting_point.asked else "0"
    return [
        *[python, "-m", "torch.distributed.run"],
        *["--nproc_per_node", str(layout.world_size)],
        *["--log_dir", os.devnull],  # else each run leaves an empty folder in TMPDIR
        *["--rdzv_backend", "c10d"],
        *["--rdzv_endpoint", f"{address}:{port}"],
        *["--local_addr", address],
        *(["--rdzv_id", run_id] if run_id else []),
    ]


def network_of(address: str) -> str:
    """The network mpirun may use, from the first host: 10.10.100.101 gives 10.10.100.0/16, a name gives none."""
    match = re.fullmatch(r"(\d+\.\d+\.\d+)\.\d+", address)
    return f"{match[1]}.0/16" if match else ""


def _exported(assignments: Iterable[str]) -> list[str]:
    return [word for assignment in assignments for word in ("-x", assignment)]


def _placement(mpi: Mpi, layout: Layout, topology: Topology) -> tuple[list[str], list[str]]:
    """Ranks to cores, cards in rank order: the words for binding, and those for mapping.

    Where there are fewer cores than ranks nothing is bound.
    """
    per_node = layout.ranks_per_node
    rank_by = ["--rank-by", "core" if mpi.major == 4 else "slot"]
    if not can_bind(topology, per_node):
        mapping = ["--map-by", f"ppr:{per_node}:node", *rank_by] if layout.hosts else []
        return ["--bind-to", "none", "--oversubscribe"], mapping
    if not layout.hosts:
        unit = "socket" if mpi.major == 4 else "slot"
    elif mpi.major == 4 and per_node % topology.sockets == 0:
        unit = f"ppr:{per_node // topology.sockets}:socket"
    else:
        unit = f"ppr:{per_node}:node"
    cores = f"PE={cores_per_rank(topology, per_node)}"
    return ["--bind-to", "core"], ["--map-by", f"{unit}:{cores}", *rank_by, "--report-bindings"]
