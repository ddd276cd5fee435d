"""Commands as values, and how settings become them: values in, values out."""

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType

from central import gaudi_environment
from central.gaudi_environment import LAZY_MODE
from central.launch import child_environment, mpi
from central.launch.hosts import DEFAULT_SSH_PORT, Layout, idle_allocation
from central.launch.machine import Devices, MeetingPoint, Topology, can_bind
from central.launch.options import Common

Pairs = tuple[tuple[str, str], ...]  # variables and what they are set to


@dataclass(frozen=True)
class Command:
    """Whole words, and the variables added to the caller's environment; `unset` are left out of it.

    `name` is for messages. `again` are the words to go on with where it failed, from its newest checkpoint, and
    `if_failed` what the summary is told then.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    name: str
    unset: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    if_failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Commands in the order they run. Where there is a summary of them, one that fails does not stop the others."""

    commands: tuple[Command, ...]
    notes: tuple[str, ...] = ()
    summary: Command | None = None

    @property
    def all_commands(self) -> tuple[Command, ...]:
        return (*self.commands, *([self.summary] if self.summary else []))


def shell_line(command: Command) -> str:
    """The command as one line to paste into a shell."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in command.env]
    return " ".join([*assignments, shlex.join(command.argv)])


@dataclass(frozen=True)
class Target:
    """Where the commands will run. `mpirun` is None where it is not needed."""

    python: str
    root: str
    environ: Mapping[str, str]
    devices: Devices
    layout: Layout
    topology: Topology
    mpirun: mpi.Mpi | None
    meeting_point: MeetingPoint
    run_id: str = ""  # empty in a dry run
    extra_variables: tuple[tuple[str, str], ...] = ()

    @property
    def device(self) -> str:
        return self.devices.type

    @property
    def ssh_port(self) -> str:
        """Where other hosts are reached."""
        return self.environ.get("DOCKER_SSHD_PORT", DEFAULT_SSH_PORT)


def execution_mode(settings: Common, device: str) -> str:
    """lazy, eager or compile: as asked, else lazy for large; only hpu is ever lazy."""
    wanted = settings.mode or ("lazy" if settings.model_name_or_path == "large" else "eager")
    if wanted in ("graph", "compile"):
        return "compile"
    return wanted if device == "hpu" else "eager"


def compose(settings: Common, subcommand: ModuleType, target: Target) -> Plan:
    """Every command of a request, in order. `subcommand` is the module pretraining or finetuning."""
    mode = execution_mode(settings, target.device)
    variables = _variables(settings, subcommand, target, mode)
    launcher = _launcher_words(settings, target, variables)
    runs = subcommand.runs(
        settings, root=target.root, world_size=target.layout.world_size, device=target.device, mode=mode
    )
    # Ranks of many servers are told by mpirun's -x where they meet.
    by_mpirun = ("MASTER_ADDR", "MASTER_PORT") if target.layout.hosts else ()
    env = tuple((name, value) for name, value in variables.items() if name not in by_mpirun)
    unset = child_environment.foreign_variables(target.environ, keep_slurm=target.layout.in_slurm)
    commands = [
        Command((*launcher, *run.words), env, run.name, unset, (*launcher, *run.again), run.if_failed) for run in runs
    ]
    words = subcommand.summary_words(settings, target.root)
    summary = Command((target.python, *words), env, "summary", unset) if words else None
    notes = [*subcommand.notes(settings, target.layout.world_size), *_notes(settings, subcommand, target, mode)]
    return Plan(tuple(commands), tuple(notes), summary)


def _variables(settings: Common, subcommand: ModuleType, target: Target, mode: str) -> dict[str, str]:
    several_local_ranks = target.layout.world_size > 1 and not target.layout.hosts
    bf16 = settings.data_type == "bf16"
    variables = child_environment.child_variables(
        environ=target.environ,
        root=target.root,
        devices=target.devices,
        mode=mode,
        op_lists=_op_lists(settings, subcommand, target) if bf16 else None,
        meeting_point=target.meeting_point,
        threads=child_environment.threads_per_rank(
            target.topology, target.layout.ranks_per_node, bound=target.layout.world_size > 1 and not settings.no_mpirun
        ),
        loopback=several_local_ranks,
    )
    if target.run_id:
        variables |= child_environment.run_variables(
            run_id=target.run_id,
            layout=target.layout,
            started_by="mpirun" if target.mpirun else "torchrun" if target.layout.world_size > 1 else "alone",
            slots=mpi.slots(target.layout, target.topology),
            daemon=mpi.daemon_out_of_reach(target.mpirun, target.python),
        )
    return {**dict(target.extra_variables), **variables}


def _op_lists(settings: Common, subcommand: ModuleType, target: Target) -> list[str]:
    """The files of bf16 and fp32 operations: those given behind `--`, else our own."""
    files = dict(zip(("--hmp_bf16", "--hmp_fp32"), (f"{target.root}/{name}" for name in subcommand.OP_LISTS)))
    words = settings.script_args
    for word, following in zip(words, (*words[1:], "")):
        name, equals, value = word.partition("=")
        if name in files:
            files[name] = os.path.abspath(value if equals else following)
    return list(files.values())


def _launcher_words(settings: Common, target: Target, variables: Mapping[str, str]) -> list[str]:
    """What stands before the script: mpirun or torchrun where there are ranks, and the interpreter."""
    layout = target.layout
    if layout.hosts:
        assert target.mpirun
        forwarded = child_environment.forwarded_variables(target.environ, variables, layout.hosts[0])
        return [*mpi.many_servers(target.mpirun, layout, target.topology, target.ssh_port, forwarded), target.python]
    if layout.world_size == 1:
        return [target.python]
    if settings.no_mpirun:
        return mpi.torchrun(target.python, layout, target.meeting_point, target.run_id)
    assert target.mpirun
    return [*mpi.one_server(target.mpirun, layout, target.topology), target.python]


def _notes(settings: Common, subcommand: ModuleType, target: Target, mode: str) -> Iterator[str]:
    """What the user should know about the choices made, one line each."""
    layout, topology = target.layout, target.topology
    if settings.mode == "lazy" and mode != "lazy":
        yield f"--mode lazy is eager on {target.device}"
    if settings.no_mpirun and settings.mpi != "auto":
        yield f"--mpi {settings.mpi} has no effect beside --no_mpirun: torchrun starts the ranks"
    if target.mpirun and not can_bind(topology, layout.ranks_per_node):
        yield f"{layout.ranks_per_node} ranks of a node on its {topology.cores} cores: ranks are not bound to cores"
    if target.environ.get("MULTI_HLS_IPS") and layout.world_size > 1 and not layout.hosts:
        yield "MULTI_HLS_IPS counts with --process_per_node only: all ranks stay on this server"
    if idle := idle_allocation(layout, target.environ):
        yield idle
    if layout.hosts and target.mpirun and "MPI_ROOT" not in target.environ:
        yield f"--prefix {target.mpirun.prefix}: where Open MPI is on every host; MPI_ROOT names another folder"
    if layout.hosts:
        for name in child_environment.withheld_variables(target.environ):
            remedy = "; HF_TOKEN_PATH, a file that only you can read, is" if name == "HF_TOKEN" else ""
            yield f"{name} is not handed to other hosts, where the list of processes would show what it holds{remedy}"
    if target.device == "hpu":
        yield from child_environment.module_notes(target.environ, target.devices, layout.ranks_per_node)
    if target.device == "hpu" and settings.data_type == "bf16":
        for name, list_ in zip(gaudi_environment.OP_LISTS, _op_lists(settings, subcommand, target)):
            if target.environ.get(name, list_) != list_:
                yield f"{name}={target.environ[name]} is set, but this run takes {list_}; words after -- name others"
    if foreign := child_environment.contradictions(target.environ, layout):
        yield f"{', '.join(foreign)}: set for another run, and not passed on to the {layout.world_size} of this one"
    caller, met = target.environ.get("MASTER_ADDR"), (*layout.hosts, target.meeting_point.address)[0]
    if caller and layout.world_size > 1 and caller != met:
        yield f"MASTER_ADDR={caller} is set, but the ranks of this run meet on {met}"
    lazy = "1" if mode == "lazy" else "0"
    if target.device == "hpu" and target.environ.get(LAZY_MODE, lazy) != lazy:
        yield f"{LAZY_MODE}={target.environ[LAZY_MODE]} is set, but the mode of this run needs {lazy}"
