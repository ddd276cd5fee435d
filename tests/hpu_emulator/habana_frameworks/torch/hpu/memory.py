"""Test double: memory of the card, in bytes."""

from hpu_emulator import state

__all__ = (
    "max_memory_allocated mem_get_info memory_allocated memory_reserved memory_stats memory_summary "
    "reset_peak_memory_stats"
).split()

_LIMIT = 96 * 2**30


def memory_stats(device=None) -> dict[str, int]:
    state.acquire()
    counted = state.counters()
    return {
        "Limit": _LIMIT,
        "InUse": counted["bytes"],
        "MaxInUse": counted["max_bytes"],
        "NumAllocs": counted["allocations"],
        "NumFrees": 0,
        "ActiveAllocs": 0,
        "MaxAllocSize": counted["max_bytes"],
        "TotalSystemAllocs": counted["allocations"],
        "TotalSystemFrees": 0,
        "TotalActiveAllocs": 0,
    }


def memory_allocated(device=None) -> int:
    return memory_stats()["InUse"]


def max_memory_allocated(device=None) -> int:
    return memory_stats()["MaxInUse"]


def memory_reserved(device=None) -> int:
    return memory_stats()["Limit"]


def mem_get_info(device=None) -> tuple[int, int]:
    return _LIMIT - memory_allocated(), _LIMIT


def memory_summary(device=None) -> str:
    return "\n".join(f"{name}: {value}" for name, value in memory_stats().items())


def reset_peak_memory_stats(device=None) -> None:
    state.library.hpu_emulator_reset_peak()
