"""What the control groups of this process leave it of memory and processor time, in version 1 and 2.

A limit stands in the group of the process or in any above it: a container, a unit of systemd, a step of SLURM.
"""

import os
from collections.abc import Iterator

PROC = "/proc/self"


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


def _read(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name)) as file:
            return file.read().strip()
    except OSError:
        return ""
