"""Environment of a training script on hpu: what the Habana plugin reads once, while torch is being imported.

Standard library only: an entry script calls `apply_or_exit()` in its first lines, before anything imports torch.
"""

import argparse
import importlib
import os
import re
import resource
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from central import gaudi_environment
from central.files import is_special
from central.gaudi_environment import AUTOLOAD, COMPILED_AUTOGRAD, LAZY_MODE
from central.habana_flags import OFF, is_gaudi, translate
from central.runtime import exits
from central.runtime import rank as ranks
from central.runtime.exits import BadRequest

# Names that HMP took from Python's operators and functions. Autocast goes by ATen's, and passes over others in silence.
RENAMED_OPS = {
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "idiv": "div",
    "itruediv": "true_divide",
    "truediv": "true_divide",
    "cross_entropy": "cross_entropy_loss",
}


def apply(argv: Sequence[str] | None = None, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the PT_HPU_* variables that `argv` (default: the process's own) asks for; nothing on another device.

    Raises BadRequest for a value that contradicts one already set, for a torch that has already read the variables,
    and for an op list that Habana's autocast would misread.
    """
    args = _parse(sys.argv[1:] if argv is None else argv, environ)
    if not (args.use_habana or is_gaudi(args.device)):
        return
    problems = []
    if args.use_lazy_mode and args.torch_compile:
        problems.append("--torch_compile needs the eager mode of hpu: leave out --use_lazy_mode")
    op_lists = {"--hmp_bf16": args.hmp_bf16, "--hmp_fp32": args.hmp_fp32}
    problems += [text for flag, file in op_lists.items() if file for text in op_list_problems(flag, Path(file))]
    wanted = gaudi_environment.variables(
        args.use_lazy_mode, [os.path.abspath(file) if file else "" for file in op_lists.values()]
    )
    problems += _conflicts(wanted, environ)
    if problems:
        raise BadRequest(problems)
    environ.update({name: value for name, value in wanted.items() if name not in environ})
    if args.torch_compile:
        environ.setdefault(COMPILED_AUTOGRAD, "1")  # the backward pass as one graph, too, as in Habana's own scripts
    # The plugin names ranks as well when it is loaded, but not how many there are on this server.
    ranks.export(ranks.from_environment(environ), environ)
    if "torch" not in sys.modules:
        # Whether `import torch` loads the plugin differs by release and mode. torch asks only once which accelerator
        # there is, and a library may ask before anything of ours has loaded it.
        environ.setdefault(AUTOLOAD, "1")


def apply_or_exit() -> None:
    """`apply` for the first lines of an entry script: a refusal is printed and the process exits with 2."""
    # When a rank ends, its peers' connections to it break: torch would write C++ stack traces of that.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    status = exits.run(_apply_as_main)
    if status != exits.DONE:
        sys.exit(status)
    exits.report_failed_imports()


def op_list_problems(flag: str, file: Path) -> list[str]:
    """What is wrong with a list of ops, one line each.

    Habana takes one name a line as it stands, without trimming or comments, and goes on with its own list where the
    file cannot be read; a name it does not know changes nothing. Each would be a run in a precision nobody asked for.
    """
    if is_special(file):
        return [f"{flag} {file}: is no regular file (a device, pipe or socket): give a file with one op name per line"]
    try:
        lines = file.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        return [f"{flag}: cannot read {file} ({reason}): give a file with one op name per line"]
    problems = []
    for number, line in enumerate(lines, start=1):
        where = f"{flag}: {file} line {number}"
        if line in RENAMED_OPS:
            problems.append(f"{where}: the op {line!r} is now named {RENAMED_OPS[line]!r}")
        elif line and not re.fullmatch(r"\w+", line, re.ASCII):
            problems.append(f"{where}: {line!r} is not one bare op name (no spaces, comments or CR line ends)")
        elif line.endswith(("_", "_out")):
            bare = line.removesuffix("_out").rstrip("_")
            problems.append(f"{where}: in-place and out forms such as {line!r} are never cast: name {bare!r}")
    return problems


def _parse(argv: Sequence[str], environ: Mapping[str, str]) -> argparse.Namespace:
    """The few flags that decide the environment, in every form that the scripts' own parsers accept."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for switch in ("use_habana", "use_lazy_mode", "torch_compile"):
        parser.add_argument(f"--{switch}", nargs="?", const=True, default=False, type=_truth)
    for file in ("hmp_bf16", "hmp_fp32", "device"):
        parser.add_argument(f"--{file}", nargs="?", default="")
    return parser.parse_known_args(translate(argv, environ)[0])[0]


def _truth(word: str) -> bool:
    return word.lower() not in OFF


def _conflicts(wanted: dict[str, str], environ: MutableMapping[str, str]) -> list[str]:
    """Variables of `wanted` that cannot take effect, because another value or torch came first."""
    problems = []
    for name, value in wanted.items():
        found = environ.get(name)
        if found is None and "torch" in sys.modules:
            problems.append(
                f"{name}={value} comes too late, torch has been imported: set it before this process starts"
            )
        elif found is not None and not _same(name, found, value):
            flags = "with" if value == "1" else "without"
            remedy = f"this command line, {flags} --use_lazy_mode, means" if name == LAZY_MODE else "its flag names"
            problems.append(f"{name} is set to {found!r}, but {remedy} {value!r}: change one of the two")
    return problems


def _same(name: str, found: str, value: str) -> bool:
    return found == value or (name != LAZY_MODE and os.path.realpath(found) == os.path.realpath(value))


def _refuse_too_little_room() -> None:
    """Raise BadRequest where torch does not fit under a limit of the address space: its loader aborts the process that
    it runs out of room in, so a child tries."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        try:
            importlib.import_module("torch")
        finally:  # an error that Python raises is told where the script itself imports it
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise BadRequest(
            f"out of memory while torch was loaded: the address space is limited to {limit >> 10} kB: raise the limit "
            "(ulimit -v)"
        )


def _apply_as_main(argv: list[str]) -> int:
    apply(argv)
    _refuse_too_little_room()
    return exits.DONE
