"""The devices a training runs on, a class each: one place to look when a card behaves differently.

Nothing happens at import. A script opens its device once and asks it; nobody else compares the names of devices. One
more device is one more class here, and its name in DEVICES.
"""

import contextlib
import ctypes
import os
import platform
import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

import torch
import torch.distributed as dist

from central import resources
from central.runtime import cpu_bf16, hpu
from central.runtime.rank import Rank

Module = TypeVar("Module", bound=torch.nn.Module)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FIRST_CUDA_WITH_BF16 = (8, 0)  # compute capability
NO_PEAK = "this {type} has no instructions for bf16: mfu is left out"
PEAK_PATIENCE = 0.01  # s: a device that takes longer for one product is not asked for a larger one
PEAK_REPEATS = 5
PEAK_SECONDS = 0.5  # of one size
KERNELS_KEPT = 256  # a micro-batch needs a dozen, and five for every different length of a sequence in it
CPU_TILE = 64  # tokens


@dataclass(frozen=True)
class Device:
    """What every device answers; a card that torch knows answers most of it so."""

    device: torch.device
    mode: str  # "lazy", "eager" or "compile"
    data_type: str  # "fp32" or "bf16": what matrix products run in; weights stay fp32

    type: ClassVar[str]  # its name, which is torch's
    backend: ClassVar[str]  # of torch.distributed
    modes: ClassVar[tuple[str, ...]] = ("eager", "compile")
    checks_every_step: ClassVar[bool] = False  # reading a number from the device after each step costs nothing
    uses_host_memory: ClassVar[bool] = False  # tensors lie in the memory of the host, which its ranks share
    pins_batches: ClassVar[bool] = False  # batches are copied to it from pinned memory, while it computes
    has_fused_adamw: ClassVar[bool] = True  # torch's own kernel, which LAMB is made of
    fixed_shapes: ClassVar[bool] = False  # a new shape is a new graph in every mode, and the host never waits for it
    compile_backend: ClassVar[str] = "inductor"
    peak_sizes: ClassVar[tuple[int, ...]] = (1024, 8192)  # sides of the square matrices timed

    @classmethod
    def is_found(cls) -> bool:
        """Whether torch finds one on this host."""
        return cls._torch().is_available()

    @classmethod
    def open(cls, mode: str, data_type: str, rank: Rank) -> Self:
        """This rank's device; ValueError says what was found."""
        count = cls._torch().device_count() if cls.is_found() else 0
        if count < rank.local_world_size:
            raise ValueError(
                f"device {cls.type}: {count} GPUs found for {rank.local_world_size} ranks on this host: "
                "start fewer ranks, or choose --no_cuda"
            )
        device = torch.device(cls.type, rank.local_rank)
        cls._torch().set_device(device)
        return cls(device, mode, data_type)

    @classmethod
    def _torch(cls) -> Any:
        """The module of torch for devices of this type."""
        return getattr(torch, cls.type)

    @property
    def name(self) -> str:
        """The name of its maker's product."""
        return self._torch().get_device_name(self.device)

    @property
    def compiles(self) -> bool:
        """Whether a new tensor shape means a new compilation."""
        return self.mode == "compile"

    @property
    def gathers_graphs(self) -> bool:
        """Whether operations are gathered into graphs, which `mark_step` ends."""
        return self.mode == "lazy"

    @property
    def kernels(self) -> str:
        """The name of the kernels that suit it: `plain` ones run on every device."""
        return "plain"

    @property
    def pads_rows(self) -> bool:
        """Whether a micro-batch is rows of one length with padding, and not the real tokens of its rows end to end."""
        return self.kernels == "plain"

    @property
    def tile(self) -> int:
        """What the number of tokens of a micro-batch should be a multiple of."""
        return 1

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.data_type]

    @property
    def operand_type(self) -> torch.dtype:
        """The type in which the operands of products are kept for them."""
        return self.dtype

    @property
    def has_instructions(self) -> bool:
        """Whether products in the data type are of the speed it is chosen for, so that a peak means something."""
        return True

    def remarks(self, bf16_exchange: bool = False) -> list[str]:
        """What the user should know of this choice, a line each; `bf16_exchange`: ranks exchange gradients in bf16."""
        return [] if self.has_instructions else [NO_PEAK.format(type=self.type)]

    def before_meeting(self, rank: Rank) -> None:
        """What is to be done before the ranks meet over `backend`."""

    def autocast(self) -> AbstractContextManager[object]:
        """Context for forward and loss; backward and optimizer stay outside."""
        if self.data_type == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.type, dtype=torch.bfloat16)

    def mark_step(self) -> None:
        """End a graph where graphs are gathered; nothing happens elsewhere."""

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        self.mark_step()
        self._torch().synchronize()

    def load_compile_backend(self) -> None:
        """Make `compile_backend` known to torch, for those that compile by themselves."""

    def compile(self, module: Module) -> Module:
        """`module` under torch.compile in compile mode, as it is in the others."""
        if self.mode != "compile":
            return module
        compiled: Any = torch.compile(module, backend=self.compile_backend, dynamic=False)
        return compiled

    def available_memory(self) -> int | None:
        """Bytes that this process may still take on the device, None where the device does not tell."""
        try:
            return self._torch().mem_get_info()[0]
        except (AttributeError, RuntimeError, NotImplementedError):
            return None

    def peak_memory(self) -> int:
        """Highest number of bytes used so far: on the card, or resident in this process on a CPU."""
        return self._torch().max_memory_allocated()

    def fused_lamb(self) -> Callable[..., torch.optim.Optimizer] | None:
        """The device's own LAMB, which clips by itself; None where it has none."""
        return None

    def fused_adamw(self) -> Callable[..., torch.optim.Optimizer] | None:
        """Its maker's AdamW, None where torch's is the one."""
        return None

    def fused_clip_norm(self) -> Callable[..., Any] | None:
        """Its maker's clipping of gradients, None where torch's is the one."""
        return None

    def fused_sdpa(self) -> Callable[..., torch.Tensor] | None:
        """The device's own attention, as `hpu.fused_sdpa` describes it; None where it has none."""
        return None

    def matrix_peak(self) -> float | None:
        """FLOP/s of the best square matrix product on this device in its data type, measured now; None: no such thing.

        Of random numbers: a card is an eighth faster on ones.
        """
        if not self.has_instructions:
            return None
        best = 0.0
        with torch.no_grad():
            for size in self.peak_sizes:
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


class Cpu(Device):
    type = "cpu"
    backend = "gloo"
    checks_every_step = True
    uses_host_memory = True
    peak_sizes = (1536,)

    @classmethod
    def is_found(cls) -> bool:
        return True

    @classmethod
    def open(cls, mode: str, data_type: str, rank: Rank) -> Self:
        keep_freed_memory()
        keep_few_kernels()
        if data_type == "bf16":
            cpu_bf16.use_fp32_arithmetic()
        return cls(torch.device("cpu"), mode, data_type)

    @property
    def name(self) -> str:
        model = resources.stated(resources.CPUINFO, "model name") or platform.machine()
        return f"{model}, {torch.get_num_threads()} threads a rank"

    @property
    def kernels(self) -> str:
        return "plain" if self.compiles else "cpu"

    @property
    def tile(self) -> int:
        return cpu_tile(self.data_type == "bf16")

    @property
    def operand_type(self) -> torch.dtype:
        return cpu_bf16.arithmetic(self.dtype)

    @property
    def has_instructions(self) -> bool:
        return self.data_type == "fp32" or cpu_bf16.has_instructions() or cpu_bf16.can_replace()

    def remarks(self, bf16_exchange: bool = False) -> list[str]:
        return [*(cpu_bf16.remarks() if self.data_type == "bf16" else []), *super().remarks(bf16_exchange)]

    def synchronize(self) -> None:
        """It has always done what it was given."""

    def available_memory(self) -> int | None:
        return resources.available_memory()

    def peak_memory(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Cuda(Device):
    """NVIDIA's cards; and AMD's, which torch's ROCm build shows under the same name."""

    type = "cuda"
    backend = "nccl"
    pins_batches = True

    @property
    def kernels(self) -> str:
        return "plain" if self.compiles or torch.version.hip else "cuda"

    @property
    def has_instructions(self) -> bool:
        if self.data_type == "fp32" or torch.version.hip:
            return True
        return torch.cuda.get_device_capability(self.device) >= FIRST_CUDA_WITH_BF16


class Xpu(Device):
    """Intel's GPUs."""

    type = "xpu"
    backend = "xccl"
    has_fused_adamw = False

    @classmethod
    def open(cls, mode: str, data_type: str, rank: Rank) -> Self:
        if rank.world_size > 1 and not getattr(dist, "is_xccl_available", lambda: False)():
            raise ValueError("device xpu: this torch has no xccl, by which ranks exchange gradients: start one rank")
        return super().open(mode, data_type, rank)


class Hpu(Device):
    """Intel's Gaudi."""

    type = "hpu"
    backend = "hccl"
    modes = ("lazy", "eager", "compile")
    has_fused_adamw = False
    fixed_shapes = True
    compile_backend = hpu.COMPILE_BACKEND

    @classmethod
    def open(cls, mode: str, data_type: str, rank: Rank) -> Self:
        return cls(hpu.initialize(rank), mode, data_type)

    @property
    def name(self) -> str:
        return "Intel Gaudi"

    @property
    def compiles(self) -> bool:
        return True  # in every mode

    def remarks(self, bf16_exchange: bool = False) -> list[str]:
        return ["gradients are exchanged in bf16, as asked"] if bf16_exchange else []

    def load_compile_backend(self) -> None:
        hpu.load_compile_backend()

    def before_meeting(self, rank: Rank) -> None:
        hpu.initialize_hccl(rank)

    def mark_step(self) -> None:
        hpu.mark_step()

    def fused_lamb(self) -> Callable[..., torch.optim.Optimizer]:
        return hpu.fused_lamb()

    def fused_adamw(self) -> Callable[..., torch.optim.Optimizer]:
        return hpu.fused_adamw()

    def fused_clip_norm(self) -> Callable[..., Any]:
        return hpu.fused_clip_norm()

    def fused_sdpa(self) -> Callable[..., torch.Tensor]:
        return hpu.fused_sdpa()


DEVICES: dict[str, type[Device]] = {cls.type: cls for cls in (Hpu, Cuda, Xpu, Cpu)}
FOUND_BY_ITSELF = (Cuda, Xpu, Cpu)  # "auto" is the first of these that is there


def open_device(name: str, mode: str, data_type: str, rank: Rank) -> Device:
    """Open a device of DEVICES, or "auto", for this rank; ValueError says what was found."""
    if name == "auto":
        name = next(cls.type for cls in FOUND_BY_ITSELF if cls.is_found())
    if name not in DEVICES:
        raise ValueError(f"device {name!r}: choose {', '.join(DEVICES)}")
    cls = DEVICES[name]
    return cls.open(mode if mode in cls.modes else "eager", data_type, rank)


def configure_compile(shapes: int, recomputes: bool) -> None:
    """Let torch.compile keep a graph for each of so many shapes; past its limit it would go on in eager, unsaid.

    `recomputes`: activations are checkpointed, which DistributedDataParallel's splitting of graphs does not take.
    """
    import torch._dynamo

    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, shapes)
    if recomputes and config.optimize_ddp is True:  # Habana's compiled autograd may have set another way
        config.optimize_ddp = False


def cpu_tile(bf16: bool) -> int:
    """Tokens: oneDNN compiles its bf16 kernels for every number that it meets, 1 to 8 ms each, a dozen a micro-batch.

    Whole tiles take 5 % (`base`) to 14 % (`mini`) off pre-training, 30 % off fine-tuning (2 Xeon cores with AMX).
    """
    return CPU_TILE if bf16 and cpu_bf16.has_instructions() else 1


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
