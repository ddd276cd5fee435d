"""From settings to a plan: look at this machine, find everything that would stop the run, compose."""

import sys

from central.errors import BadRequest
from central.launch import commands, machine, mpi
from central.launch.commands import Plan
from central.launch.hosts import Layout, plan_layout
from central.launch.messages import say

# What only a run sets: ranks know that a launcher started them, and their lines come as they are written.
RUN_VARIABLES = (("BERT_LAUNCHER", "1"), ("PYTHONUNBUFFERED", "1"))


def prepare(subcommand, settings, environ, file_variables, notes=()) -> tuple[commands.Place, Plan]:
    """Where a request will run and its commands; BadRequest with everything that would stop it.

    `notes` are said behind the device, whether it can run or not.
    """
    problems = []
    layout = _layout(settings, environ, problems)
    place = look_around(settings, layout, environ, file_variables)
    for note in notes:
        say(note)
    problems += subcommand.problems(settings, layout.world_size)
    if not settings.dry_run:
        from central.launch import preflight, processes

        problems += preflight.problems(settings, subcommand, place, processes.capture_all)
    if problems:
        raise BadRequest(problems)
    return place, commands.compose(settings, subcommand, place)


def look_around(settings, layout, environ, file_variables) -> commands.Place:
    """This machine, and what of it the run uses. A dry run asks for nothing but the version of mpirun."""
    return commands.Place(
        python=sys.executable,
        root=machine.ROOT,
        environ=environ,
        devices=_devices(settings, environ),
        layout=layout,
        topology=machine.node_topology(settings),
        mpirun=mpi.mpirun(settings, environ, _capture) if _needs_mpirun(settings, layout) else None,
        master_port=_master_port(settings, environ, layout),
        extra_variables=file_variables if settings.dry_run else (*file_variables, *RUN_VARIABLES),
    )


def _layout(settings, environ, problems):
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


def _needs_mpirun(settings, layout):
    return bool(layout.hosts) or layout.world_size > 1 and not settings.no_mpirun


def _devices(settings, environ):
    if not settings.dry_run:
        found = machine.choose(settings.device, _capture, environ)
        if not found.missing:
            say(f"device {found.type}" + (f", {found.cards} cards" if found.cards else ""))
        return found
    if settings.device == "auto":
        say("a dry run looks for no card: composed for --device hpu; give --device cuda or --device cpu for another")
        return machine.Devices("hpu")
    return machine.Devices(settings.device)


def _master_port(settings, environ, layout):
    """The caller's, else the usual one; on one server another one where the usual one is taken."""
    port = environ.get("MASTER_PORT") or machine.DEFAULT_PORT
    if settings.dry_run or environ.get("MASTER_PORT") or layout.hosts or layout.world_size == 1:
        return port
    if machine.claim_port(port):
        return port
    return machine.free_port()


def _capture(argv, **how):
    """processes.capture, loaded when there is something to ask."""
    from central.launch import processes

    return processes.capture(argv, **how)
