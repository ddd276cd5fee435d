"""Options, each written once: a field of a frozen dataclass, for the launcher and the training scripts alike.

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        save_steps: int = option(count, "optimizer steps between checkpoints", 100, flag="num_steps_per_checkpoint")
        seed: int = option(*SEED, 42)

    settings = parse(Settings, ["--seed", "5"])

A type is a function from a word to a value. It raises ValueError with what it expected, and its `metavar` stands for
its values in the help. A default of two values asks for two values: one for each phase of pre-training. One value is
enough beside a `phase`, and where it `serves_both`.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Sequence

from central.errors import BadRequest, nearest

TYPE_CHECKING = False  # typing is slow to import, and the launcher starts in a moment
if TYPE_CHECKING:
    from typing import Any, NoReturn, TypeVar

    Value = TypeVar("Value")
    Settings = TypeVar("Settings")

Pair = tuple  # a value for each phase of pre-training
SEEDS = 2**32  # what numpy takes
SHORTEST_ROW = 5  # tokens: [CLS] a [SEP] b [SEP]
REQUIRED = object()  # the default of an option that has none


# Types


def values(metavar: str) -> "Callable[[Callable[[str], Value]], Callable[[str], Value]]":
    """Make a function a type; `metavar` stands for its values in the help."""

    def mark(convert: "Callable[[str], Value]") -> "Callable[[str], Value]":
        convert.metavar = metavar  # type: ignore[attr-defined]
        return convert

    return mark


@values("NAME")
def text(word: str) -> str:
    return word


@values("PATH")
def path(word: str) -> str:
    return _name(word, "a path")


def in_one_line(word: str) -> bool:
    """Whether a word fits into a line of output: commands are printed and recorded a line each."""
    return not {"\n", "\r"} & set(word)


def is_utf8(word: str) -> bool:
    """Whether the bytes of a word of the command line are UTF-8: safetensors takes no other path."""
    return word == word.encode(errors="ignore").decode()


def _name(word: str, expected: str) -> str:
    """The word itself: nothing is named by nothing."""
    if not word or not in_one_line(word):
        raise ValueError(f"expected {expected}, without line ends in it" if word else f"expected {expected}")
    return word


def whole(
    at_least: float = -float("inf"), below: float = float("inf"), or_else: int | None = None, expected: str = ""
) -> "Any":
    """A whole number of a range; `or_else` is one more that is allowed. 7038.0 is one, too."""

    @values("N")
    def number(word: str) -> int:
        try:
            value = int(word) if word.strip("+-").isdecimal() else int(_whole_float(word))
        except (ValueError, OverflowError):
            value = None
        if value is None or not (at_least <= value < below or value == or_else):
            raise ValueError(f"expected {expected or f'a whole number from {at_least}'}")
        return value

    return number


def _whole_float(word: str) -> float:
    if not float(word).is_integer():
        raise ValueError
    return float(word)


def real(holds: Callable[[float], bool], expected: str, metavar: str = "X") -> "Any":
    """A number for which a condition holds; 3600.0 is shown as 3600."""

    @values(metavar)
    def number(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = float("nan")
        if not (-float("inf") < value < float("inf") and holds(value)):
            raise ValueError(f"expected {expected}")
        return value

    return number


count = whole(1)
count_or_zero = whole(0)
count_or_all = whole(1, or_else=-1, expected="a whole number from 1, or -1 for all")
seed_number = whole(0, SEEDS, expected="a whole number from 0, below 2**32")
row_length = whole(SHORTEST_ROW, expected=f"a whole number from {SHORTEST_ROW}, for [CLS] a [SEP] b [SEP]")
positive = real(lambda value: value > 0, "a number above 0")
fraction = real(lambda value: 0 <= value < 1, "a number from 0, below 1")


@values("SECONDS")
def seconds(word: str) -> float:
    return _short(real(lambda value: value >= 0, "a number of seconds, 0 for never")(word))


@values("X")
def epochs(word: str) -> float:
    return _short(positive(word))


def _short(value: float) -> float:
    """300 for 300.0: so it is shown and handed on."""
    return int(value) if value.is_integer() else value


@values("SxC")
def cores(word: str) -> str:
    try:
        sockets, cores_per_socket = (count(part) for part in word.lower().split("x"))
    except ValueError:
        raise ValueError("expected sockets x cores of each, such as 2x28") from None
    return f"{sockets}x{cores_per_socket}"


@values("true|false")
def switch(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise ValueError("expected nothing, true or false")
    return word.lower() == "true"


def choice(*allowed: str) -> "Any":
    """One of the allowed words, in any case."""

    @values("|".join(allowed))
    def one_of(word: str) -> str:
        if word.lower() not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}{nearest(word.lower(), allowed)}")
        return word.lower()

    return one_of


@values("1|2")
def phase_number(word: str) -> int:
    return int(choice("1", "2")(word))


def path_or(*names: str) -> "Any":
    """One of these names, an id of the Hub, or a path."""

    @values("NAME|PATH")
    def name_or_path(word: str) -> str:
        return _name(word, "a name or a path")

    name_or_path.names = names  # type: ignore[attr-defined]
    return name_or_path


def maybe(inner: "Any") -> "Any":
    """The inner type, or None for the word `None`: how the README leaves one of two values out."""

    @values(inner.metavar)
    def inner_or_none(word: str) -> "Any":
        return None if word == "None" else inner(word)

    return inner_or_none


# Type and help of the options that launcher and scripts share; each states its own default.
BATCH_SIZE = (count, "training examples one rank sees at once")
EVAL_BATCH_SIZE = (count, "evaluation examples one rank sees at once")
EXCHANGE_ONCE = (switch, "exchange gradients once a step, without DDP")
EXCHANGE_16_BITS = (switch, "exchange them in 16 bits")
FUSED_SDPA = (switch, "hpu: Habana's fused attention (Gaudi 2 and later)")
HANG_TIMEOUT = (
    seconds,
    "seconds without progress, beyond the longest step, after which a rank counts as hung; 0: never",
)
INFERENCE_GRAPHS = (switch, "hpu, lazy: replay graphs in the evaluation and prediction after training")
LEARNING_RATE = (positive, "peak learning rate")
MAX_SEQ_LENGTH = (count, "tokens in a sequence")
MAX_STEPS = (count, "optimizer steps of the schedule")
RESUME = (switch, "go on from the newest checkpoint in --output_dir")
SAVE_STEPS = (count, "optimizer steps between checkpoints")
SEED = (seed_number, "seed of weights, data order and dropout")
STEPS_THIS_RUN = (count_or_all, "optimizer step to stop at; -1: the last")
WARMUP = (fraction, "part of the steps spent warming up, below 1")


# Fields


@dataclasses.dataclass(frozen=True)
class Option:
    """One option: how its words become a value, and what it is without them. `group` is a heading of the help.

    `hand_on`: the flag under which the launcher gives it to the training script; "" where it does not.
    """

    type: "Callable[[str], Any]"
    help: str
    default: object
    short: tuple[str, ...] = ()
    group: str = ""
    flag: str = ""
    hand_on: str = ""
    serves_both: bool = False


def option(
    type: "Callable[[str], Any]",
    help: str,
    default: object = REQUIRED,
    *short: str,
    group: str = "",
    flag: str = "",
    hand_on: str = "",
    serves_both: bool = False,
) -> "Any":
    """A field that is an option. Its flag is its name, unless it has another one."""
    made = Option(type, help, default, short, group, flag, hand_on, serves_both)
    return dataclasses.field(default=default, metadata={"option": made})


def options_of(settings_class: type) -> dict[str, Option]:
    """The options of a settings class by the name of their field, those of its bases first."""
    fields = dataclasses.fields(settings_class)
    return {field.name: field.metadata["option"] for field in fields if "option" in field.metadata}


def flag_of(name: str, option: Option) -> str:
    return f"--{option.flag or name}"


def handed_on(settings: object, phase: int | None = None) -> list[str]:
    """Words for the training script from the options that it has, too: of two values that of the phase."""
    words = []
    for name, option in options_of(type(settings)).items():
        value = getattr(settings, name)
        if isinstance(value, tuple) != (phase is not None) or not option.hand_on:
            continue
        value = value[phase - 1] if phase else value
        if value is not None and value is not False:
            words.append(f"--{option.hand_on}" if value is True else f"--{option.hand_on}={value}")
    return words


# Parsing


def settings_parser(settings_class: type, groups: Iterable[str] = (), **words: str) -> "Parser":
    """An argparse parser with the options of a settings class, under the headings of their groups.

    `groups` are headings in the order of the help; `words` are prog, usage, description and epilog.
    """
    parser = Parser(**words)
    parser.add_argument("-h", "--help", action="store_true", help=argparse.SUPPRESS)
    options = options_of(settings_class)
    titles = dict.fromkeys((*groups, *(option.group for option in options.values() if option.group)))
    headings = {title: parser.add_argument_group(title) for title in titles}
    for name, option in options.items():
        flag = flag_of(name, option)
        headings.get(option.group, parser).add_argument(
            *option.short, *dict.fromkeys((flag, _underscored(flag))), dest=name, **_settings(parser, flag, option)
        )
    return parser


def complaints(left_over: Sequence[str], known: Sequence[str]) -> list[str]:
    """What to say of words that are no options, with the nearest that is one."""
    flags = [word.partition("=")[0] for word in left_over if word.startswith("-")]
    if flags:
        return [f"unknown flag {flag}{nearest(flag, [*known, '--help'])}" for flag in flags]
    return [f"unexpected word {word!r}" for word in left_over]


def parse(
    settings_class: "type[Settings]",
    words: Iterable[str],
    parser: "Parser | None" = None,
    complain: Callable[[Sequence[str], Sequence[str]], list[str]] = complaints,
    **others: object,
) -> "Settings":
    """Settings from words; BadRequest with every unknown, missing and misspelt one.

    `complain` words the problems of what is left over; `others` are fields that are no options.
    """
    parser = parser or settings_parser(settings_class)
    found, left_over = parser.parse_known_args([_underscored(word) for word in words])
    options = options_of(settings_class)
    problems = parser.problems + complain(left_over, [flag_of(*item) for item in options.items()])
    values = {name: getattr(found, name) for name in options}
    problems += [f"{flag_of(name, options[name])} is required" for name, value in values.items() if value is REQUIRED]
    pairs = {
        name: _pair(value, options[name], values.get("phase"))
        for name, value in values.items()
        if isinstance(value, list)
    }
    problems += [
        f"{flag_of(name, options[name])}: expected 2 values, one for each phase, and got {len(pair)}"
        for name, pair in pairs.items()
        if len(pair) != 2
    ]
    if problems:
        raise BadRequest(problems)
    return settings_class(**values | pairs | others)


def _pair(found: list, option: Option, phase: "Any") -> tuple:
    """A value for each phase: those found, or the one found for the phase that runs, or for both."""
    if len(found) != 1 or not (phase or option.serves_both):
        return tuple(found)
    if option.serves_both:
        return (found[0], found[0])
    default = option.default
    assert isinstance(default, tuple)
    return (found[0], default[1]) if phase == 1 else (default[0], found[0])


def split_script_args(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Our words, and those after a bare `--`."""
    words = list(words)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def wants_help(words: Iterable[str]) -> bool:
    return any(word in ("-h", "--help") for word in split_script_args(words)[0])


def _underscored(word: str) -> str:
    """`--max-steps=3` as `--max_steps=3`: both spellings are one flag."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


def _settings(parser: "Parser", flag: str, option: Option) -> "dict[str, Any]":
    """What add_argument shall know of an option."""
    metavar, default = getattr(option.type, "metavar", "X"), option.default
    settings = {"type": parser.keeping_problems(flag, option.type), "default": default, "metavar": metavar}
    if option.type is switch:
        settings |= {"nargs": "?", "const": True}
    elif isinstance(default, tuple):
        settings |= {"nargs": "*", "metavar": (metavar,) * len(default)}  # counted with the other problems
    return settings | {"help": (option.help + _shown(default)).replace("%", "%%")}


def _shown(default: object) -> str:
    if default is REQUIRED:
        return " (required)"
    if default is None or default is False or default == (None, None):
        return ""
    return f" (default {' '.join(map(str, default)) if isinstance(default, tuple) else default})"


class Parser(argparse.ArgumentParser):
    """argparse, but problems are kept until all are known, and nothing exits."""

    def __init__(self, **settings: "Any"):
        super().__init__(allow_abbrev=False, add_help=False, formatter_class=_Formatter, **settings)
        self.problems: list[str] = []

    def error(self, message: str) -> "NoReturn":
        raise BadRequest([*self.problems, message.removeprefix("argument ")])

    def keeping_problems(self, flag: str, type: "Callable[[str], Any]") -> "Callable[[str], Any]":
        def convert(word: str) -> "Any":
            try:
                return type(word)
            except ValueError as error:
                self.problems.append(f"{flag} {word if word.split() == [word] else repr(word)}: {error}")

        return convert


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """`-o, --output_dir PATH`, the values once and not once a spelling."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=38, width=118)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        spellings = ", ".join(action.option_strings)
        if action.nargs == "?" or not action.option_strings:
            return spellings
        values = action.metavar if isinstance(action.metavar, tuple) else (action.metavar,)
        return f"{spellings} {' '.join(map(str, values))}"
