"""Test double of torch.hpu. What acquires the card on a Gaudi acquires it here; there is no `empty_cache`."""

import contextlib
import os

import torch
from habana_frameworks.torch.hpu.memory import *  # noqa: F403
from habana_frameworks.torch.hpu.random import *  # noqa: F403

from hpu_emulator import state

_recompute_sdp = False


def is_available() -> bool:
    return device_count() > 0


def device_count() -> int:
    visible = os.environ.get("HABANA_VISIBLE_MODULES")
    return len(visible.split(",")) if visible else state.cards


def init() -> None:
    state.acquire()


def _lazy_init() -> None:
    """torch calls it before the first tensor on the card."""
    state.acquire()


def current_device() -> int:
    state.acquire()
    return 0


def set_device(device) -> None:
    """Without HLS_MODULE_ID and HABANA_VISIBLE_MODULES it pins a process to module 0, as Habana's does."""
    if state.module_id is None and not {"HLS_MODULE_ID", "HABANA_VISIBLE_MODULES"} & set(os.environ):
        os.environ["HLS_MODULE_ID"] = "0"


def get_device_name(device=None) -> str:
    state.acquire()
    return "GAUDI" if state.generation == 1 else f"GAUDI{state.generation}"


def get_device_properties(device=None):
    state.acquire()
    return get_device_name()


def is_bf16_supported() -> bool:
    return True


def synchronize(device=None) -> None:
    state.synchronize()


def enable_recompute_sdp(enabled: bool = True) -> None:
    global _recompute_sdp
    _recompute_sdp = enabled


@contextlib.contextmanager
def sdp_kernel(enable_recompute: bool = False):
    previous = _recompute_sdp
    enable_recompute_sdp(enable_recompute)
    yield
    enable_recompute_sdp(previous)


@contextlib.contextmanager
def device(index):
    yield


class Stream:
    """All work of the emulated card is done when a call returns."""

    def __init__(self, device=None, priority=0):
        pass

    def synchronize(self) -> None:
        state.wait("Stream.synchronize")

    def wait_stream(self, stream) -> None:
        pass

    def record_event(self, event=None):
        return event or Event()

    def wait_event(self, event) -> None:
        pass


class Event:
    """Has not come to pass when it is first asked for after it was recorded, as on a busy card."""

    def __init__(self, enable_timing=False):
        self._asked = 0

    def record(self, stream=None) -> None:
        self._asked = 0

    def synchronize(self) -> None:
        if not self._asked > 1:
            state.wait("Event.synchronize")

    def query(self) -> bool:
        self._asked += 1
        if self._asked > 1:
            state.library.hpu_emulator_make_late_copies()
        return self._asked > 1


def current_stream(device=None) -> Stream:
    return Stream()


def default_stream(device=None) -> Stream:
    return Stream()


@contextlib.contextmanager
def stream(stream):
    yield


def wrap_in_hpu_graph(
    module,
    asynchronous=False,
    disable_tensor_cache=False,
    hash_with_views=False,
    dry_run=False,
    max_graphs=None,
):
    """Replaces `forward`: a graph per shape of the inputs, replayed. What comes out has no gradient, and is
    overwritten by the next call of the same shape. Lazy mode only, as Habana's."""
    if not state.lazy:
        raise AttributeError("torch.hpu has no 'wrap_in_hpu_graph' outside the lazy mode")
    forward, kept = module.forward, {}

    def replayed(*args, **kwargs):
        if torch.is_grad_enabled():
            raise RuntimeError("a graph for inference was asked for gradients")
        key = tuple((name, getattr(value, "shape", value)) for name, value in (*enumerate(args), *kwargs.items()))
        if key not in kept:
            state.inference_graphs.append(key)
            kept[key] = forward(*args, **kwargs)
            return kept[key]
        state.library.hpu_emulator_compiled_graph(1)
        try:
            found = forward(*args, **kwargs)
            for name, tensor in kept[key].items():
                tensor.copy_(found[name])
        finally:
            state.library.hpu_emulator_compiled_graph(-1)
        return kept[key]

    module.forward = replayed
    return module


def _is_in_bad_fork() -> bool:
    return False


def __getattr__(name: str):
    if name == "metrics":
        import habana_frameworks.torch.hpu.metrics as metrics

        return metrics
    raise AttributeError(f"torch.hpu has no {name!r}")


assert torch.device("hpu").type == "hpu"
