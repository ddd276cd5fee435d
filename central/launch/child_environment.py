"""The environment of the children. The caller's own is never changed."""

import re

from central.launch.machine import can_bind, cores_per_rank

# Handed to other hosts where the caller has set them: what Habana's images set, which a session of sshd does not have,
# what the reference handed on (HABANA, PATH, LD_, HCCL), what the libraries below torch read, and the ways to the Hub.
FORWARDED = re.compile(
    r"""\w*(HABANA|HCCL|PATH)\w*
    |(LD|PT|HCL|GC|TPC|SYN|LOG_LEVEL|ENABLE|FI|NCCL|GLOO|UCX|TCMALLOC|MALLOC|KMP|OMP|HF|TRANSFORMERS)_\w+|RDMA\w+
    |MAX_WAIT_ATTEMPTS|BUILD_ROOT_LATEST|SOCKET_NTHREADS|NSOCK_PERTHREAD
    |(?i:https?_proxy|all_proxy|no_proxy)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|SSL_CERT_FILE|SSL_CERT_DIR""",
    re.VERBOSE,
)
# Never handed on: what other launchers tell their own ranks, and secrets, which would stand in the lists of processes.
OF_OTHER_LAUNCHERS = re.compile(r"(OMPI|OPAL|PMIX|PRTE|PMI|SLURM|TORCHELASTIC)_\w+")
SECRETS = re.compile(r"(?!HF_TOKEN_PATH$)\w*(TOKEN|SECRET|PASSW|CREDENTIAL|_KEY)\w*", re.IGNORECASE)
PASSWORD_IN_URL = re.compile(r"\w+://[^/@\s]+@")
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
    names = sorted(name for name, value in merged.items() if _is_for_others(name) and not _is_secret(name, value))
    names += [name for name in OURS if name in variables and name not in names]
    return (
        *((name, merged[name]) for name in names),
        ("MASTER_ADDR", master_address),
        ("MASTER_PORT", merged["MASTER_PORT"]),
    )


def withheld_variables(environ) -> list[str]:
    """Names that other hosts would need, and do not get because they hold a secret."""
    return sorted(name for name, value in environ.items() if _is_for_others(name) and _is_secret(name, value))


def _is_for_others(name) -> bool:
    return bool(FORWARDED.fullmatch(name)) and not OF_OTHER_LAUNCHERS.fullmatch(name)


def _is_secret(name, value) -> bool:
    return bool(SECRETS.fullmatch(name) or PASSWORD_IN_URL.match(value))


def threads_per_rank(topology, ranks_per_node, bound) -> int:
    """Threads of a cpu rank: the cores it is bound to, else its share of the node."""
    if bound and can_bind(topology, ranks_per_node):
        return cores_per_rank(topology, ranks_per_node)
    return max(1, topology.cores // ranks_per_node)
