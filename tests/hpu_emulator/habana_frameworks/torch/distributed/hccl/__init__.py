"""Test double: hccl over gloo on the same memory, and the ranks and cards that Habana's counts when it is imported."""

import os

import torch.distributed as dist


def initialize_distributed_hpu(world_size=None, rank=None, local_rank=None) -> tuple[int, int, int]:
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    if not all(name in os.environ for name in names) and "OMPI_COMM_WORLD_SIZE" in os.environ:
        for name in names:
            os.environ[name] = os.environ["OMPI_COMM_" + (name if name == "WORLD_SIZE" else f"WORLD_{name}")]
        os.environ.setdefault("MASTER_ADDR", "localhost")
        os.environ.setdefault("MASTER_PORT", "12345")
    if all(name in os.environ for name in names):
        world_size, rank, local_rank = (int(os.environ[name]) for name in names)
    else:
        world_size = 1 if world_size is None else world_size
        rank = -1 if rank is None else rank
        local_rank = -1 if local_rank is None else local_rank
    if world_size > 1:
        modules = os.environ.get("HABANA_VISIBLE_MODULES")
        card = modules.split(",")[local_rank] if modules else str(local_rank)
        os.environ.setdefault("HLS_MODULE_ID", card)
        os.environ["ID"] = str(rank)
    return world_size, rank, local_rank


def _over_gloo(store, rank, size, timeout):
    return dist.ProcessGroupGloo(store, rank, size, timeout)


initialize_distributed_hpu()
if dist.is_available():
    dist.Backend.register_backend("hccl", _over_gloo, devices=["hpu", "cpu"])
