"""Test double: the mode, read once."""

from hpu_emulator import state


def is_lazy() -> bool:
    return state.lazy
