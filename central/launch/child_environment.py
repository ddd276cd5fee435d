"""The environment of the children. The caller's own is never changed."""

import re
from collections.abc import Iterator, Mapping, Sequence

from central import gaudi_environment
from central.gaudi_environment import VISIBLE_MODULES
from central.launch.hosts import Layout
from central.launch.machine import Devices, MeetingPoint, Topology, can_bind, cores_per_rank
from central.meeting import TOLD

# Handed to other hosts where the caller has set them: what Habana's images set, which a session of sshd does not have,
# what the reference handed on (HABANA, PATH, LD_, HCCL), what the libraries below torch read, and the ways to the Hub.
FORWARDED = r"""(?x)\w*(HABANA|HCCL|PATH)\w*
    |(LD|PT|HCL|GC|TPC|SYN|LOG_LEVEL|ENABLE|FI|NCCL|GLOO|UCX|TCMALLOC|MALLOC|KMP|OMP|HF|TRANSFORMERS)_\w+|RDMA\w+
    |MAX_WAIT_ATTEMPTS|BUILD_ROOT_LATEST|SOCKET_NTHREADS|NSOCK_PERTHREAD
    |(?i:https?_proxy|all_proxy|no_proxy)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|SSL_CERT_FILE|SSL_CERT_DIR"""
# Never handed on: what other launchers tell their own ranks, and secrets, which would stand in the lists of processes.
OF_OTHER_LAUNCHERS = r"(OMPI|OPAL|PMIX|PRTE|PMI|SLURM|TORCHELASTIC)_\w+"
SECRETS = r"(?i)(?!HF_TOKEN_PATH$)\w*(TOKEN|SECRET|PASSW|CREDENTIAL|_KEY)\w*"
PASSWORD_IN_URL = r"\w+://[^/@\s]+@"
SUPPORTED_COUNTS = (1, 2, 4, 8)  # of cards in one job on a server
OURS = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", *TOLD, "PYTHONUNBUFFERED")

# What launchers and batch systems tell the processes that they start, or hear from the environment. A run of ours
# started from such a process is none of theirs.
RANK_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
FOREIGN = (
    r"(LOCAL_|GROUP_|ROLE_|NODE_)?(RANK|WORLD_SIZE)|(GROUP|ROLE)_(WORLD_SIZE|NAME)|TORCHELASTIC_.*|PET_.*"
    r"|OMPI_(COMM_WORLD|WORLD|UNIVERSE|APP|FILE|FIRST|NUM|ARGV|COMMAND).*|PRTE_LAUNCHED|PMIX_(?!MCA_|PREFIX).*|PMI_.*"
    r"|OMPI_MCA_(ess|orte_(app|bound|ess|hnp|jobfam|launch|local_daemon|num|precondition|top_session)).*"
    r"|OMPI_MCA_(initial_wdir|num_procs)"
    rf"|MPI_LOCAL.*|HYDRA_.*|MPLBACKEND|{'|'.join(TOLD)}"
)
# Settings of Open MPI that say where ranks go and how many fit there: the words of mpirun say it.
PLACING = r"(OMPI|PRTE|PMIX)_MCA_(\w*(hostfile|rankfile|dash_host|default_host)|ras|ras_.*|rmaps_.*)"
# Hosts and slots of batch systems, which mpirun takes by itself. What is of the job only stays.
ALLOCATION = r"SLURM_(?!CONF$|JOB_ID$|JOB_NAME$|CLUSTER_NAME$).*|PBS_.*|LSB_.*|PE_HOSTFILE"
# Where SLURM's hosts are used, its job is what mpirun asks, and only what would shape its own steps goes.
SLURM_STEP = (
    r"SLURM_(STEP_.*|STEPID|STEPMGR|PROCID|LOCALID|NODEID|GTIDS|TASK_PID|NTASKS.*|NPROCS|CPUS_PER_TASK|TRES_PER_TASK"
    r"|TASKS_PER_NODE|CPU_BIND.*|DISTRIBUTION|UMASK|PRIO_PROCESS)"
)
NO_HOSTFILE = dict.fromkeys(("OMPI_MCA_orte_default_hostfile", "PRTE_MCA_prte_default_hostfile"), "none")


def child_variables(
    *,
    environ: Mapping[str, str],
    root: str,
    devices: Devices,
    mode: str,
    op_lists: Sequence[str] | None,
    meeting_point: MeetingPoint,
    threads: int,
    loopback: bool,
) -> dict[str, str]:
    """Variables a child gets beside the caller's: where ranks meet, where our code is, what its device needs.

    `op_lists` are the two files of bf16 on hpu, or None; `threads` is for the cpu; `loopback`: ranks of one server.
    """
    device = devices.type
    variables = {
        "MASTER_ADDR": meeting_point.address,
        "MASTER_PORT": meeting_point.port,
        "PYTHONPATH": ":".join(filter(None, [root, environ.get("PYTHONPATH")])),
    }
    if device == "cpu":
        variables["OMP_NUM_THREADS"] = environ.get("OMP_NUM_THREADS", str(threads))
        # A thread that spins while it waits takes the others' core from them where something else runs, too; one that
        # sleeps at once is woken late. So it spins for about half a millisecond (docs/benchmarks.md).
        if "OMP_WAIT_POLICY" not in environ:
            variables["GOMP_SPINCOUNT"] = environ.get("GOMP_SPINCOUNT", "10000")
    if device == "hpu":
        variables |= gaudi_environment.variables(mode == "lazy", op_lists or ())
        if modules := modules_to_name(environ, devices):
            variables[VISIBLE_MODULES] = ",".join(map(str, modules))
    if loopback:
        variables["GLOO_SOCKET_IFNAME"] = environ.get("GLOO_SOCKET_IFNAME", "lo")
    return variables


def modules_to_name(environ: Mapping[str, str], devices: Devices) -> tuple[int, ...]:
    """Modules that ranks must be told: Habana's plugin counts from 0, and takes any free card where that is wrong."""
    known = environ.get(VISIBLE_MODULES) or devices.modules == tuple(range(len(devices.modules)))
    return () if known else devices.modules


def module_problems(environ: Mapping[str, str], devices: Devices) -> list[str]:
    """What is wrong with the modules that the caller names."""
    text = environ.get(VISIBLE_MODULES)
    if not text or devices.type != "hpu":
        return []
    names = text.split(",")
    if not all(name.isascii() and name.isdecimal() for name in names) or len(set(names)) < len(names):
        return [f"{VISIBLE_MODULES}={text}: expected different module ids between commas, such as 0,1,2,3"]
    absent = [name for name in names if devices.modules and int(name) not in devices.modules]
    shown = ", ".join(map(str, devices.modules))
    return [f"{VISIBLE_MODULES}={text}: no module {', '.join(absent)}; hl-smi shows {shown}"] if absent else []


def module_notes(environ: Mapping[str, str], devices: Devices, ranks_per_node: int) -> Iterator[str]:
    """Numbers of cards that Habana does not support, and modules that were found, one line each."""
    if modules := modules_to_name(environ, devices):
        yield f"the modules of this server are {','.join(map(str, modules))}, which ranks are told in {VISIBLE_MODULES}"
    named = environ[VISIBLE_MODULES].split(",") if environ.get(VISIBLE_MODULES) else modules
    for number, of_what in ((len(named), f"modules in {VISIBLE_MODULES}"), (ranks_per_node, "ranks on a server")):
        if number not in (0, *SUPPORTED_COUNTS):
            yield f"{number} {of_what}: Habana supports 1, 2, 4 and 8 cards of a server; others may fail to start"


def run_variables(
    *, run_id: str, layout: Layout, started_by: str, slots: int, daemon: Mapping[str, str]
) -> dict[str, str]:
    """What a run tells its ranks and its mpirun, and a dry run leaves out: whose ranks they are, and how many."""
    hosts = ",".join(layout.hosts)
    told = dict(zip(TOLD, (started_by, str(layout.world_size), str(layout.ranks_per_node), run_id, hosts)))
    if started_by != "mpirun":
        return told
    per_node = {"SLURM_TASKS_PER_NODE": f"{slots}(x{len(layout.hosts)})"}  # as SLURM writes equal numbers
    return {**told, **NO_HOSTFILE, **({**per_node, **daemon} if layout.in_slurm else {})}


def foreign_variables(environ: Mapping[str, str], keep_slurm: bool) -> tuple[str, ...]:
    """Variables of the caller's that its children must not see, as they tell of another run."""
    allocation = SLURM_STEP if keep_slurm else ALLOCATION
    return tuple(name for name in environ if any(re.fullmatch(kind, name) for kind in (FOREIGN, PLACING, allocation)))


def contradictions(environ: Mapping[str, str], layout: Layout) -> list[str]:
    """Assignments of the caller's that would make another run of this one."""
    expected = ("0", str(layout.world_size))
    found = [name for name in RANK_NAMES if environ.get(name, "0") not in expected]
    found += [name for name in sorted(environ) if name.startswith("PET_") or re.fullmatch(PLACING, name)]
    return [f"{name}={environ[name]}" for name in found]


def forwarded_variables(
    environ: Mapping[str, str], variables: Mapping[str, str], master_address: str
) -> tuple[tuple[str, str], ...]:
    """What other hosts get with -x: the names above as far as they are set, and the first host as meeting point."""
    merged = {**environ, **variables}
    names = sorted(name for name, value in merged.items() if _is_for_others(name) and not _is_secret(name, value))
    names += [name for name in OURS if name in variables and name not in names]
    return (
        *((name, merged[name]) for name in names),
        ("MASTER_ADDR", master_address),
        ("MASTER_PORT", merged["MASTER_PORT"]),
    )


def withheld_variables(environ: Mapping[str, str]) -> list[str]:
    """Names that other hosts would need, and do not get because they hold a secret."""
    return sorted(name for name, value in environ.items() if _is_for_others(name) and _is_secret(name, value))


def _is_for_others(name: str) -> bool:
    return bool(re.fullmatch(FORWARDED, name)) and not re.fullmatch(OF_OTHER_LAUNCHERS, name)


def _is_secret(name: str, value: str) -> bool:
    return bool(re.fullmatch(SECRETS, name) or re.search(PASSWORD_IN_URL, value))


def threads_per_rank(topology: Topology, ranks_per_node: int, bound: bool) -> int:
    """Threads of a cpu rank: the cores it is bound to, else its share of the node."""
    if bound and can_bind(topology, ranks_per_node):
        return cores_per_rank(topology, ranks_per_node)
    return max(1, topology.cores // ranks_per_node)
