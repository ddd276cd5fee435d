"""Test double: the generation of the card, which must be acquired to tell it."""

import enum

from hpu_emulator import state


class synDeviceType(enum.IntEnum):
    synDeviceGaudi = 1
    synDeviceGaudi2 = 4
    synDeviceGaudi3 = 5


def _get_device_type() -> synDeviceType:
    state.acquire()
    return {1: synDeviceType.synDeviceGaudi, 2: synDeviceType.synDeviceGaudi2, 3: synDeviceType.synDeviceGaudi3}[
        state.generation
    ]
