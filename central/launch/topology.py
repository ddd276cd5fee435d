"""Sockets and cores of a node, and how many of them a rank gets."""

import os

from central.launch.values import Value


class Topology(Value):
    """Physical cores that may be used."""

    sockets: int
    cores_per_socket: int

    @classmethod
    def parse(cls, text):
        """From the form it prints in, such as 2x28."""
        return cls(*map(int, text.split("x")))

    @property
    def cores(self):
        return self.sockets * self.cores_per_socket

    def __str__(self):
        return f"{self.sockets}x{self.cores_per_socket}"


def can_bind(topology, ranks) -> bool:
    """Whether every rank of a node can have a core of its own."""
    return ranks <= topology.cores


def cores_per_rank(topology, ranks) -> int:
    """Cores of one rank: bound, those of its socket shared out; unbound, a share of the node, at least 1."""
    if not can_bind(topology, ranks):
        return 1
    return max(1, topology.cores_per_socket // -(-ranks // topology.sockets))


def this_machine(cpu_folder="/sys/devices/system/cpu", quota_file="/sys/fs/cgroup/cpu.max") -> Topology:
    """This machine within its cgroup: the cores this process may run on, at most the quota of processor time."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_core(cpu_folder, cpu) for cpu in allowed}
    sockets = len({socket for socket, _ in cores})
    usable = max(1, min(len(cores), _quota(quota_file) or len(cores)))
    sockets = min(sockets, usable)
    return Topology(sockets, usable // sockets)


def _core(cpu_folder, cpu):
    """(socket, core) of a logical processor; a core of its own where the system does not tell."""
    try:
        socket, core = (_read(f"{cpu_folder}/cpu{cpu}/topology/{name}") for name in ("physical_package_id", "core_id"))
    except OSError:
        return "0", f"cpu{cpu}"
    return socket, core


def _quota(quota_file):
    """Whole processors the cgroup allows, or None. The file holds `microseconds|max period`."""
    try:
        allowance, period = _read(quota_file).split()
    except (OSError, ValueError):
        return None
    return None if allowance == "max" else max(1, int(allowance) // int(period))


def _read(path):
    with open(path) as file:
        return file.read().strip()
