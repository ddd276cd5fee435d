"""A program to start, as values: what the whole launcher makes, prints and runs."""

import shlex

from central.launch.values import Value


class Command(Value):
    """Whole words, and the variables added to the caller's environment. `name` is for messages."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    name: str


class Plan(Value):
    """Commands in the order they run. `keep_going`: one that fails does not stop the others; the last sums them up."""

    commands: tuple[Command, ...]
    notes: tuple[str, ...] = ()
    keep_going: bool = False


def shell_line(command) -> str:
    """The command as one line to paste into a shell."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in command.env]
    return " ".join([*assignments, shlex.join(command.argv)])
