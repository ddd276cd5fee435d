"""From settings to a plan: look at this machine, find everything that would stop the run, compose."""

import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

from central import meeting
from central.errors import BadRequest, nearest
from central.files import ROOT
from central.launch import commands, machine, mpi
from central.launch.commands import Pairs, Plan, Target
from central.launch.hosts import Layout, plan_layout
from central.launch.options import Common
from central.models import MODELS
from central.streams import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from central.launch.processes import Captured

# What only a run sets: lines come as they are written.
DOWNLOAD_SECONDS = 3600
RUN_VARIABLES = (("PYTHONUNBUFFERED", "1"),)


def prepare(
    subcommand: ModuleType,
    settings: Common,
    environ: Mapping[str, str],
    file_variables: Pairs,
    notes: Sequence[str] = (),
) -> tuple[Target, Plan]:
    """Where a request will run and its commands; BadRequest with everything that would stop it.

    `notes` are said behind the device, whether it can run or not.
    """
    problems: list[str] = []
    layout = _layout(settings, environ, problems)
    target = look_around(settings, layout, environ, file_variables, problems)
    for note in notes:
        say(note)
    try:
        settings = subcommand.located(settings, lambda model, names: _fetch(settings, model, names))
    except BadRequest as error:
        problems += error.problems
    problems += subcommand.problems(settings, layout.world_size)
    if not settings.dry_run:
        from central.launch import preflight, processes

        problems += preflight.problems(settings, subcommand, target, processes.capture_all)
    if problems:
        raise BadRequest(problems)
    return target, commands.compose(settings, subcommand, target)


def _fetch(settings: Common, model: str, names: Sequence[str]) -> str:
    """The folder with these files of a model of the Hub. A dry run has the id stand for it."""
    if settings.dry_run:
        return model
    if model.startswith((os.sep, ".")):
        raise BadRequest(f"--model_name_or_path {model}: no such folder")
    say(f"{model}: no folder here; asking the Hub for it")
    program = (
        "import sys, huggingface_hub as hub; print(hub.snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:]))"
    )
    answer = _capture([sys.executable, "-c", program, model, *names], timeout=DOWNLOAD_SECONDS)
    if answer.status != 0:
        from_hub = f"nor to be had from the Hub ({answer.complaint}){nearest(model, MODELS)}"
        raise BadRequest(f"--model_name_or_path {model}: no folder here, {from_hub}")
    return answer.stdout.strip().splitlines()[-1]


def look_around(
    settings: Common, layout: Layout, environ: Mapping[str, str], file_variables: Pairs, problems: list[str]
) -> Target:
    """This machine, and what of it the run uses. A dry run asks for nothing but the version of mpirun."""
    run_id = "" if settings.dry_run else os.urandom(8).hex()
    return Target(
        python=sys.executable,
        root=ROOT,
        environ=environ,
        devices=_devices(settings, environ),
        layout=layout,
        topology=machine.node_topology(settings),
        mpirun=mpi.mpirun(settings, environ, _capture) if _needs_mpirun(settings, layout) else None,
        meeting_point=_meeting_point(settings, environ, layout, run_id, problems),
        run_id=run_id,
        extra_variables=file_variables if settings.dry_run else (*file_variables, *RUN_VARIABLES),
    )


def _layout(settings: Common, environ: Mapping[str, str], problems: list[str]) -> Layout:
    """The ranks and their hosts; where that is a problem, as many ranks on this server, to find the other problems."""
    try:
        layout = plan_layout(
            world_size=settings.world_size,
            dist=settings.dist,
            process_per_node=settings.process_per_node,
            hostfile=settings.hostfile,
            environ=environ,
        )
    except BadRequest as error:
        problems += error.problems
        return Layout(settings.world_size, settings.world_size)
    if layout.hosts and settings.no_mpirun:
        problems.append(f"--no_mpirun is for one server, and {layout.source} names {len(layout.hosts)} hosts")
    return layout


def _needs_mpirun(settings: Common, layout: Layout) -> bool:
    return bool(layout.hosts) or layout.world_size > 1 and not settings.no_mpirun


def _devices(settings: Common, environ: Mapping[str, str]) -> machine.Devices:
    if not settings.dry_run:
        found = machine.choose(settings.device, _capture, environ)
        if not found.missing:
            say(f"device {found.type}" + (f", {found.cards} cards" if found.cards else ""))
        return found
    if settings.device == "auto":
        say("a dry run looks for no card: composed for --device hpu; give --device cuda or --device cpu for another")
        return machine.Devices("hpu")
    return machine.Devices(settings.device)


def _meeting_point(
    settings: Common, environ: Mapping[str, str], layout: Layout, run_id: str, problems: list[str]
) -> machine.MeetingPoint:
    """Where the ranks of one server meet: at the caller's address if it is this machine's, else on localhost.

    The port is the caller's, else the usual one, else any free one. On one server we open it ourselves, and the rank
    that listens takes it over.
    """
    asked = environ.get("MASTER_PORT")
    address = environ.get("MASTER_ADDR") or "localhost"
    port = asked or machine.DEFAULT_PORT
    if settings.dry_run or layout.world_size == 1:
        return machine.MeetingPoint(address, port, bool(asked))
    if not port.isdecimal() or not 0 < int(port) < 65536:
        problems.append(f"MASTER_PORT={port} is no port; unset it to have a free one chosen")
        return machine.MeetingPoint(address, machine.DEFAULT_PORT, True)
    if layout.hosts:
        if not asked and meeting.is_this_machine(layout.hosts[0]) and not machine.port_is_free(port, ""):
            port = machine.free_port()
        return machine.MeetingPoint(address, port, bool(asked))
    if not meeting.is_this_machine(address):
        address = "localhost"
    listener, port = machine.open_port(port, fallback=not asked)
    if listener is None:
        problems.append(f"MASTER_PORT={port} is in use; unset it to have a free one chosen")
    elif address in meeting.LOCAL_NAMES and not settings.no_mpirun:
        meeting.hand_over(listener, run_id)
    else:
        listener.close()  # torchrun, or torch at another address, opens it
    return machine.MeetingPoint(address, port, bool(asked))


def _capture(argv: Sequence[str], **how: "Any") -> "Captured":
    """processes.capture, loaded when there is something to ask."""
    from central.launch import processes

    return processes.capture(argv, **how)
