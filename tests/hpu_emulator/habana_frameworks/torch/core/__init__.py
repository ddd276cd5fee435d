"""Test double: `mark_step` ends a lazy graph; outside the lazy mode it does nothing."""

import habana_frameworks.torch

from hpu_emulator import state


def mark_step() -> None:
    if state.lazy:
        state.mark_step()
