"""What this machine offers: sockets and cores, devices, ports.

Counting never acquires a card: a card that the parent holds, no rank can open.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from central import meeting, resources
from central.files import COMMIT, names_in
from central.gaudi_environment import VISIBLE_MODULES
from central.launch.options import Common

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket


@dataclass(frozen=True)
class Topology:
    """Physical cores that may be used."""

    sockets: int
    cores_per_socket: int

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """From the form it prints in, such as 2x28."""
        return cls(*map(int, text.split("x")))

    @property
    def cores(self) -> int:
        return self.sockets * self.cores_per_socket

    def __str__(self) -> str:
        return f"{self.sockets}x{self.cores_per_socket}"


def can_bind(topology: Topology, ranks: int) -> bool:
    """Whether every rank of a node can have a core of its own."""
    return ranks <= topology.cores


def cores_per_rank(topology: Topology, ranks: int) -> int:
    """Cores of one rank: bound, those of its socket shared out; unbound, a share of the node, at least 1."""
    if not can_bind(topology, ranks):
        return 1
    return max(1, topology.cores_per_socket // -(-ranks // topology.sockets))


def this_machine(cpu_folder: str = "/sys/devices/system/cpu", proc: str = resources.PROC) -> Topology:
    """This machine within its cgroup: the cores this process may run on, at most the quota of processor time."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_core(cpu_folder, cpu) for cpu in allowed}
    sockets = len({socket for socket, _ in cores})
    usable = max(1, min(len(cores), resources.processors(proc) or len(cores)))
    sockets = min(sockets, usable)
    return Topology(sockets, usable // sockets)


def _core(cpu_folder: str, cpu: int) -> tuple[str, str]:
    """(socket, core) of a logical processor; a core of its own where the system does not tell."""
    try:
        socket, core = (_read(f"{cpu_folder}/cpu{cpu}/topology/{name}") for name in ("physical_package_id", "core_id"))
    except OSError:
        return "0", f"cpu{cpu}"
    return socket, core


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


@dataclass(frozen=True)
class Devices:
    """The device of a run and how many cards of it there are; None where that is not known or does not count.

    `missing` says why a device that was asked for cannot be had. `modules` are the ids of all Gaudi cards of this
    server, in order; empty where hl-smi does not tell.
    """

    type: str
    cards: int | None = None
    missing: str = ""
    modules: tuple[int, ...] = ()


def hpu_modules(capture: Callable) -> tuple[int, ...]:
    """Module ids of this server's Gaudi cards as hl-smi shows them, in order; empty where it does not answer."""
    answer = capture(["hl-smi", "-Q", "index,module_id", "-f", "csv"], env={"ENABLE_CONSOLE": "true"})
    found = [re.fullmatch(r"\s*\d+\s*,\s*(\d+)\s*", line) for line in answer.stdout.splitlines()]
    return tuple(sorted(int(match[1]) for match in found if match)) if answer.status == 0 else ()


def hpu_count(capture: Callable, environ: Mapping[str, str]) -> int:
    """Gaudi cards that may be used: none without habana_frameworks, else as hl-smi or the device folder counts them."""
    return _hpu_devices(capture, environ).cards or 0


def _hpu_devices(capture: Callable, environ: Mapping[str, str]) -> Devices:
    if not _is_installed("habana_frameworks"):
        return Devices("hpu", 0)
    modules = hpu_modules(capture)
    cards = len(modules) or sum(name.removeprefix("accel").isdigit() for name in names_in("/dev/accel"))
    visible = environ.get(VISIBLE_MODULES)
    return Devices("hpu", min(cards, len(visible.split(","))) if visible else cards, modules=modules)


def cuda_count(capture: Callable, environ: Mapping[str, str]) -> int:
    """GPUs torch can use: none where nvidia-smi lists none, else torch is asked, in a process of its own."""
    if "GPU " not in capture(["nvidia-smi", "-L"]).stdout:
        return 0
    answer = capture([sys.executable, "-c", "import torch; print(torch.cuda.device_count())"], timeout=120)
    return int(answer.stdout.strip() or 0) if answer.status == 0 else 0


def gpu_names(capture: Callable) -> list[str]:
    """What nvidia-smi calls the GPUs of this server, in order."""
    lines = capture(["nvidia-smi", "-L"]).stdout.splitlines()
    return [match[1] for line in lines if (match := re.match(r"GPU \d+: (.+?)(?: \(UUID.*)?$", line))]


def commit(capture: Callable) -> str:
    """The commit of the project, and whether files differ from it."""
    return capture(COMMIT).stdout.strip() or "not known: no git, or no clone"


def processor(cpuinfo: str = resources.CPUINFO) -> str:
    """Model of the processor, and its instructions that decide how fast bf16 is."""
    model, flags = (resources.stated(cpuinfo, name) for name in ("model name", "flags"))
    if not model and not flags:
        return "not known"
    bf16 = [name for name in ("avx512_bf16", "amx_bf16") if name in flags.split()]
    return f"{model or 'not known'}; bf16 instructions: {', '.join(bf16) or 'none, fp32 is as fast'}"


def memory(meminfo: str = resources.MEMINFO) -> str:
    """Memory in all, and what is free of it for this process."""
    total, free = resources.memory(path=meminfo), resources.available_memory(meminfo)
    if total is None or free is None:
        return "not known"
    return f"{total / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free"


def choose(wanted: str, capture: Callable, environ: Mapping[str, str]) -> Devices:
    """The device asked for, or for auto the best there is: hpu, else cuda, else cpu."""
    if wanted == "cpu":
        return Devices("cpu")
    found = {"hpu": _hpu_devices(capture, environ), "cuda": Devices("cuda", cuda_count(capture, environ))}
    if wanted == "auto":
        return next((devices for devices in found.values() if devices.cards), Devices("cpu"))
    counts = {name: devices.cards for name, devices in found.items()}
    return replace(found[wanted], missing="" if counts[wanted] else _why_missing(wanted, counts))


def _why_missing(wanted: str, found: Mapping[str, int | None]) -> str:
    reason = {
        "hpu": "no card is seen" if _is_installed("habana_frameworks") else "habana_frameworks is not installed",
        "cuda": "torch sees no GPU",
    }[wanted]
    others = ", ".join(f"{cards} {name} cards" for name, cards in found.items() if name != wanted)
    return f"--device {wanted}: {reason}; found {others} and the cpu (--device cpu)"


def _is_installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


DEFAULT_PORT = "12345"


def node_topology(settings: Common) -> Topology:
    """The node to compose for: --node_topology, else this machine."""
    return Topology.parse(settings.node_topology) if settings.node_topology else this_machine()


@dataclass(frozen=True)
class MeetingPoint:
    """Where ranks meet. `asked`: the caller chose the port."""

    address: str = "localhost"
    port: str = DEFAULT_PORT
    asked: bool = False


def port_is_free(port: str, address: str = meeting.LOOPBACK) -> bool:
    """Whether nothing listens at this port of an address of this machine; "" for all of them."""
    try:
        meeting.listen(int(port), address).close()
    except OSError:
        return False
    return True


def free_port() -> str:
    """A port that nothing uses now."""
    with meeting.listen(0, "") as probe:
        return str(probe.getsockname()[1])


def open_port(port: str, fallback: bool) -> "tuple[socket.socket | None, str]":
    """(listening socket, its port) on loopback: this port, or where it is taken any free one; (None, port) without."""
    for candidate in (int(port), 0)[: 1 + fallback]:
        try:
            listener = meeting.listen(candidate)
        except OSError:
            continue
        return listener, str(listener.getsockname()[1])
    return None, port
