"""Everything of Habana's that training uses: the one place that imports habana_frameworks, and only inside a call.

Written from the bridge's source and documentation, releases 1.19 to 1.23 (names and semantics: tests/hpu_emulator).
"""

import importlib.util
import os
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch

from central.gaudi_environment import LAZY_MODE, OP_LISTS, VISIBLE_MODULES
from central.runtime import rank as ranks
from central.runtime import tensor_files
from central.runtime.rank import Rank

COMPILE_BACKEND = "hpu_backend"  # torch.compile(model, backend=...), with PT_HPU_LAZY_MODE=0 only
MODULE_ID = "HLS_MODULE_ID"


def initialize(rank: Rank) -> torch.device:
    """Load the Habana plugin for this rank and its card. The card itself is acquired by the first tensor on it.

    Raises ValueError for a missing plugin, too few cards, and op lists with names that ATen does not have.
    """
    if importlib.util.find_spec("habana_frameworks") is None:
        raise ValueError(
            "device hpu: no package habana_frameworks is installed. Run inside a Gaudi PyTorch image, "
            "or choose the device cpu or cuda"
        )
    # With no value the plugin's own default counts, which is lazy up to release 1.20 and eager from 1.21 on.
    assert LAZY_MODE in os.environ, "central.runtime.environment.apply() comes before torch"
    _check_op_names()
    assign_card(rank)
    import habana_frameworks.torch.core  # noqa: F401  registers torch.hpu

    restore_torchs_files()
    if not torch.hpu.is_available():  # type: ignore[attr-defined]
        raise ValueError("device hpu: the Habana plugin counts no card: look at what hl-smi lists")
    count = torch.hpu.device_count()  # type: ignore[attr-defined]
    if count < rank.local_world_size:
        raise ValueError(
            f"device hpu: {rank.local_world_size} ranks on this server but {count} cards, "
            "and a card serves one process only: start fewer ranks"
        )
    return torch.device("hpu")


def load_compile_backend() -> None:
    """Load Habana's compiler, which torch would do at the first compilation.

    Where it compiles the backward pass, too, it sets how DistributedDataParallel exchanges gradients, and that counts
    for models wrapped later only: accelerate wraps first and then compiles.
    """
    from torch._dynamo.backends.registry import lookup_backend

    lookup_backend(COMPILE_BACKEND)


def restore_torchs_files() -> None:
    """Save and load as torch itself does: in lazy mode the plugin has put functions of its own there.

    Theirs write what only a lazy process reads, and their reader refuses what `safe_globals` allow. They serve tensors
    of the card; all that is saved here has been copied to the host before.
    """
    for place, name in (
        (torch, "save"), (torch, "load"), (torch.serialization, "_load"), (torch.serialization, "_legacy_load")
    ):  # fmt: skip
        setattr(place, name, tensor_files.stock(getattr(place, name)))


def assign_card(rank: Rank, environ: MutableMapping[str, str] = os.environ) -> None:
    """Name the card of this rank in HLS_MODULE_ID, as the plugin does under mpirun and torchrun, but not under SLURM.

    A value already there stays: it is someone's own order of cards. A run alone takes any free card.
    """
    if rank.world_size == 1:
        return
    ranks.export(rank, environ)
    cards = environ.get(VISIBLE_MODULES)
    if cards is None:
        environ.setdefault(MODULE_ID, str(rank.local_rank))
        return
    modules = cards.split(",")
    if len(modules) < rank.local_world_size:
        raise ValueError(
            f"{VISIBLE_MODULES}={cards} names {len(modules)} cards for {rank.local_world_size} ranks on this server: "
            "name one card per rank, or unset it"
        )
    environ.setdefault(MODULE_ID, modules[rank.local_rank])


def initialize_hccl(rank: Rank) -> None:
    """Register the backend hccl, through the plugin's own initialisation, and check that it counted ranks as we do."""
    from habana_frameworks.torch.distributed.hccl import initialize_distributed_hpu

    counted = initialize_distributed_hpu(rank.world_size, rank.rank, rank.local_rank)
    assert tuple(counted) == (rank.world_size, rank.rank, rank.local_rank), f"hccl counted {counted}, we {rank}"


def mark_step() -> None:
    """Run the operations gathered so far as one graph; nothing happens outside the lazy mode."""
    import habana_frameworks.torch.core as htcore

    htcore.mark_step()


def fused_lamb() -> type[torch.optim.Optimizer]:
    """LAMB in one kernel, with the state of `pretraining/lamb.py`. It clips the global norm itself."""
    from habana_frameworks.torch.hpex.optimizers import FusedLamb

    return FusedLamb


def fused_adamw() -> type[torch.optim.Optimizer]:
    """AdamW in one kernel. Its state_dict is laid out as torch's, so that a checkpoint resumes on any device."""
    from habana_frameworks.torch.hpex.optimizers import FusedAdamW

    class InterchangeableAdamW(FusedAdamW):
        def state_dict(self) -> dict[str, Any]:
            return as_torchs_adamw(super().state_dict())

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(as_fused_adamw(state_dict, self.param_groups))

    return InterchangeableAdamW


def as_torchs_adamw(saved: dict) -> dict:
    """The state_dict of FusedAdamW, which counts steps per group, with torch.optim.AdamW's count per parameter."""
    steps = {number: group.get("step", 0) for group in saved["param_groups"] for number in group["params"]}
    moments = {
        number: {**values, "step": torch.tensor(float(steps[number]))} for number, values in saved["state"].items()
    }
    groups = [{name: value for name, value in group.items() if name != "step"} for group in saved["param_groups"]]
    return {**saved, "state": moments, "param_groups": groups}


def as_fused_adamw(saved: dict, own_groups: Sequence[dict]) -> dict:
    """The state_dict of torch.optim.AdamW for FusedAdamW, whose `own_groups` have settings that torch's lack."""
    groups = []
    for own, group in zip(own_groups, saved["param_groups"], strict=True):
        steps = [int(saved["state"][number]["step"]) for number in group["params"] if number in saved["state"]]
        groups.append({**own, **group, "step": max(steps, default=0)})
    moments = {number: {**values, "step": 0} for number, values in saved["state"].items()}  # never counted there
    return {**saved, "state": moments, "param_groups": groups}


def fused_clip_norm() -> type:
    """Class of clippers: `FusedClipNorm(parameters, max_norm).clip_norm(parameters)`, made when the model is on hpu."""
    from habana_frameworks.torch.hpex.normalization import FusedClipNorm

    return FusedClipNorm


def is_first_gaudi() -> bool:
    """Whether the card is of the first generation, which has neither FusedSDPA nor fp16. Acquires the card."""
    import habana_frameworks.torch.utils.experimental as experimental

    return experimental._get_device_type() == experimental.synDeviceType.synDeviceGaudi


def fused_sdpa() -> Callable[..., torch.Tensor]:
    """`attend(query, key, value, additive_mask, dropout)` in one kernel, positional arguments only, [B, heads, S, d].

    Raises ValueError on the first Gaudi, which does not have it.
    """
    if is_first_gaudi():
        raise ValueError("the first Gaudi has no fused attention: leave out --fused_sdpa")
    from habana_frameworks.torch.hpex.kernels import FusedSDPA

    return FusedSDPA.apply


def wrap_in_graphs(model: torch.nn.Module) -> None:
    """Let the model's forward pass replay a graph per shape. Lazy mode only, and for inference only: no gradients."""
    from habana_frameworks.torch.hpu import wrap_in_hpu_graph

    wrap_in_hpu_graph(model)


class Reading:
    """Numbers on their way from the card, which nobody waits for unless `values` is asked for before they are there."""

    def __init__(self, numbers: torch.Tensor):
        mark_step()
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._copied = torch.hpu.Event()  # type: ignore[attr-defined]
        self._copied.record()

    def is_there(self) -> bool:
        return self._copied.query()

    def values(self) -> list[float]:
        self._copied.synchronize()
        return self._numbers.tolist()


def _check_op_names() -> None:
    """Refuse op lists with names that no ATen operator has; Habana's autocast would ignore them in silence."""
    problems = []
    for variable in OP_LISTS:
        if variable in os.environ:
            names = Path(os.environ[variable]).read_text().split()
            unknown = [name for name in names if not hasattr(torch.ops.aten, name)]
            problems += [f"{variable}: {os.environ[variable]} names {name!r}, which no ATen op has" for name in unknown]
    if problems:
        raise ValueError("\n".join(problems))
