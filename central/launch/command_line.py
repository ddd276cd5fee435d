"""The flow of demo_bert.py: words, settings, commands; then print them, or check and run them."""

import os
import sys

from central.launch import compose, devices, machine, options, runner
from central.launch.command import shell_line
from central.launch.hosts import Layout, plan_layout
from central.launch.messages import say
from central.launch.problems import BAD_REQUEST, DONE, BadRequest
from central.launch.subcommands import subcommand_of

PROG = "python demo_bert.py"
USAGE = f"""usage: {PROG} pretraining|finetuning|check [options]

Train BERT on Intel Gaudi, NVIDIA GPU or CPU: one card, one server or many.

  pretraining   text to a trained BERT, in two phases
  finetuning    a trained BERT to a score on GLUE or SQuAD
  check         what this machine has; with a subcommand and its options: what would stop that run. Starts nothing

`{PROG} pretraining -h` lists the options. --dry_run prints the commands of a run and starts nothing.
"""


def main(words, file_variables=None) -> int:
    """Run demo_bert.py with these words; the status to exit with.

    `file_variables` are variables of a settings file: they count where the caller has not set them.
    """
    environ = {**(file_variables or {}), **os.environ}
    try:
        return _main(list(words), environ, tuple((file_variables or {}).items()))
    except BadRequest as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return BAD_REQUEST


def _main(words, environ, file_variables):
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return DONE if words else BAD_REQUEST
    checking = words[0] == "check"
    if checking:
        words = words[1:]
        _print_report(environ)
        if not words:
            return DONE
    name, *words = words
    subcommand = subcommand_of(name)
    parser = options.settings_parser(subcommand.Settings, f"{PROG} {name}", subcommand.DESCRIPTION, subcommand.EXAMPLES)
    if any(word in ("-h", "--help") for word in options.split_script_args(words)[0]):
        parser.print_help()
        return DONE
    settings = options.parse(subcommand.Settings, parser, words)
    place, plan = prepare(subcommand, settings, environ, file_variables)
    for note in plan.notes:
        say(note)
    if settings.dry_run:
        for command in plan.commands:
            print(shell_line(command))
        return DONE
    return DONE if checking else _run(name, settings, place, plan)


def prepare(subcommand, settings, environ, file_variables) -> tuple[compose.Place, compose.Plan]:
    """Where a request will run and its commands; BadRequest with everything that would stop it."""
    problems = []
    layout = _layout(settings, environ, problems)
    place = look_around(settings, layout, environ, file_variables)
    problems += subcommand.problems(settings, layout.world_size)
    if not settings.dry_run:
        from central.launch import preflight

        problems += preflight.problems(settings, subcommand, place, runner.capture_all)
    if problems:
        raise BadRequest(problems)
    return place, compose.compose(settings, subcommand, place)


def look_around(settings, layout, environ, file_variables) -> compose.Place:
    """This machine, and what of it the run uses. A dry run asks for nothing but the version of mpirun."""
    return compose.Place(
        python=sys.executable,
        root=machine.ROOT,
        environ=environ,
        devices=_devices(settings, environ),
        layout=layout,
        topology=machine.node_topology(settings),
        mpirun=machine.mpirun(settings, environ, runner.capture) if _needs_mpirun(settings, layout) else None,
        master_port=_master_port(settings, environ, layout),
        extra_variables=file_variables if settings.dry_run else (*file_variables, ("BERT_LAUNCHER", "1")),
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
        found = devices.choose(settings.device, runner.capture, environ)
        if not found.missing:
            say(f"device {found.type}" + (f", {found.cards} cards" if found.cards else ""))
        return found
    if settings.device == "auto":
        say("a dry run looks for no card: composed for --device hpu")
        return devices.Devices("hpu")
    return devices.Devices(settings.device)


def _master_port(settings, environ, layout):
    """The caller's, else the usual one; on one server another one where the usual one is taken."""
    port = environ.get("MASTER_PORT", machine.DEFAULT_PORT)
    if settings.dry_run or "MASTER_PORT" in environ or layout.hosts or not machine.port_is_taken(port):
        return port
    return machine.free_port()


def _print_report(environ):
    from central.launch import check

    print("\n".join(check.report(environ, runner.capture)))


def _run(name, settings, place, plan):
    """Leave a record, and run the commands."""
    import time

    from central.launch import hcl, record, supervise

    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    record.write(record.run_record(name, settings, plan, place.environ, when), settings.results_dir)
    hcl.write_where_asked(place.layout, place.device, place.environ)
    return supervise.run(plan, log_path=settings.log_path, max_restarts=settings.max_restarts)
