"""What ranks tell each other: counts before a step on the host, gradients after it on the device."""

import contextlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from central.runtime.device import Device
from pretraining.batches import MicroBatch

BUCKET_MB = 230


class Alone:
    """One rank: nothing to exchange."""

    loss_scale = 1.0
    world_size = 1

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def between_micro_steps(self, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Context of one micro-step's forward and backward."""
        return contextlib.nullcontext()

    def settle(self, model: nn.Module, micro_batch: MicroBatch, device: Device) -> None:
        """Whatever changes once, after the first backward pass of a process, changes now, before the first step."""

    def gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every rank's gradients the sum over ranks."""

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Sums over ranks of host numbers."""
        return list(numbers)

    def agree(self, numbers: Sequence[int]) -> bool:
        """Whether every rank holds the same numbers; where some do not, a rank that differs is told so."""
        return True

    def barrier(self) -> None:
        pass


class _Ranks(Alone):
    def __init__(self, bf16: bool):
        self.bf16 = bf16
        self.world_size = dist.get_world_size()
        # Host numbers never touch the device: they go over gloo whatever carries the gradients.
        self._host = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    def sum(self, numbers: Sequence[float]) -> list[float]:
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total, group=self._host)
        return total.tolist()

    def agree(self, numbers: Sequence[int]) -> bool:
        return self.sum(numbers) == [number * self.world_size for number in numbers]

    def barrier(self) -> None:
        dist.barrier(group=self._host)


class FlatExchange(_Ranks):
    """One all-reduce per optimizer step over all gradients as one vector."""

    def wrap(self, model: nn.Module) -> nn.Module:
        for parameter in model.parameters():
            dist.broadcast(parameter.data, src=0)
        return model

    def gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        if self.bf16:
            flat = flat.bfloat16()
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(part.view_as(gradient))


class DdpExchange(_Ranks):
    """torch's DistributedDataParallel: buckets leave during the last backward pass of a step, none before."""

    def __init__(self, bf16: bool):
        super().__init__(bf16)
        self.loss_scale = float(self.world_size)  # DDP takes the mean over ranks, a step's loss is a sum
        self._settled = False

    def wrap(self, model: nn.Module) -> nn.Module:
        wrapped = DistributedDataParallel(model, bucket_cap_mb=BUCKET_MB, gradient_as_bucket_view=True)
        if self.bf16:
            wrapped.register_comm_hook(None, _mean_in_bf16)
        return wrapped

    def between_micro_steps(self, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        assert isinstance(model, DistributedDataParallel)
        return contextlib.nullcontext() if last else model.no_sync()

    def settle(self, model: nn.Module, micro_batch: MicroBatch, device: Device) -> None:
        """DDP sorts its buckets anew after the first backward pass, and a ring of three ranks or more adds an element
        up in an order that goes by its place: the first step of a resumed run would differ in the last bits."""
        if self._settled:
            return
        self._settled = True
        (model(micro_batch.to(device.device)).sum() * 0).backward()
        device.mark_step()
        for parameter in model.parameters():
            parameter.grad = None


def _mean_in_bf16(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP communication hook: exchange a bucket in bf16. (torch's own is for nccl only.)"""
    small = bucket.buffer().bfloat16().div_(dist.get_world_size())
    work = dist.all_reduce(small, async_op=True)
    if dist.get_backend() != "hccl":
        return work.get_future().then(lambda done: bucket.buffer().copy_(done.value()[0]))
    # hccl's future is complete when it is made: what hangs on it may run before the exchange has ended. `wait` orders
    # what follows on the card behind it.
    work.wait()
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer().copy_(small))
    return done


def open_exchange(world_size: int, flat: bool, bf16: bool) -> Alone:
    if world_size == 1:
        return Alone()
    return FlatExchange(bf16) if flat else DdpExchange(bf16)
