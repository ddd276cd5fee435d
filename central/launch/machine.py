"""What this machine offers besides devices: cores, mpirun, ports."""

import os

from central.launch.mpi import DEFAULT_PREFIX, Mpi, parse_version
from central.launch.topology import Topology, this_machine

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEFAULT_PORT = "12345"


def node_topology(settings) -> Topology:
    """The node to compose for: --node_topology, else this machine."""
    return Topology.parse(settings.node_topology) if settings.node_topology else this_machine()


def mpirun_version(capture) -> int | None:
    """Major version of the Open MPI on the path; None without one."""
    return parse_version(capture(["mpirun", "--version"]).stdout)


def mpirun(settings, environ, capture) -> Mpi:
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


def _found_prefix():
    import shutil

    program = shutil.which("mpirun")
    return os.path.dirname(os.path.dirname(os.path.realpath(program))) if program else None


def port_is_taken(port) -> bool:
    """Whether something listens on this port of the loopback address."""
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(port)))
        except OSError:
            return True
    return False


def claim_port(port) -> bool:
    """Keep a port of this server for the ranks of this launcher, which open it seconds from now. False: it is taken."""
    import tempfile

    from central.launch import lock

    try:
        return not port_is_taken(port) and lock.hold(os.path.join(tempfile.gettempdir(), f"bert_port_{port}.lock"))
    except OSError:  # another user's
        return False


def free_port() -> str:
    """A port of the loopback address that nothing uses now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
