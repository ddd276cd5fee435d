"""The device a training script runs on: one place to look when a card behaves differently.

Nothing happens at import, and nothing here is asked for by name elsewhere: a script opens a Device once and calls it.
"""

import atexit
import contextlib
import ctypes
import gc
import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from central import cgroups, meeting
from central.meeting import LOOPBACK
from central.runtime import cpu_bf16, hpu
from central.runtime import rank as ranks
from central.runtime.exits import BadRequest
from central.runtime.rank import Rank

BACKENDS = {"hpu": "hccl", "cuda": "nccl", "cpu": "gloo"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ANY_OTHER_HOST = "198.51.100.1"  # an address of nobody (RFC 5737), for the default route
COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # rank 0 may be writing or compiling while the others wait
PEAK_SIZES = {"cpu": (1536,), "cuda": (1024, 8192), "hpu": (1024, 8192)}  # sides of the square matrices timed
FIRST_CUDA_WITH_BF16 = (8, 0)  # compute capability
NO_PEAK = "this {type} has no instructions for bf16: mfu is left out"
PEAK_PATIENCE = 0.01  # s: a device that takes longer for one product is not asked for a larger one
PEAK_REPEATS = 5
PEAK_SECONDS = 0.5  # of one size
KERNELS_KEPT = 256  # a micro-batch needs a dozen, and five for every different length of a sequence in it
CPU_TILE = 64  # tokens


_groups = []  # those joined, kept to the end of the process


@dataclass(frozen=True)
class Device:
    type: str  # "hpu", "cuda" or "cpu"
    device: torch.device
    mode: str  # "lazy", "eager" or "compile"
    data_type: str  # "fp32" or "bf16": what matrix products run in; weights stay fp32
    backend: str  # of torch.distributed

    @property
    def static_shapes(self) -> bool:
        """Whether a new tensor shape means a new compilation."""
        return self.type == "hpu" or self.mode == "compile"

    @property
    def tile(self) -> int:
        """See `token_tile`."""
        return token_tile(self.type, self.data_type == "bf16")

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.data_type]

    @property
    def checks_every_step(self) -> bool:
        """Whether reading a number from the device after each step costs nothing."""
        return self.type == "cpu"

    def remarks(self) -> list[str]:
        """What the user should know of this choice, a line each."""
        remarks = cpu_bf16.remarks() if self.type == "cpu" and self.data_type == "bf16" else []
        return remarks if self.has_instructions else [*remarks, NO_PEAK.format(type=self.type)]

    def autocast(self):
        """Context for forward and loss; backward and optimizer stay outside."""
        if self.data_type == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.type, dtype=torch.bfloat16)

    def mark_step(self) -> None:
        """End a graph where graphs are gathered (hpu, lazy mode); empty elsewhere."""
        if self.type == "hpu":
            hpu.mark_step()

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.type != "cpu":
            self.mark_step()
            getattr(torch, self.type).synchronize()

    def compile(self, module):
        """`module` under torch.compile in compile mode, as it is in the others."""
        if self.mode != "compile":
            return module
        return torch.compile(module, backend=hpu.COMPILE_BACKEND if self.type == "hpu" else "inductor", dynamic=False)

    def available_memory(self) -> int | None:
        """Bytes that this process may still take on the device, None where the device does not tell."""
        if self.type == "cpu":
            return available_host_memory()
        try:
            return getattr(torch, self.type).mem_get_info()[0]
        except (AttributeError, RuntimeError, NotImplementedError):
            return None

    def peak_memory(self) -> int:
        """Highest number of bytes used so far: on the card, or resident in this process on cpu."""
        if self.type == "cpu":
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return getattr(torch, self.type).max_memory_allocated()

    @property
    def has_instructions(self) -> bool:
        """Whether products in the data type are of the speed it is chosen for, so that a peak means something."""
        if self.data_type == "fp32" or self.type == "hpu":
            return True
        if self.type == "cuda":
            return torch.cuda.get_device_capability(self.device) >= FIRST_CUDA_WITH_BF16
        return cpu_bf16.has_instructions() or cpu_bf16.can_replace()

    def matrix_peak(self) -> float | None:
        """FLOP/s of the best square matrix product on this device in its data type, measured now; None: no such thing.

        Of random numbers: a card is an eighth faster on ones.
        """
        if not self.has_instructions:
            return None
        best = 0.0
        with torch.no_grad():
            for size in PEAK_SIZES[self.type]:
                a = torch.randn(size, size, device=self.device).to(self.dtype)
                product = torch.empty_like(a)  # alive while it is timed: what nobody holds a lazy card never computes
                end = time.perf_counter() + PEAK_SECONDS
                for repeat in range(PEAK_REPEATS):
                    self.synchronize()
                    start = time.perf_counter()
                    torch.mm(a, a, out=product)
                    self.synchronize()
                    now = time.perf_counter()
                    if repeat:  # the first one warms up
                        best = max(best, 2 * size**3 / (now - start))
                        if now > end:
                            break
                if 2 * size**3 / best > PEAK_PATIENCE:
                    break  # an emulated card, or one that is shared
        return best


def configure_compile(shapes: int, recomputes: bool) -> None:
    """Let torch.compile keep a graph for each of so many shapes; past its limit it would go on in eager, unsaid.

    `recomputes`: activations are checkpointed, which DistributedDataParallel's splitting of graphs does not take.
    """
    import torch._dynamo

    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, shapes)
    if recomputes and config.optimize_ddp is True:  # Habana's compiled autograd may have set another way
        config.optimize_ddp = False


def token_tile(device_type: str, bf16: bool) -> int:
    """What the number of tokens of a micro-batch should be a multiple of.

    On a CPU oneDNN compiles its bf16 kernels for every number that it meets: 1 to 8 ms each, a dozen for a micro-batch.
    Whole tiles take 5 % (`base`) to 14 % (`mini`) off pre-training, 30 % off fine-tuning (2 Xeon cores with AMX).
    """
    return CPU_TILE if device_type == "cpu" and bf16 and cpu_bf16.has_instructions() else 1


def open_device(name: str, mode: str, data_type: str, rank: Rank) -> Device:
    """Open "hpu", "cuda", "cpu" or "auto" (cuda if there, else cpu) for this rank; ValueError says what was found."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "hpu":
        device = hpu.initialize(rank)
    elif name == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count < rank.local_world_size:
            raise ValueError(
                f"device cuda: {count} GPUs found for {rank.local_world_size} ranks on this host: "
                "start fewer ranks, or choose --no_cuda"
            )
        device = torch.device("cuda", rank.local_rank)
        torch.cuda.set_device(device)
    elif name == "cpu":
        device = torch.device("cpu")
        keep_freed_memory()
        keep_few_kernels()
        if data_type == "bf16":
            cpu_bf16.use_fp32_arithmetic()
    else:
        raise ValueError(f"device {name!r}: choose hpu, cuda or cpu")
    if mode == "lazy" and name != "hpu":
        mode = "eager"
    return Device(name, device, mode, data_type, BACKENDS[name])


def init_process_group(device: Device, rank: Rank) -> None:
    """Join the ranks over the device's own backend; nothing to do for a rank alone."""
    if rank.world_size == 1:
        return
    ranks.export(rank)
    if device.type == "hpu":
        hpu.initialize_hccl(rank)
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


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of giving it back: fresh pages cost more than the work done in them.

    Large tensors that come and go at every step take a fifth of the time so. Elsewhere than on glibc nothing happens.
    """
    trim_threshold, mmap_max = -1, -4  # names of mallopt(3)
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def keep_few_kernels(count: int = KERNELS_KEPT) -> None:
    """Bound torch's two caches of bf16 matrix kernels, one for every shape met, which together grow to gigabytes.

    0.4 to 0.8 megabytes each, most with AMX. The first call decides, unless the environment has.
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):  # read at the first product
        os.environ.setdefault(name, str(count))


def available_host_memory() -> int | None:
    """Bytes of memory this process may still take: what the machine has free, within the limits of its cgroups."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration):
        pass
    if (within := cgroups.free_memory()) is not None:
        found.append(within)
    return max(0, min(found)) if found else None
