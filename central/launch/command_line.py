"""The flow of demo_bert.py: words, settings, commands; then print them, or check and run them."""

import os
import sys

from central.launch import compose, devices, machine, options, runner
from central.launch.command import shell_line
from central.launch.hosts import plan_layout
from central.launch.messages import say
from central.launch.problems import BAD_REQUEST, DONE, BadRequest, nearest

PROG = "python demo_bert.py"
USAGE = f"""usage: {PROG} pretraining|finetuning|check [options]

Train BERT on Intel Gaudi, NVIDIA GPU or CPU: one card, one server or many.

  pretraining   text to a trained BERT, in two phases
  finetuning    a trained BERT to a score on GLUE or SQuAD
  check         what this machine has, and what would stop a run; starts nothing

`{PROG} pretraining -h` lists the options. --dry_run prints the commands of a run and starts nothing.
"""


def main(words) -> int:
    """Run demo_bert.py with these words; the status to exit with."""
    try:
        return _main(list(words))
    except BadRequest as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return BAD_REQUEST


def _main(words):
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return DONE if words else BAD_REQUEST
    name, *words = words
    if name not in ("pretraining", "finetuning", "check"):
        raise BadRequest(f"unknown subcommand {name}{nearest(name, ('pretraining', 'finetuning', 'check'))}")
    if name == "check":
        from central.launch import check

        return check.main(words)
    subcommand = _subcommand(name)
    parser = options.settings_parser(subcommand.Settings, f"{PROG} {name}", subcommand.DESCRIPTION, subcommand.EXAMPLES)
    if asks_for_help(words):
        parser.print_help()
        return DONE
    return launch(subcommand, options.parse(subcommand.Settings, parser, words))


def asks_for_help(words):
    return any(word in ("-h", "--help") for word in options.split_script_args(words)[0])


def _subcommand(name):
    """The module of a subcommand; only the one asked for is loaded."""
    if name == "pretraining":
        from central.launch import pretraining as subcommand
    else:
        from central.launch import finetuning as subcommand
    return subcommand


def launch(subcommand, settings) -> int:
    """Compose the commands of a request; print them in a dry run, else check everything and run them."""
    place = look_around(settings, os.environ)
    problems = subcommand.problems(settings, place.layout.world_size)
    if problems:
        raise BadRequest(problems)
    plan = compose.compose(settings, subcommand, place)
    for note in plan.notes:
        say(note)
    if settings.dry_run:
        for command in plan.commands:
            print(shell_line(command))
        return DONE
    from central.launch import supervise

    return supervise.run(plan)


def look_around(settings, environ) -> compose.Place:
    """Where the run goes. A dry run asks for nothing but the version of mpirun, and takes auto for hpu."""
    layout = plan_layout(
        world_size=settings.world_size,
        dist=settings.dist,
        process_per_node=settings.process_per_node,
        hostfile=settings.hostfile,
        environ=environ,
    )
    if layout.hosts and settings.no_mpirun:
        raise BadRequest(f"--no_mpirun is for one server; {layout.source} names {len(layout.hosts)} hosts")
    needs_mpirun = layout.world_size > 1 and not settings.no_mpirun
    return compose.Place(
        python=sys.executable,
        root=machine.ROOT,
        environ=dict(environ),
        device=_device(settings, environ),
        layout=layout,
        topology=machine.node_topology(settings),
        mpirun=machine.mpirun(settings, environ, runner.capture) if needs_mpirun else None,
        master_port=_master_port(settings, environ, layout),
        extra_variables=() if settings.dry_run else (("BERT_LAUNCHER", "1"),),
    )


def _device(settings, environ):
    if not settings.dry_run:
        found = devices.choose(settings.device, runner.capture, environ)
        say(f"device {found.type}" + (f", {found.cards} cards" if found.cards else ""))
        return found.type
    if settings.device == "auto":
        say("a dry run looks for no card: composed for --device hpu")
        return "hpu"
    return settings.device


def _master_port(settings, environ, layout):
    """The caller's, else the usual one; on one server another one where the usual one is taken."""
    port = environ.get("MASTER_PORT", machine.DEFAULT_PORT)
    if settings.dry_run or "MASTER_PORT" in environ or layout.hosts or not machine.port_is_taken(port):
        return port
    return machine.free_port()
