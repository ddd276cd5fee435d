"""A test double of a Gaudi server: no Gaudi is involved, and nothing it computes is a Gaudi result.

The package `habana_frameworks` beside it has the names and the manners of Habana's; this one holds what Habana's has
not: the device itself (`../device.cpp`, built by `build.py`) and what it is watched for (`state.py`).

Put tests/hpu_emulator on PYTHONPATH and tests/hpu_emulator/bin on PATH. Variables, with their defaults:
HPU_EMULATOR_CARDS (8), HPU_EMULATOR_GENERATION (2), HPU_EMULATOR_STATE (a folder, one per emulated server),
HPU_EMULATOR_WARMUP (optimizer steps before a new graph counts as a recompilation, 3), HPU_EMULATOR_REPORT (a file; each
process that used a card adds one line of JSON when it ends), HPU_EMULATOR_KILL (the process kills itself in this
optimizer step).
"""
