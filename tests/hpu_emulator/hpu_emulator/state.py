"""What this process does with its emulated card: which card, which graphs, which waits, and a report of them at exit.

Refuses what Gaudi forbids (RuntimeError) and counts what it charges for.
"""

import atexit
import ctypes
import fcntl
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from hpu_emulator import build

# All that Habana's software is known to read (../README.md); another PT_HPU_ name is a typing error.
VARIABLES = {
    "PT_HPU_LAZY_MODE",
    "PT_HPU_AUTOLOAD",
    "PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST",
    "PT_HPU_AUTOCAST_FP32_OPS_LIST",
    "PT_HPU_FORCE_TANH_FOR_GELU",
    "PT_HPU_METRICS_FILE",
    "PT_HPU_METRICS_DUMP_TRIGGERS",
    "PT_HPU_RECIPE_CACHE_CONFIG",
    "PT_HPU_MAX_COMPOUND_OP_SIZE",
    "PT_HPU_ENABLE_REFINE_DYNAMIC_SHAPES",
    "PT_HPU_ENABLE_LAZY_COLLECTIVES",
    "PT_HPU_GPU_MIGRATION",
    "PT_HPU_WEIGHT_SHARING",
    "PT_HPU_EAGER_PIPELINE_ENABLE",
    "PT_HPU_EAGER_4_STAGE_PIPELINE_ENABLE",
    "PT_HPU_REPLACE_ADAM_ADAMW",
    "PT_HPU_ENABLE_COMPILED_AUTOGRAD",
}
ACQUIRE, HOST_SYNC, RECOMPILATION = 0, 1, 2
COUNTERS = (
    *("operations", "graphs", "recompilations", "host_syncs", "mark_steps"),
    *("bytes", "max_bytes", "allocations"),
)
HERE = str(Path(__file__).resolve().parents[1])
TORCH = str(Path(torch.__file__).parent)
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p)

lazy = os.environ.get("PT_HPU_LAZY_MODE") == "1"
cards = int(os.environ.get("HPU_EMULATOR_CARDS", 8))
generation = int(os.environ.get("HPU_EMULATOR_GENERATION", 2))
killed_at = int(os.environ.get("HPU_EMULATOR_KILL", 0))
warmup = int(os.environ.get("HPU_EMULATOR_WARMUP", 3))

library: ctypes.CDLL
module_id: int | None = None  # the card this process holds
micro_steps = 0  # calls of backward
optimizer_steps = 0
saved_device_tensors = 0  # storages of the card that torch.save wrote
# How often each (what, optimizer steps and micro-steps done before, where in the program) came.
host_syncs: dict[tuple[str, int, int, str], int] = {}
recompilations: dict[tuple[str, int, int, str], int] = {}
missing_mark_steps: list[dict] = []
recompile_limits = 0  # how often torch._dynamo gave up compiling and went on in eager
dynamic_graphs = 0  # compiled for sizes that are not known
inference_graphs: list[tuple] = []  # shapes of the inputs of those captured
_timed = False  # the card has been waited for before
_unmarked: set[str] = set()  # "forward", "backward", "step": done since the last mark_step
_held = None  # the open lock file of the card


def start() -> None:
    """Load the device into this process; the environment is read now and never again."""
    global library
    unknown = sorted(name for name in os.environ if name.startswith("PT_HPU_") and name not in VARIABLES)
    if unknown:
        raise RuntimeError(f"no Habana software reads {', '.join(unknown)}")
    global _environment
    _environment = _gaudi_environment()
    library = ctypes.CDLL(str(build.library()))
    library.hpu_emulator_pending.restype = ctypes.c_uint64
    library.hpu_emulator_seed.argtypes = [ctypes.c_uint64]
    library.hpu_emulator_rng_state.restype = ctypes.c_size_t
    library.hpu_emulator_rng_state.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.hpu_emulator_start(_callback, lazy, os.environ.get("PT_HPU_FORCE_TANH_FOR_GELU", "1") not in ("0", "false"))
    atexit.register(_report)
    # Autograd's thread drops the last pass after `backward` has returned. Where Python is ending by then it aborts the
    # process; asleep, this thread lets it finish.
    atexit.register(time.sleep, 0.05)


def counters() -> dict[str, int]:
    values = (ctypes.c_uint64 * len(COUNTERS))()
    library.hpu_emulator_counters(values)
    return dict(zip(COUNTERS, values))


def acquire() -> None:
    """Take the card, as the first tensor on it would."""
    error = ctypes.create_string_buffer(1000)
    library.hpu_emulator_acquire(error, len(error))
    if error.value:
        raise RuntimeError(error.value.decode())


def wait(what: str) -> None:
    """The host waits until the card has done all it was given."""
    acquire()
    library.hpu_emulator_host_sync(what.encode())


def synchronize() -> None:
    """The host waits. Between two such calls a program may be timing: what it drops there was never computed."""
    wait("synchronize")
    name = ctypes.create_string_buffer(200)
    library.hpu_emulator_dropped(name, len(name))
    global _timed
    if _timed and name.value:
        raise RuntimeError(
            f"the result of {name.value.decode()} was dropped before mark_step: lazy mode never computes it, and what "
            "is timed here is nothing"
        )
    _timed = True


def refuse_pointer(device: torch.device) -> None:
    """In lazy mode a tensor may have no memory yet, or that of another, while work is under way."""
    if lazy and device.type == "hpu":
        raise RuntimeError("a lazy tensor was asked for its address, which may be stale or null")


def mark_step() -> None:
    _unmarked.clear()
    library.hpu_emulator_mark_step()


def before_forward() -> None:
    """A forward pass begins: in lazy mode a mark has ended the one before, be it that someone waited for it already."""
    if lazy and "forward" in _unmarked:
        _miss("a forward pass", "forward")
    _unmarked.add("forward")


def before_backward() -> None:
    global micro_steps
    if lazy and "step" in _unmarked:
        _miss("a step of the optimizer", "step")
    if lazy and "backward" in _unmarked:
        _miss("a backward pass", "backward")
    micro_steps += 1


def after_backward() -> None:
    _unmarked.add("backward")


def before_step(*_) -> None:
    if lazy and "backward" in _unmarked:
        _miss("a backward pass", "backward")


def after_step(*_) -> None:
    global optimizer_steps
    optimizer_steps += 1
    _unmarked.add("step")
    if optimizer_steps == warmup:
        library.hpu_emulator_set_warm(1)
    if optimizer_steps == killed_at:
        _report()
        os.kill(os.getpid(), signal.SIGKILL)


def count_saved_tensor(storage) -> None:
    """A tagger of torch.serialization: every storage that is saved passes it. None lets the next tagger answer."""
    global saved_device_tensors
    if lazy and storage.device.type == "hpu":
        raise RuntimeError("torch's own save was given a tensor of a lazy card, which has no storage to read")
    saved_device_tensors += storage.device.type == "hpu"


def _miss(what: str, mark: str) -> None:
    _unmarked.discard(mark)
    missing_mark_steps.append({"after": what, "micro_step": micro_steps, "where": _where()})


def _gaudi_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("PT_HPU_")}


def _where() -> str:
    """The innermost line of Python outside torch and outside this emulator, with its caller."""
    frame = sys._getframe()
    lines = []
    while frame is not None and len(lines) < 3:
        file = frame.f_code.co_filename
        if not file.startswith((HERE, TORCH, "<frozen")) and "ctypes" not in file:
            lines.append(f"{os.path.basename(file)}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(lines) or "a thread of autograd"


@CALLBACK
def _callback(event: int, text: bytes) -> int:
    if event == ACQUIRE:
        reason = _take_card()
        if reason:
            library.hpu_emulator_refuse(reason.encode())
            return 1
        return 0
    found = (text.decode(), optimizer_steps, micro_steps, _where())
    counts = host_syncs if event == HOST_SYNC else recompilations
    counts[found] = counts.get(found, 0) + 1
    return 0


def _take_card() -> str:
    """Lock this process's card. Returns the reason why it cannot be had, empty when it is ours."""
    global module_id, _held
    if "PT_HPU_LAZY_MODE" not in os.environ:
        return "PT_HPU_LAZY_MODE is not set: its default differs between Habana's releases"
    if _gaudi_environment() != _environment:
        return "a PT_HPU_ variable was changed after the Habana plugin had been loaded, which is too late"
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    visible = os.environ.get("HABANA_VISIBLE_MODULES")
    wanted = [int(card) for card in visible.split(",")] if visible else list(range(cards))
    if "HLS_MODULE_ID" in os.environ:
        chosen = int(os.environ["HLS_MODULE_ID"])
        if chosen not in wanted:
            return f"HLS_MODULE_ID={chosen} is not among the modules {wanted}"
        wanted = [chosen]
    elif world_size > 1:
        return f"HLS_MODULE_ID is not set in a run of {world_size} ranks: cards and ranks would not line up"
    folder = Path(os.environ.get("HPU_EMULATOR_STATE", Path(tempfile.gettempdir()) / f"hpu_emulator_{os.getuid()}"))
    folder.mkdir(parents=True, exist_ok=True)
    for card in wanted:
        file = open(folder / f"card_{card}", "w")  # noqa: SIM115  held until the process ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        file.write(str(os.getpid()))
        file.flush()
        module_id, _held = card, file
        return ""
    return f"device acquire failed: a card serves one process only, and module {wanted} is taken"


def report() -> dict:
    """All that was counted, as the line that the report file gets."""
    return {
        "emulator": "test double: not a result of a Gaudi",
        "rank": int(os.environ.get("RANK", 0)),
        "pid": os.getpid(),
        "argv": sys.argv,
        "mode": "lazy" if lazy else "eager",
        "module_id": module_id,
        "warmup_optimizer_steps": warmup,
        "micro_steps": micro_steps,
        "optimizer_steps": optimizer_steps,
        **counters(),
        "pending_operations": library.hpu_emulator_pending(),
        "saved_device_tensors": saved_device_tensors,
        "recompile_limits": recompile_limits,
        "dynamic_graphs": dynamic_graphs,
        "inference_graphs": len(inference_graphs),
        "missing_mark_steps": missing_mark_steps,
        "recompiled": _listed(recompilations),
        "synced": _listed(host_syncs),
    }


def _listed(counts: dict) -> list[dict]:
    names = ("what", "optimizer_step", "micro_step", "where", "count")
    return [dict(zip(names, (*found, count))) for found, count in counts.items()]


def _report() -> None:
    file = os.environ.get("HPU_EMULATOR_REPORT")
    if file and module_id is not None and _owner == os.getpid():
        with open(file, "a") as lines:
            lines.write(json.dumps(report()) + "\n")


_environment: dict[str, str] = {}
_owner = os.getpid()
