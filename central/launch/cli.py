"""The flow of demo_bert.py: words, settings, commands; then print them, or check and run them."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from central import streams
from central.errors import BAD_REQUEST, DONE, BadRequest
from central.files import ROOT
from central.streams import say

TYPE_CHECKING = False  # the overview of the help needs none of these
if TYPE_CHECKING:
    from central.launch.commands import Pairs, Plan, Target
    from central.launch.options import Common

PROG = "python demo_bert.py"
USAGE = f"""usage: {PROG} pretraining|finetuning|check [options]

Train BERT on Intel Gaudi, NVIDIA GPU or CPU: one card, one server or many.

  pretraining   text to a trained BERT, in two phases
  finetuning    a trained BERT to a score on GLUE or SQuAD
  check         what this machine has; with a subcommand and its options: what would stop that run. Starts nothing

`{PROG} pretraining -h` lists the options. --dry_run prints the commands of a run and starts nothing.
"""


def main(words: Sequence[str], file_variables: Mapping[str, str] | None = None, notes: Sequence[str] = ()) -> int:
    """Run demo_bert.py with these words; the status to exit with.

    Of a settings file: `file_variables` are its variables, which count where the caller has not set them, and `notes`
    what to say of it.
    """
    streams.protect()
    from_file = {name: value for name, value in (file_variables or {}).items() if name not in os.environ}
    try:
        return _main(list(words), {**from_file, **os.environ}, tuple(from_file.items()), notes)
    except BadRequest as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return BAD_REQUEST
    except KeyboardInterrupt:  # before anything was started
        print("interrupted", file=sys.stderr)
        return 130


def _main(words: list[str], environ: dict[str, str], file_variables: "Pairs", notes: Sequence[str]) -> int:
    checking = words[:1] == ["check"]
    if not words or words[int(checking) :][:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return DONE if words else BAD_REQUEST
    if checking:
        words = words[1:]
        _print_report(environ)
        if not words:
            return DONE
    from central.launch import options
    from central.options import wants_help

    name, *words = words
    subcommand = options.subcommand_of(name)
    parser = options.settings_parser(subcommand, f"{PROG} {name}")
    if wants_help(words):
        parser.print_help()
        return DONE
    settings = options.parse(subcommand, words, parser)

    from central.launch.commands import shell_line
    from central.launch.plan import prepare

    target, plan = prepare(subcommand, settings, environ, file_variables, notes)
    for note in plan.notes:
        say(note)
    if settings.dry_run:
        for command in plan.all_commands:
            print(shell_line(command))
        return DONE
    return DONE if checking else _run(name, settings, target, plan)


def _print_report(environ: Mapping[str, str]) -> None:
    from central.launch import processes

    print("\n".join(report(environ, processes.capture)))


def _run(name: str, settings: "Common", target: "Target", plan: "Plan") -> int:
    """Leave a record, and run the commands. A run that was refused before it began leaves nothing."""
    import time

    from central import files
    from central.launch import hcl, remote, run_record, supervise

    made = run_record.run_record(name, settings, plan, target.environ, time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    folders = files.missing_folders(settings.results_dir)
    lock = os.path.join(settings.results_dir, settings.lock_name)
    try:
        os.makedirs(settings.results_dir, exist_ok=True)
        files.take_folder(lock, settings.output_dir)
        earlier = run_record.write(made, settings.results_dir)
    except OSError as error:
        raise BadRequest(f"--output_dir {settings.output_dir}: {error.strerror}") from None
    hcl.write_where_asked(target.layout, target.device, target.environ)
    watch = remote.HostWatch(target.layout.hosts if target.layout.by_ssh else (), target.ssh_port)
    status = supervise.run(
        plan, log_path=settings.log_path, max_restarts=settings.restarts, lost_host=lambda: watch.lost
    )
    if status == BAD_REQUEST and not files.changed_since(lock, settings.results_dir, run_record.NAME):
        run_record.take_back(settings.results_dir, earlier)
        if folders:
            os.remove(lock)
            files.remove_empty(folders)
    return status


PACKAGES = (
    *("torch", "habana-torch-plugin", "numpy", "h5py", "safetensors", "tokenizers"),
    *("transformers", "datasets", "accelerate", "mpi4py", "tensorboard"),
)


def report(environ: Mapping[str, str], capture: Callable) -> list[str]:
    """Lines `name: value` of everything a run depends on."""
    import platform

    from central.launch import hostcheck, machine
    from central.launch.hosts import split_addresses

    facts = hostcheck.facts()
    mpirun = capture(["mpirun", "--version"]).stdout.splitlines()[:1]
    rows = {
        "host": facts["host"],
        "system": platform.platform(),
        "project": f"{ROOT} ({facts['project']})",
        "commit": machine.commit(capture),
        "python": facts["python"],
        **{package: hostcheck.version(package) for package in PACKAGES},
        "mpirun": mpirun[0] if mpirun else "not found",
        "cores": f"{machine.this_machine()} (sockets x cores this process may use)",
        "cpu": machine.processor(),
        "memory": machine.memory(),
        "hpu cards": machine.hpu_count(capture, environ),
        "cuda cards": machine.cuda_count(capture, environ),
        "gpu names": ", ".join(machine.gpu_names(capture)) or "none",
        "port 12345": "free" if machine.port_is_free(machine.DEFAULT_PORT) else "in use: a run takes another free one",
        "MULTI_HLS_IPS": " ".join(split_addresses(environ.get("MULTI_HLS_IPS", ""))) or "not set",
    }
    width = max(map(len, rows))
    return [f"{name:{width}}  {value}" for name, value in rows.items()]
