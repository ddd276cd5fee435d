"""The options of demo_bert.py, one line each, and the parser made from them.

An attribute of a settings class is an option. Its name is the flag, and its default is stated there and nowhere else:

    save_steps: tuple[int, int] = option(SAVING, count, (200, 200), "steps between checkpoints", "-st")

A default of two values asks for two values: one for each phase of pre-training.
"""

import argparse
from dataclasses import dataclass

from central.errors import BadRequest, nearest

SEEDS = 2**32  # what numpy takes


def kind(metavar):
    """Mark a function as a kind; `metavar` stands for its values in the help."""

    def mark(convert):
        convert.metavar = metavar
        return convert

    return mark


@kind("NAME")
def text(word):
    return word


@kind("PATH")
def path(word: str) -> str:
    return _in_one_line(word, "a path")


def _in_one_line(word: str, expected: str) -> str:
    """The word itself: nothing is named by nothing, and commands are printed and recorded a line each."""
    if not word or "\n" in word or "\r" in word:
        raise ValueError(f"expected {expected}, without line ends in it" if word else f"expected {expected}")
    return word


@kind("N")
def count(word):
    return _number(int, word, lambda value: value >= 1, "a whole number from 1")


@kind("N")
def count_or_zero(word):
    return _number(int, word, lambda value: value >= 0, "a whole number from 0")


@kind("N")
def count_or_all(word):
    return _number(int, word, lambda value: value >= 1 or value == -1, "a whole number from 1, or -1 for all")


@kind("N")
def seed_number(word: str) -> int:
    return _number(int, word, lambda value: 0 <= value < SEEDS, "a whole number from 0, below 2**32")


@kind("X")
def positive(word):
    return _number(float, word, lambda value: 0 < value < float("inf"), "a number above 0")


@kind("SECONDS")
def seconds(word):
    value = _number(float, word, lambda value: 0 <= value < float("inf"), "a number of seconds, 0 for never")
    return int(value) if value.is_integer() else value


@kind("X")
def fraction(word):
    return _number(float, word, lambda value: 0 <= value < 1, "a number from 0, below 1")


@kind("X")
def epochs(word):
    value = positive(word)
    return int(value) if value.is_integer() else value


@kind("SxC")
def cores(word):
    try:
        sockets, cores_per_socket = (count(part) for part in word.lower().split("x"))
    except ValueError:
        raise ValueError("expected sockets x cores of each, such as 2x28") from None
    return f"{sockets}x{cores_per_socket}"


@kind("true|false")
def switch(word):
    if word.lower() not in ("true", "false"):
        raise ValueError("expected nothing, true or false")
    return word.lower() == "true"


def choice(*allowed):
    """One of the allowed words, in any case."""

    @kind("|".join(allowed))
    def one_of(word):
        if word.lower() not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}{nearest(word.lower(), allowed)}")
        return word.lower()

    return one_of


@kind("1|2")
def phase_number(word):
    return int(choice("1", "2")(word))


def path_or(*names):
    """One of these names, an id of the Hub, or a path."""

    @kind("NAME|PATH")
    def name_or_path(word: str) -> str:
        return _in_one_line(word, "a name or a path")

    name_or_path.names = names
    return name_or_path


def maybe(inner):
    """The inner kind, or None for the word `None`: how the README leaves one of two values out."""

    @kind(inner.metavar)
    def inner_or_none(word):
        return None if word == "None" else inner(word)

    return inner_or_none


def _number(number_type, word, holds, expected):
    try:
        value = number_type(word)
    except ValueError:
        value = None
    if value is None or not holds(value):
        raise ValueError(f"expected {expected}")
    return value


REQUIRED = object()
# Headings of the help, in its order.
GROUPS = MODEL, DATA, BATCHES, SCHEDULE, SAVING, DEVICE, RANKS, RUNNING = (
    *("Model", "Data", "Batches", "Schedule", "Checkpoints and results"),
    *("Device", "Ranks and hosts", "Running"),
)
DEVICES = ("auto", "hpu", "cuda", "cpu")
MODES = ("lazy", "eager", "graph", "compile")
MPIS = ("auto", "openmpi4", "openmpi5")


@dataclass(frozen=True)
class Option:
    """One option: where the help lists it, how its words become values, and what it is without them."""

    group: str
    kind: object
    default: object
    help: str
    short: tuple[str, ...]


def option(group, kind, default, help, *short):
    """An attribute of a settings class that is an option."""
    return Option(group, kind, default, help, short)


class Common:
    """What pre-training and fine-tuning share. An instance is a request; it does not change."""

    data_type: str = option(MODEL, choice("fp32", "bf16"), REQUIRED, "fp32, or bf16 mixed precision")
    cache_dir: str | None = option(DATA, path, None, "folder for what fine-tuning downloads")
    output_dir: str = option(SAVING, path, "/tmp", "folder for everything a run leaves behind", "-o")
    device: str = option(DEVICE, choice(*DEVICES), "auto", "auto: hpu where a card is found, else cuda, else cpu", "-d")
    mode: str | None = option(DEVICE, choice(*MODES), None, "unset: lazy for large, eager for the others")
    fused_sdpa: bool = option(DEVICE, switch, False, "hpu: Habana's fused attention (Gaudi 2 and later)")
    world_size: int = option(RANKS, count, 1, "ranks in all, one for each card")
    dist: bool = option(RANKS, switch, False, "many ranks; 8 of them where --world_size is 1")
    process_per_node: int = option(RANKS, count_or_zero, 0, "ranks on each host of MULTI_HLS_IPS; 0: this server alone")
    hostfile: str | None = option(RANKS, path, None, "lines `HOST slots=N`, in place of MULTI_HLS_IPS")
    no_mpirun: bool = option(RANKS, switch, False, "start the ranks with torchrun (one server)")
    mpi: str = option(RANKS, choice(*MPIS), "auto", "mpirun to compose for; auto asks mpirun --version")
    node_topology: str | None = option(RANKS, cores, None, "sockets x cores of each, as 2x28; unset: this machine's")
    hang_timeout: float | None = option(
        RUNNING, seconds, None, "seconds beyond the longest step without progress after which a rank hangs; unset: 300"
    )
    dry_run: bool = option(RUNNING, switch, False, "print the commands, one pasteable line each; touch nothing")

    # Pre-training lets its user choose these.
    log_path = None
    max_restarts = 0

    def __init__(self, values, script_args=()):
        vars(self).update(values, script_args=tuple(script_args))

    def __setattr__(self, name, value):
        raise AttributeError(f"{name}: a request does not change")


def options_of(settings_class) -> dict[str, Option]:
    """The options of a settings class by name, those of Common first."""
    classes = reversed(settings_class.__mro__)
    return {name: value for cls in classes for name, value in vars(cls).items() if isinstance(value, Option)}


def settings_parser(cls, prog, description, epilog):
    """An argparse parser with the options of a settings class, in groups."""
    usage = f"{prog} [options] [-- words for the training script]"
    parser = _Parser(prog=prog, usage=usage, description=description, epilog=epilog)
    parser.add_argument("-h", "--help", action="store_true", help=argparse.SUPPRESS)
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for name, option_ in options_of(cls).items():
        groups[option_.group].add_argument(*option_.short, f"--{name}", dest=name, **_settings(parser, name, option_))
    return parser


def parse(cls, parser, words):
    """Settings from words; BadRequest with every unknown, missing and misspelt one."""
    words, script_args = split_script_args(words)
    values, left_over = parser.parse_known_args([_underscored(word) for word in words])
    known = options_of(cls)
    problems = parser.problems + _complaints(left_over, [f"--{name}" for name in known])
    values = {name: getattr(values, name) for name in known}
    problems += [f"--{name} is required" for name, value in values.items() if value is REQUIRED]
    pairs = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    problems += [
        f"--{name}: expected 2 values, one for each phase, and got {len(pair)}"
        for name, pair in pairs.items()
        if len(pair) != len(known[name].default)
    ]
    if problems:
        raise BadRequest(problems)
    return cls(values | pairs, script_args)


def split_script_args(words):
    """Our words, and those behind a bare `--`."""
    words = list(words)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _underscored(word):
    """`--max-steps=3` as `--max_steps=3`: both spellings are one flag."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


def _settings(parser, name, option_):
    """What add_argument shall know of an option."""
    kind, default = option_.kind, option_.default
    settings = {"type": parser.keeping_problems(f"--{name}", kind), "default": default, "metavar": kind.metavar}
    if kind is switch:
        settings |= {"nargs": "?", "const": True}
    elif isinstance(default, tuple):
        settings |= {"nargs": "*", "metavar": (kind.metavar,) * len(default)}  # counted with the other problems
    return settings | {"help": option_.help + _shown(default)}


def _shown(default):
    if default is REQUIRED:
        return " (required)"
    if default is None or default is False or default == (None, None):
        return ""
    return f" (default {' '.join(map(str, default)) if isinstance(default, tuple) else default})"


def _complaints(left_over, known):
    flags = [word.partition("=")[0] for word in left_over if word.startswith("-")]
    if flags:
        return [f"unknown flag {flag}{nearest(flag, [*known, '--help'])}" for flag in flags]
    return [f"unexpected word {word!r}: what the script shall get goes behind a bare --" for word in left_over]


class _Parser(argparse.ArgumentParser):
    """argparse, but problems are kept until all are known, and nothing exits."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, add_help=False, formatter_class=_Formatter, **settings)
        self.problems = []

    def error(self, message):
        raise BadRequest([*self.problems, message.removeprefix("argument ")])

    def keeping_problems(self, flag, kind):
        def convert(word):
            try:
                return kind(word)
            except ValueError as error:
                self.problems.append(f"{flag} {word if word.split() == [word] else repr(word)}: {error}")

        return convert


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """`-o, --output_dir PATH`, the values once and not once a spelling."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=38, width=118)

    def _format_action_invocation(self, action):
        spellings = ", ".join(action.option_strings)
        if action.nargs == "?":
            return spellings
        values = action.metavar if isinstance(action.metavar, tuple) else (action.metavar,)
        return f"{spellings} {' '.join(values)}"
