"""Test double: what importing Habana's package changes in torch, and the hooks by which the emulator watches a loop."""

import functools

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from hpu_emulator import state


def _overwrite() -> None:
    _seed_the_card_too()
    dist.init_process_group = _init_process_group(dist.init_process_group)
    for name in ("all_reduce", "broadcast", "reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor"):
        setattr(dist, name, _device_tensors_only(getattr(dist, name)))
    torch.Tensor.hpu = lambda self, device=None, non_blocking=False: self.to("hpu", non_blocking=non_blocking)
    torch.nn.Module.hpu = lambda self, device=None: self.to("hpu")
    _watch()


def _seed_the_card_too() -> None:
    manual_seed, seed, fork_rng = torch.manual_seed, torch.seed, torch.random.fork_rng

    def both_manual_seed(value):
        state.library.hpu_emulator_seed(int(value) & (2**64 - 1))
        return manual_seed(value)

    def both_seed():
        value = seed()
        state.library.hpu_emulator_seed(value)
        return value

    torch.manual_seed = torch.random.manual_seed = both_manual_seed
    torch.seed = torch.random.seed = both_seed
    torch.random.fork_rng = functools.wraps(fork_rng)(
        lambda devices=None, enabled=True, device_type="hpu": fork_rng(devices, enabled, device_type=device_type)
    )


def _init_process_group(original):
    def init_process_group(
        backend,
        init_method=None,
        timeout=default_pg_timeout,
        world_size=-1,
        rank=-1,
        store=None,
        group_name="",
        pg_options=None,
    ):
        """`backend` is required and `device_id` unknown, as in release 1.19."""
        return original(backend, init_method, timeout, world_size, rank, store, group_name, pg_options)

    return init_process_group


def _device_tensors_only(collective):
    """hccl moves tensors of the card only; here it is gloo, which would move the host's as well."""

    @functools.wraps(collective)
    def checked(*args, **kwargs):
        group = kwargs.get("group")
        if dist.get_backend(group) != "hccl":
            return collective(*args, **kwargs)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            raise RuntimeError("No backend type associated with device type cpu")
        if collective.__name__ in ("all_gather_into_tensor", "reduce_scatter_tensor"):  # hccl counts, gloo wants shapes
            args = [value.view(-1) if isinstance(value, torch.Tensor) else value for value in args]
        return collective(*args, **kwargs)

    return checked


def _watch() -> None:
    original = torch.autograd.backward

    @functools.wraps(original)
    def backward(*args, **kwargs):
        state.before_backward()
        original(*args, **kwargs)
        state.after_backward()

    torch.autograd.backward = backward
    register_optimizer_step_pre_hook(state.before_step)
    register_optimizer_step_post_hook(state.after_step)
    torch.serialization.register_package(1, state.count_saved_tensor, lambda storage, location: None)
    if state.lazy:
        _watch_forward_passes()


def _watch_forward_passes() -> None:
    depth = 0

    def before(module, args):
        nonlocal depth
        if depth == 0 and next(module.parameters(), None) is not None:
            state.before_forward()
        depth += 1

    def after(module, args, output):
        nonlocal depth
        depth -= 1

    torch.nn.modules.module.register_module_forward_pre_hook(before)
    torch.nn.modules.module.register_module_forward_hook(after, always_call=True)
