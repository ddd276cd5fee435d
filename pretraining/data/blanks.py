"""White space by one definition, Unicode's: what ends a line, and what only parts words.

Text between sources and tokens has one line end and one blank, so that no later step needs to know of the others.
"""

import re

# Unicode's mandatory breaks: line feed, vertical tab, form feed, carriage return, next line, two separators.
LINE_ENDS = "\n\x0b\x0c\r\x85\u2028\u2029"
# All else that has the property White_Space, no-break spaces and the ideographic space among it.
BLANKS = "\t \xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
# Control characters say nothing, and BERT's tokenizer drops them; four of them are white space to Python alone.
CONTROLS = "".join(character for character in map(chr, (*range(0x20), *range(0x7F, 0xA0))) if not character.isspace())
CONTROLS += "\x1c\x1d\x1e\x1f"

# Where words of a text are lost; no character: Unicode keeps it for marks like this; sentences.py has those before it.
HOLE = "\ufdd4"

_CHANGES = dict.fromkeys(LINE_ENDS, "\n") | dict.fromkeys(BLANKS, " ") | dict.fromkeys(CONTROLS, "")
# Also half of a character, which JSON and XML can spell and no file can hold.
_CHANGED = re.compile(f"[{''.join(_CHANGES).replace(' ', '')}\ud800-\udfff]")


def one_line(message: str) -> str:
    """A message whose line ends (a path may have some) are written out, so that it stays one line."""
    return "".join(repr(sign)[1:-1] if sign in LINE_ENDS else sign for sign in message)


def plain_blanks(text: str) -> str:
    """The text with "\\n" as its only line end, " " as its only blank, without control characters or halves."""
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    for page in "\x0b\x0c":
        if page in text:  # a new page at a line's end is one end, not an empty line
            text = text.replace(f"\n{page}", "\n").replace(f"{page}\n", "\n")
    lines = [line if line.isprintable() else _CHANGED.sub(_change, line) for line in text.split("\n")]
    return "\n".join(lines)  # nothing that changes is printable, and few lines have any of it


def _change(match: re.Match[str]) -> str:
    return _CHANGES.get(match[0], "")
