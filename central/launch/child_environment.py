"""The environment of the children. The caller's own is never changed."""

from central.launch.machine import can_bind, cores_per_rank

# Handed to other hosts when the caller has set them. No secret: what is handed on stands in the list of processes.
FORWARDED = (
    *("HCL_CONFIG_PATH", "MAX_WAIT_ATTEMPTS", "LOG_LEVEL_ALL", "LOG_LEVEL_SYN_API", "LD_LIBRARY_PATH"),
    *("PYTORCH_MODULES_ROOT_PATH", "BUILD_ROOT_LATEST", "PYTHONPATH", "HABANA_LOGS", "GC_KERNEL_PATH"),
    *("HCCL_BOX_SIZE", "HCCL_OVER_TCP", "HCCL_COMM_ID", "HCCL_SOCKET_IFNAME", "SOCKET_NTHREADS"),
    *("NSOCK_PERTHREAD", "HCCL_DEFAULT_NIC_COUNT"),
    *("HCCL_OVER_OFI", "HABANA_VISIBLE_MODULES", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"),
    *("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE"),
    *("ENABLE_CONSOLE", "LOG_LEVEL_PT_FALLBACK"),
)
FORWARDED_PREFIX = "PT_HPU_"
OP_LIST_VARIABLES = ("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", "PT_HPU_AUTOCAST_FP32_OPS_LIST")
OURS = ("OMP_NUM_THREADS", "BERT_LAUNCHER", "PYTHONUNBUFFERED")


def child_variables(*, environ, root, device, mode, op_lists, master_port, threads, loopback) -> dict[str, str]:
    """Variables a child gets beside the caller's: where ranks meet, where our code is, what its device needs.

    `op_lists` are the two files of bf16 on hpu, or None; `threads` is for the cpu; `loopback`: ranks of one server.
    """
    variables = {
        "MASTER_ADDR": environ.get("MASTER_ADDR", "localhost"),
        "MASTER_PORT": master_port,
        "PYTHONPATH": ":".join(filter(None, [root, environ.get("PYTHONPATH")])),
    }
    if device == "cpu":
        variables["OMP_NUM_THREADS"] = environ.get("OMP_NUM_THREADS", str(threads))
    if device == "hpu":
        variables["PT_HPU_LAZY_MODE"] = "1" if mode == "lazy" else "0"
        if op_lists:
            variables |= zip(OP_LIST_VARIABLES, op_lists)
    if loopback:
        variables["GLOO_SOCKET_IFNAME"] = environ.get("GLOO_SOCKET_IFNAME", "lo")
    return variables


def forwarded_variables(environ, variables, master_address) -> tuple[tuple[str, str], ...]:
    """What other hosts get with -x: the names above as far as they are set, and the first host as meeting point."""
    merged = {**environ, **variables}
    names = [name for name in FORWARDED if name in merged]
    names += sorted(name for name in merged if name.startswith(FORWARDED_PREFIX))
    names += [name for name in OURS if name in variables]
    return (
        *((name, merged[name]) for name in names),
        ("MASTER_ADDR", master_address),
        ("MASTER_PORT", merged["MASTER_PORT"]),
    )


def threads_per_rank(topology, ranks_per_node, bound) -> int:
    """Threads of a cpu rank: the cores it is bound to, else its share of the node."""
    if bound and can_bind(topology, ranks_per_node):
        return cores_per_rank(topology, ranks_per_node)
    return max(1, topology.cores // ranks_per_node)
