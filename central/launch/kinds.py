"""Kinds of option values: each turns one word into a value, or says in a ValueError what was expected.

Words come from the command line, a YAML file or a recorded run; the same kind reads them all, so `3e-5` is a number
whoever wrote it.
"""

from central.launch.problems import nearest


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
def path(word):
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


@kind("X")
def positive(word):
    return _number(float, word, lambda value: 0 < value < float("inf"), "a number above 0")


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
    def name_or_path(word):
        return word

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
