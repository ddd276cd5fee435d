"""Test double: what importing Habana's package changes in torch, and the hooks by which the emulator watches a loop."""

import functools
import logging
import pickle

import torch
import torch.distributed as dist
from habana_frameworks.torch.utils import _weights_only_unpickler
from torch.distributed.constants import default_pg_timeout
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from hpu_emulator import state

LAZY_DEFAULT_PROTOCOL = 4


def _overwrite() -> None:
    _seed_the_card_too()
    if state.lazy:
        _save_and_load_otherwise()
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


def _save_and_load_otherwise() -> None:
    """Lazy mode: files get another pickle protocol, and the weights-only reader is Habana's own.

    What stood there before is the `__wrapped__` of each. Tensors are copied to the host first: one of a lazy card has
    no storage that torch's own functions could read.
    """
    save, load = torch.save, torch.load

    @functools.wraps(save)
    def wrap_save(
        obj,
        f,
        pickle_module=pickle,
        pickle_protocol=LAZY_DEFAULT_PROTOCOL,
        _use_new_zipfile_serialization=True,
        _disable_byteorder_record=False,
    ):
        options = (pickle_module, pickle_protocol, _use_new_zipfile_serialization, _disable_byteorder_record)
        return save(_mapped(lambda tensor: tensor.data.detach().clone().cpu(), obj), f, *options)

    @functools.wraps(load)
    def wrap_load(f, map_location=None, pickle_module=pickle, weights_only=False, mmap=None, **pickle_load_args):
        if weights_only:
            pickle_module = None
        found = load(f, "cpu", pickle_module, weights_only=weights_only, mmap=mmap, **pickle_load_args)
        if isinstance(map_location, dict):
            map_location = map_location.get("cpu")
        if map_location is None or map_location == "cpu":
            return found
        if callable(map_location):
            return _mapped(lambda tensor: map_location(tensor, tensor.device), found)
        return _mapped(lambda tensor: tensor.to(map_location), found)

    torch.save, torch.load = wrap_save, wrap_load
    for name in ("_load", "_legacy_load"):
        setattr(torch.serialization, name, _with_habanas_reader(getattr(torch.serialization, name)))


def _mapped(change, value):
    """The same dicts, lists and tuples as plain ones, with every tensor in them changed."""
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, dict):
        return {key: _mapped(change, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(_mapped(change, each) for each in value)
    return change(value) if isinstance(value, torch.Tensor) else value


def _with_habanas_reader(read):
    @functools.wraps(read)
    def wrapped(file, map_location, pickle_module, *args, **kwargs):
        stock = pickle_module.__name__ == "torch._weights_only_unpickler"
        return read(file, map_location, _weights_only_unpickler if stock else pickle_module, *args, **kwargs)

    return wrapped


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
        if kwargs.get("async_op") and collective.__name__ == "all_reduce":
            return _Late(collective, *args, **kwargs)
        if collective.__name__ in ("all_gather_into_tensor", "reduce_scatter_tensor"):  # hccl counts, gloo wants shapes
            args = [value.view(-1) if isinstance(value, torch.Tensor) else value for value in args]
        return collective(*args, **kwargs)

    return checked


class _Late:
    """A collective under way. Its future is complete when it is made, as hccl's; the result is there after `wait`."""

    def __init__(self, collective, tensor, *args, **kwargs):
        self._tensor, self._result = tensor, tensor.clone()
        self._work = collective(self._result, *args, **kwargs)
        tensor.fill_(float("nan"))

    def wait(self, timeout=None) -> bool:
        done = self._work.wait()
        self._tensor.copy_(self._result)
        return done

    def get_future(self) -> torch.futures.Future:
        future = torch.futures.Future()
        future.set_result([self._tensor])
        return future


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
        _watch_addresses()
    _watch_dynamo()


def _watch_addresses() -> None:
    for kind in (torch.Tensor, torch.UntypedStorage):
        kind.data_ptr = _refused_while_gathering(kind.data_ptr)


def _refused_while_gathering(data_ptr):
    @functools.wraps(data_ptr)
    def checked(self):
        state.refuse_pointer(self.device)
        return data_ptr(self)

    return checked


class _GaveUp(logging.Handler):
    """torch._dynamo says in its log only that it runs in eager from here on."""

    def emit(self, record) -> None:
        state.recompile_limits += "recompile_limit" in record.getMessage()


def _watch_dynamo() -> None:
    logging.getLogger("torch._dynamo.convert_frame").addHandler(_GaveUp(logging.WARNING))


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
