"""Which kernels compute the network on which device: a device names those that suit it."""

from central.runtime.device import Device
from central.runtime.exits import BadRequest
from pretraining.kernels.cpu import CpuKernels
from pretraining.kernels.cuda import CudaKernels
from pretraining.kernels.plain import PlainKernels

Kernels = PlainKernels | CpuKernels
KERNELS: dict[str, type[PlainKernels] | type[CpuKernels]] = {
    "plain": PlainKernels,
    "cpu": CpuKernels,
    "cuda": CudaKernels,
}


def open_kernels(device: Device, in_place: bool = True, fused_sdpa: bool = False) -> Kernels:
    """Kernels for a device; `in_place` as in CpuKernels, `fused_sdpa` asks for the device's own attention."""
    try:
        return KERNELS[device.kernels].on(device, in_place, device.fused_sdpa() if fused_sdpa else None)
    except ValueError as error:
        raise BadRequest(str(error)) from error
