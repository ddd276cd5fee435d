"""Which hosts a run uses, and how many ranks each gets."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from central.errors import MOST_PROBLEMS, BadRequest
from central.files import is_special
from central.slurm import expand_nodelist

DEFAULT_SSH_PORT = "3022"
HOST = r"[\w\[][\w.:%@\]-]*"  # to ssh and mpirun a word that begins with a hyphen is an option


@dataclass(frozen=True)
class Layout:
    """Ranks and where they go. No hosts: all on this server. SLURM's hosts are reached by srun, others by ssh."""

    world_size: int
    ranks_per_node: int
    hosts: tuple[str, ...] = ()
    source: str = "this server"
    by_ssh: bool = False

    @property
    def in_slurm(self) -> bool:
        """Whether the hosts are those of a SLURM allocation, which mpirun reaches by srun."""
        return bool(self.hosts) and not self.by_ssh


def plan_layout(
    *, world_size: int, dist: bool, process_per_node: int, hostfile: str | None, environ: Mapping[str, str]
) -> Layout:
    """The layout: on the hosts of --hostfile, else MULTI_HLS_IPS, else the SLURM allocation, else on this server.

    As in the reference, MULTI_HLS_IPS counts only together with --process_per_node.
    """
    if hostfile:
        return _from_slots(read_hostfile(hostfile), f"--hostfile {hostfile}", world_size, process_per_node)
    if dist and world_size == 1:
        world_size = 8
    if process_per_node and (named := environ.get("MULTI_HLS_IPS")):
        addresses = split_addresses(named)
        if not addresses:
            raise BadRequest(f"MULTI_HLS_IPS={named} names no host: give addresses between commas")
        return _spread(addresses, "MULTI_HLS_IPS", world_size, process_per_node)
    nodes = expand_nodelist(environ.get("SLURM_JOB_NODELIST", ""))
    if world_size > 1 and len(nodes) > 1:
        return _spread(nodes, "the SLURM allocation", world_size, process_per_node, by_ssh=False)
    if process_per_node > world_size:
        raise BadRequest(
            f"--process_per_node {process_per_node} is more than --world_size {world_size}, all ranks: give "
            f"--world_size {process_per_node} for one server, or a multiple of it for several"
        )
    if process_per_node not in (0, world_size):
        raise BadRequest(
            f"--process_per_node {process_per_node} with --world_size {world_size} needs"
            f" {world_size / process_per_node:g} hosts: name them in MULTI_HLS_IPS or --hostfile"
        )
    return Layout(world_size, world_size)


def idle_allocation(layout: Layout, environ: Mapping[str, str]) -> str:
    """What of a SLURM allocation a run of one rank leaves idle, and what to write; nothing where it has no more."""
    if layout.world_size > 1:
        return ""
    nodes = len(expand_nodelist(environ.get("SLURM_JOB_NODELIST", "")))
    words = environ.get("SLURM_NTASKS", "")
    tasks = int(words) if re.fullmatch(r"[0-9]{1,6}", words) else 0
    if max(nodes, tasks) < 2:
        return ""
    given = [f"{number} {what}" for number, what in ((nodes, "nodes"), (tasks, "tasks")) if number > 1]
    spread = tasks > 1 and tasks % max(nodes, 1) == 0
    instead = f"--world_size {tasks} uses all" if spread else f"--world_size N, a multiple of {nodes}, uses all"
    return f"SLURM gave {' and '.join(given)}, and this run is one rank: {instead}"


def split_addresses(text: str) -> tuple[str, ...]:
    """Hosts of MULTI_HLS_IPS; what follows a hyphen behind an IPv4 address is cut, as the reference does."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    return tuple(re.sub(r"^(\d+\.\d+\.\d+\.\d+)-.*$", r"\1", name) for name in names)


def read_hostfile(path: str) -> dict[str, int]:
    """Slots of each host from lines such as `host1 slots=8`; a comment starts with #."""
    if is_special(path):
        raise BadRequest(f"--hostfile {path}: a device, pipe or socket; give a file")
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except OSError as error:
        raise BadRequest(f"--hostfile {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise BadRequest(f"--hostfile {path}: no text; expected lines `HOST slots=N`")
    lines = [line.partition("#")[0].split() for line in text.splitlines()]
    slots, problems = dict[str, int](), list[str]()
    for line_number, words in enumerate(lines, start=1):
        if len(problems) >= MOST_PROBLEMS:
            break
        if not words:
            continue
        found = [re.fullmatch(r"slots=([1-9][0-9]{0,5})", word) for word in words[1:]] or [re.match(r"()", "")]
        if words[0] in slots:
            problems.append(f"--hostfile {path}, line {line_number}: names {words[0]} again; give each host one line")
        elif short := re.fullmatch(r"([^:\[\]]+):([1-9][0-9]{0,5})", words[0]):
            problems.append(f"--hostfile {path}, line {line_number}: write {short[1]} slots={short[2]}")
        elif len(found) > 1 or not found[0]:
            problems.append(f"--hostfile {path}, line {line_number}: expected one line `HOST slots=N` for each host")
        else:
            slots[words[0]] = int(found[0][1] or 1)
    if not slots and not problems:
        problems.append(f"--hostfile {path} names no host")
    if problems:
        raise BadRequest(problems)
    return slots


def _spread(hosts: Sequence[str], source: str, world_size: int, process_per_node: int, by_ssh: bool = True) -> Layout:
    """An equal number of ranks on each host, exactly."""
    # One colon is a port, or slots as MPICH has them: an IPv6 address has two.
    if no_hosts := [name for name in hosts if not re.fullmatch(HOST, name) or name.count(":") == 1]:
        raise BadRequest(f"{source} names {', '.join(map(repr, no_hosts))}: expected names or addresses of hosts")
    if twice := sorted(name for name, times in Counter(map(str.lower, hosts)).items() if times > 1):
        raise BadRequest(f"{source} names {', '.join(twice)} twice: {', '.join(hosts)}; name each host once")
    ranks_per_node = process_per_node or world_size // len(hosts)
    if ranks_per_node * len(hosts) != world_size:
        per_node = f"--process_per_node {process_per_node}" if process_per_node else f"{world_size} / {len(hosts)}"
        fits = max(1, ranks_per_node) * len(hosts)
        raise BadRequest(
            f"{source} names {len(hosts)} hosts, which does not agree with {per_node} and --world_size {world_size}:"
            f" give --world_size {fits}, or other hosts"
        )
    return Layout(world_size, ranks_per_node, tuple(hosts), source, by_ssh)


def _from_slots(slots: Mapping[str, int], source: str, world_size: int, process_per_node: int) -> Layout:
    """The same number of ranks on each host of a file; without --world_size all slots are used."""
    if len(set(slots.values())) > 1 and not process_per_node:
        found = ", ".join(f"{host} {count}" for host, count in slots.items())
        raise BadRequest(f"{source} has unequal slots ({found}): make them equal, or give --process_per_node")
    ranks_per_node = process_per_node or next(iter(slots.values()))
    too_few = [host for host, count in slots.items() if count < ranks_per_node]
    if too_few:
        raise BadRequest(f"{source} has fewer than --process_per_node {ranks_per_node} slots on {', '.join(too_few)}")
    all_slots = ranks_per_node * len(slots)
    return _spread(tuple(slots), source, all_slots if world_size == 1 else world_size, ranks_per_node)
