"""How the ranks of a run meet: the process group, the store behind it, and the network interface that both use."""

import atexit
import contextlib
import gc
import os
import socket
from datetime import timedelta

import psutil
import torch.distributed as dist

from central import meeting
from central.meeting import LOOPBACK
from central.runtime import rank as ranks
from central.runtime.device import Device
from central.runtime.exits import BadRequest
from central.runtime.rank import Rank

ANY_OTHER_HOST = "198.51.100.1"  # an address of nobody (RFC 5737), for the default route
COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # rank 0 may be writing or compiling while the others wait

_groups: list[dist.ProcessGroup | None] = []  # those joined, kept to the end of the process


def init_process_group(device: Device, rank: Rank) -> None:
    """Join the ranks over the device's own backend; nothing to do for a rank alone."""
    if rank.world_size == 1:
        return
    ranks.export(rank)
    device.before_meeting(rank)
    if "GLOO_SOCKET_IFNAME" not in os.environ:  # gloo itself asks for its own host name, which may be a loopback one
        others = filter(None, os.environ.get(meeting.HOSTS, "").split(","))
        os.environ["GLOO_SOCKET_IFNAME"] = network_interface(os.environ["MASTER_ADDR"], *others)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    torchrun_has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        dist.init_process_group(
            device.backend,
            rank=rank.rank,
            world_size=rank.world_size,
            timeout=COLLECTIVE_TIMEOUT,
            store=None if torchrun_has_store else _store(rank, address, port),
        )
    except (dist.DistNetworkError, OSError) as error:
        raise BadRequest(f"ranks cannot meet at {address}:{port} ({error}): set MASTER_PORT to a free port") from error
    _groups.append(dist.group.WORLD)
    atexit.register(_let_go)


def open_store(rank: Rank) -> dist.Store | None:
    """A connection of its own to the store where the ranks met; None for a rank alone, and where torch has no such."""
    if rank.world_size == 1:
        return None
    store = dist.distributed_c10d._get_default_store()
    return store.clone() if hasattr(store, "clone") else None


def _let_go() -> None:
    """Give up the groups after DDP has, while there is an interpreter.

    Were DDP's reducer the last to hold a group, its end would wait, with Python's lock, for gloo's threads, which may
    be waiting for that lock: three of twenty runs on a busy machine never ended. Python's own reference gives it up.
    """
    gc.collect()  # a reducer may be in a cycle
    _groups.clear()


def network_interface(address: str, *others: str) -> str:
    """The network interface by which the ranks of other hosts are reached, given where they meet; `lo` on one server.

    It is that of the route to `address`. The host whose address it is may know itself by a name of loopback, such as
    Debian's `127.0.1.1 host`: there it is that of the route to one of the `others` (the hosts of the run, itself
    included), else that of the default route, else the first one.
    """
    if address in ("localhost", LOOPBACK):
        return "lo"
    own = _own_addresses()
    for other in (address, *others, ANY_OTHER_HOST):
        if (found := own.get(_source_address(other), "lo")) != "lo":
            return found
    return min(set(own.values()) - {"lo"}, default="lo")


def _own_addresses() -> dict[str, str]:
    """Address -> interface of this host, those that are up."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return {
        entry.address.partition("%")[0]: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if name in up and entry.family in (socket.AF_INET, socket.AF_INET6)
    }


def _source_address(address: str) -> str:
    """This host's own address on the way to another; empty without a way. Nothing is sent."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, target in socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as probe, contextlib.suppress(OSError):
                probe.connect(target)
                return probe.getsockname()[0].partition("%")[0]
    return ""


def _store(rank: Rank, address: str, port: int) -> dist.Store:
    """Where the ranks meet. Raises BadRequest where the ranks of another run do.

    It is what torch makes by itself, but for three things: on one server it listens to loopback only, at the port
    that the launcher holds; and a rank of another run that comes by is not counted.
    """
    listener = None
    if address in meeting.LOCAL_NAMES:
        address = LOOPBACK
        if rank.is_main:
            listener = _listener(port)
    store = dist.TCPStore(
        address,
        port,
        rank.world_size,
        is_master=rank.is_main,
        timeout=COLLECTIVE_TIMEOUT,
        master_listen_fd=listener.detach() if listener else None,
        wait_for_workers=False,
    )
    mine = ranks.run_id()
    if rank.is_main:
        store.set("run_id", mine)
    elif (theirs := store.get("run_id").decode()) != mine:
        raise BadRequest(
            f"ranks of another run ({theirs or 'without an id'}) meet at {address}:{port}; this is run {mine}: "
            "set MASTER_PORT to a free port"
        )
    return dist.PrefixStore("default_pg", store)


def _listener(port: int) -> socket.socket:
    """The port that the launcher holds for rank 0; opened here where there is none."""
    if meeting.RUN_ID in os.environ:
        with contextlib.suppress(OSError):
            return meeting.take_over(os.environ[meeting.RUN_ID])
    return meeting.listen(port)
