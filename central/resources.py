"""What this machine has, and what the control groups of this process, of version 1 or 2, leave it of that.

A limit stands in the group of the process or in any above it: a container, a unit of systemd, a step of SLURM.
"""

import os
from collections.abc import Iterator

PROC = "/proc/self"
CPUINFO, MEMINFO = "/proc/cpuinfo", "/proc/meminfo"


def stated(path: str, name: str) -> str:
    """What Linux says of `name` in such a file, of the first processor; nothing where it says nothing."""
    lines = (line.partition(":") for line in _read(path).splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def memory(name: str = "MemTotal", path: str = MEMINFO) -> int | None:
    """Bytes of memory of the machine; None where it does not tell."""
    kilobytes = stated(path, name).partition(" ")[0]
    return int(kilobytes) * 1024 if kilobytes else None


def available_memory(path: str = MEMINFO) -> int | None:
    """Bytes that this process may still take: what the machine has free, within the limits of its control groups."""
    found = [free for free in (memory("MemAvailable", path), free_memory()) if free is not None]
    return min(found) if found else None


def processors(proc: str = PROC) -> int | None:
    """Whole processors that the tightest limit allows, at least 1; None without a limit."""
    allowed = []
    for folder, version in _folders("cpu", proc):
        if version == 2:
            quota, _, period = _read(folder, "cpu.max").partition(" ")
        else:
            quota, period = _read(folder, "cpu.cfs_quota_us"), _read(folder, "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():  # "max" and -1 are no limit
            allowed.append(max(1, int(quota) // int(period)))
    return min(allowed, default=None)


def free_memory(proc: str = PROC) -> int | None:
    """Bytes that the tightest limit leaves, files that the kernel would drop included; None without a limit."""
    free = []
    for folder, version in _folders("memory", proc):
        names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
        used = _read(folder, "memory.current" if version == 2 else "memory.usage_in_bytes")
        droppable = "inactive_file " if version == 2 else "total_inactive_file "
        files = [line.split()[1] for line in _read(folder, "memory.stat").splitlines() if line.startswith(droppable)]
        for limit in (_read(folder, name) for name in names):
            if limit.isdecimal() and used.isdecimal():
                free.append(max(0, int(limit) - int(used) + sum(map(int, files))))
    return min(free, default=None)


def killed_for_memory(proc: str = PROC) -> int:
    """Processes of this one's own control group that the kernel has killed so far because its memory ran out."""
    for folder, version in _folders("memory", proc):
        events = _read(folder, "memory.events" if version == 2 else "memory.oom_control")
        return next((int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill ")), 0)
    return 0


def _folders(controller: str, proc: str) -> Iterator[tuple[str, int]]:
    """(folder, version) of each group with this controller that the process is in, from its own up to the mount."""
    paths = dict(line.split(":", 2)[1:] for line in _read(proc, "cgroup").splitlines() if line.count(":") >= 2)
    by_controller = {name: path for names, path in paths.items() for name in names.split(",")}
    for line in _read(proc, "mountinfo").splitlines():
        place, _, kind = line.partition(" - ")
        root, mounted = (word.replace("\\040", " ") for word in place.split()[3:5])
        kind, _, options = kind.split(" ", 2)
        if kind == "cgroup2" and "" in by_controller:
            path, version = by_controller[""], 2
        elif kind == "cgroup" and controller in options.split(",") and controller in by_controller:
            path, version = by_controller[controller], 1
        else:
            continue
        # A container may see its own group as the root of the mount, whatever the host calls it.
        inside = os.path.relpath(path, root) if os.path.commonpath([path, root]) == root else "."
        parts = [] if inside == "." or ".." in inside else inside.split("/")
        for depth in range(len(parts), -1, -1):
            yield os.path.join(mounted, *parts[:depth]), version


def _read(*path: str) -> str:
    try:
        with open(os.path.join(*path)) as file:
            return file.read().strip()
    except OSError:
        return ""
