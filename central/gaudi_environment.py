"""Variables of Gaudi's software: the launcher sets them for its ranks, a script started by hand sets its own."""

from collections.abc import Sequence

PREFIX = "PT_HPU_"  # of all that decide how torch uses the card
LAZY_MODE = "PT_HPU_LAZY_MODE"  # 1, or 0: left unset it means something else in each release
AUTOLOAD = "PT_HPU_AUTOLOAD"
COMPILED_AUTOGRAD = "PT_HPU_ENABLE_COMPILED_AUTOGRAD"
OP_LISTS = ("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", "PT_HPU_AUTOCAST_FP32_OPS_LIST")  # files: bf16 and fp32
VISIBLE_MODULES = "HABANA_VISIBLE_MODULES"  # ids of the cards that ranks may use, between commas


def variables(lazy: bool, op_lists: Sequence[str]) -> dict[str, str]:
    """What the plugin reads once, while torch is being imported. `op_lists`: two files, "" for Habana's own list."""
    files = {name: file for name, file in zip(OP_LISTS, op_lists) if file}
    return {LAZY_MODE: "1" if lazy else "0", **files}
