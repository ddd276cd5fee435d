"""Test double: one stream of random numbers a process, known as device 0."""

import torch

from hpu_emulator import state

__all__ = "get_rng_state get_rng_state_all manual_seed manual_seed_all set_rng_state set_rng_state_all".split()


def _zero(device) -> None:
    index = device if isinstance(device, int) else torch.device(device).index
    if index not in (None, 0):
        raise RuntimeError(f"hpu has one random state, of device 0, not {device}")


def manual_seed(seed: int) -> None:
    state.library.hpu_emulator_seed(int(seed) & (2**64 - 1))


def manual_seed_all(seed: int) -> None:
    manual_seed(seed)


def get_rng_state(device="hpu") -> torch.Tensor:
    _zero(device)
    values = torch.empty(state.library.hpu_emulator_rng_state(None, 0, 0), dtype=torch.uint8)
    state.library.hpu_emulator_rng_state(values.data_ptr(), values.numel(), 0)
    return values


def set_rng_state(new_state: torch.Tensor, device="hpu") -> None:
    _zero(device)
    values = new_state.cpu().contiguous()
    state.library.hpu_emulator_rng_state(values.data_ptr(), values.numel(), 1)


def get_rng_state_all() -> list[torch.Tensor]:
    return [get_rng_state()]


def set_rng_state_all(new_states) -> None:
    set_rng_state(new_states[0])
