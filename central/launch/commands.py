"""Commands as values, and how settings become them: values in, values out."""

import os
import shlex
from dataclasses import dataclass

from central.launch import child_environment, mpi
from central.launch.hosts import DEFAULT_SSH_PORT, Layout
from central.launch.machine import Devices, MeetingPoint, Topology, can_bind


@dataclass(frozen=True)
class Command:
    """Whole words, and the variables added to the caller's environment; `unset` are left out of it.

    `name` is for messages.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    name: str
    unset: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Commands in the order they run. `keep_going`: one that fails does not stop the others; the last sums them up."""

    commands: tuple[Command, ...]
    notes: tuple[str, ...] = ()
    keep_going: bool = False


def shell_line(command) -> str:
    """The command as one line to paste into a shell."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in command.env]
    return " ".join([*assignments, shlex.join(command.argv)])


@dataclass(frozen=True)
class Place:
    """Where the commands will run. `mpirun` is None where it is not needed."""

    python: str
    root: str
    environ: dict[str, str]
    devices: Devices
    layout: Layout
    topology: Topology
    mpirun: mpi.Mpi | None
    meeting_point: MeetingPoint
    run_id: str = ""  # empty in a dry run
    extra_variables: tuple[tuple[str, str], ...] = ()

    @property
    def device(self):
        return self.devices.type


def execution_mode(settings, device) -> str:
    """lazy, eager or compile: as asked, else lazy for large; only hpu is ever lazy."""
    wanted = settings.mode or ("lazy" if settings.model_name_or_path == "large" else "eager")
    if wanted in ("graph", "compile"):
        return "compile"
    return wanted if device == "hpu" else "eager"


def compose(settings, subcommand, place) -> Plan:
    """Every command of a request, in order. `subcommand` is the module pretraining or finetuning."""
    mode = execution_mode(settings, place.device)
    variables = _variables(settings, subcommand, place, mode)
    launcher = _launcher_words(settings, place, variables)
    scripts = subcommand.script_words(
        settings, root=place.root, world_size=place.layout.world_size, device=place.device, mode=mode
    )
    env = tuple(variables.items())
    unset = child_environment.foreign_variables(place.environ, keep_slurm=place.layout.in_slurm)
    commands = [Command((*launcher, *words), env, name, unset) for name, words in scripts]
    summary = subcommand.summary_words(settings, place.root)
    if summary:
        commands.append(Command((place.python, *summary), env, "summary", unset))
    notes = [*subcommand.notes(settings, place.layout.world_size), *_notes(settings, subcommand, place, mode)]
    return Plan(tuple(commands), tuple(notes), keep_going=bool(summary))


def _variables(settings, subcommand, place, mode):
    several_local_ranks = place.layout.world_size > 1 and not place.layout.hosts
    bf16 = settings.data_type == "bf16"
    variables = child_environment.child_variables(
        environ=place.environ,
        root=place.root,
        devices=place.devices,
        mode=mode,
        op_lists=_op_lists(settings, subcommand, place) if bf16 else None,
        meeting_point=place.meeting_point,
        threads=child_environment.threads_per_rank(
            place.topology, place.layout.ranks_per_node, bound=place.layout.world_size > 1 and not settings.no_mpirun
        ),
        loopback=several_local_ranks,
    )
    if place.run_id:
        variables |= child_environment.run_variables(
            run_id=place.run_id,
            layout=place.layout,
            started_by="mpirun" if place.mpirun else "torchrun" if place.layout.world_size > 1 else "alone",
            slots=mpi.slots(place.layout, place.topology),
            daemon=mpi.daemon_out_of_reach(place.mpirun, place.python),
        )
    return {**dict(place.extra_variables), **variables}


def _op_lists(settings, subcommand, place):
    """The files of bf16 and fp32 operations: those given behind `--`, else our own."""
    files = dict(zip(("--hmp_bf16", "--hmp_fp32"), (f"{place.root}/{name}" for name in subcommand.OP_LISTS)))
    words = settings.script_args
    for word, following in zip(words, (*words[1:], "")):
        name, equals, value = word.partition("=")
        if name in files:
            files[name] = os.path.abspath(value if equals else following)
    return list(files.values())


def _launcher_words(settings, place, variables):
    """What stands before the script: mpirun or torchrun where there are ranks, and the interpreter."""
    layout = place.layout
    if layout.hosts:
        remote = mpi.Remote(
            network=mpi.network_of(layout.hosts[0]),
            ssh_port=place.environ.get("DOCKER_SSHD_PORT", DEFAULT_SSH_PORT),
            variables=child_environment.forwarded_variables(place.environ, variables, layout.hosts[0]),
        )
        return [*mpi.many_servers(place.mpirun, layout, place.topology, remote), place.python]
    if layout.world_size == 1:
        return [place.python]
    if settings.no_mpirun:
        return mpi.torchrun(place.python, layout, place.meeting_point, place.run_id)
    return [*mpi.one_server(place.mpirun, layout, place.topology), place.python]


def _notes(settings, subcommand, place, mode):
    """What the user should know about the choices made, one line each."""
    layout, topology = place.layout, place.topology
    if settings.mode == "lazy" and mode != "lazy":
        yield f"--mode lazy is eager on {place.device}"
    if settings.no_mpirun and settings.mpi != "auto":
        yield f"--mpi {settings.mpi} has no effect beside --no_mpirun: torchrun starts the ranks"
    if place.mpirun and not can_bind(topology, layout.ranks_per_node):
        yield f"{layout.ranks_per_node} ranks of a node on its {topology.cores} cores: ranks are not bound to cores"
    if place.environ.get("MULTI_HLS_IPS") and layout.world_size > 1 and not layout.hosts:
        yield "MULTI_HLS_IPS counts with --process_per_node only: all ranks stay on this server"
    if layout.hosts:
        for name in child_environment.withheld_variables(place.environ):
            remedy = "; HF_TOKEN_PATH, a file that only you can read, is" if name == "HF_TOKEN" else ""
            yield f"{name} is not handed to other hosts, where the list of processes would show what it holds{remedy}"
    if place.device == "hpu":
        yield from child_environment.module_notes(place.environ, place.devices, layout.ranks_per_node)
    if place.device == "hpu" and settings.data_type == "bf16":
        for name, list_ in zip(child_environment.OP_LIST_VARIABLES, _op_lists(settings, subcommand, place)):
            if place.environ.get(name, list_) != list_:
                yield f"{name}={place.environ[name]} is set, but this run takes {list_}; words after -- name others"
    if foreign := child_environment.contradictions(place.environ, layout):
        yield f"{', '.join(foreign)}: set for another run, and not passed on to the {layout.world_size} of this one"
    caller, met = place.environ.get("MASTER_ADDR"), (*layout.hosts, place.meeting_point.address)[0]
    if caller and layout.world_size > 1 and caller != met:
        yield f"MASTER_ADDR={caller} is set, but the ranks of this run meet on {met}"
    lazy = "1" if mode == "lazy" else "0"
    if place.device == "hpu" and place.environ.get("PT_HPU_LAZY_MODE", lazy) != lazy:
        yield f"PT_HPU_LAZY_MODE={place.environ['PT_HPU_LAZY_MODE']} is set, but the mode of this run needs {lazy}"
