"""From the bytes of a batch to canonical text: one sentence a line, a blank line after each document.

That text is the one form between sources and tokens; `prepare.py extract` writes it to files as it is.
"""

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pretraining.data.blanks import plain_blanks
from pretraining.data.sentences import sentence_splitter
from pretraining.data.sources import BOOK, DUMP, JSONL, TEXT, Batch, Piece

LONGEST_LINE = 1 << 20  # characters; a longer one is cut at white space into several sentences
MOST_NOTES = 20  # of a batch: one a line of a huge file would fill memory, and nobody reads them
FOREIGN_SHARE = 0.2  # of bytes that are no UTF-8 text, from which what is left of a piece is no text either
# A comment, a script or style sheet with its content, a tag. What is left open stops at the next of its kind: cheap.
_HTML = re.compile(
    r"<!--(?:(?!<!--|-->).)*-->|<(script|style)\b[^<>]*>(?:(?!</?\1\b).)*</\1\s*>"
    r"|</?(?:a|abbr|b|big|blockquote|body|br|center|cite|code|dd|div|dl|dt|em|font|h[1-6]|head|hr|html|i|img|li|link|meta|ol|p|pre"
    r"|script|section|small|span|strong|style|sub|sup|table|tbody|td|th|thead|title|tr|tt|u|ul)(?:\s[^<>]{0,500})?/?>",
    re.IGNORECASE | re.DOTALL,
)
_EMPTY_LINES = re.compile(r"\n(?: *\n)+")
_PARAGRAPH = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class TextSettings:
    """How text is read."""

    sentences: str = "rules"  # sentences.SPLITTERS
    language: str = "en"
    text_column: str = "text"  # of JSONL files and data sets


@dataclass(frozen=True)
class Canonical:
    """Canonical text of one batch, and what a user should know about its input."""

    text: str
    notes: tuple[str, ...]


def canonical_text(batch: Batch, settings: TextSettings) -> Canonical:
    """Canonical text of a batch; what cannot be read is left out and noted with file and line."""
    split_sentences = sentence_splitter(settings.sentences, settings.language)
    notes, texts = [], []
    for piece in batch.pieces:
        notes += piece.notes
        paragraphs = _EMPTY_LINES.sub("\n\n", plain_blanks(_READERS[piece.kind](piece, settings, notes)))
        texts.append(split_sentences(_short_lines(paragraphs, piece, notes)).strip("\n"))
    text = "\n\n".join(text for text in texts if text) + "\n\n"
    # JSON and XML can spell half of a character (a lone surrogate), which no file can hold.
    return Canonical(text.encode("utf-8", "ignore").decode("utf-8"), _first_few(notes))


def _first_few(notes: list[str]) -> tuple[str, ...]:
    if len(notes) <= MOST_NOTES:
        return tuple(notes)
    return (*notes[:MOST_NOTES], f"{len(notes) - MOST_NOTES} more like these, the last: {notes[-1]}")


def _decode(piece: Piece, notes: list[str]) -> str:
    """UTF-8, without what is not; nothing of a piece in another encoding, or of a file that is no text."""
    data = piece.data
    foreign = data.count(0)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = piece.first_line + data.count(b"\n", 0, error.start)
        text = data.decode("utf-8", "ignore")
        lost = len(data) - len(text.encode("utf-8"))
        foreign += lost
        if foreign <= FOREIGN_SHARE * len(data):
            notes.append(f"{piece.source}:{line}: not UTF-8 ({error.reason}); {lost} bytes from here on left out")
    if foreign > FOREIGN_SHARE * len(data):
        notes.append(
            f"{piece.source}:{piece.first_line}: {foreign / len(data):.0%} of {len(data)} bytes are no UTF-8 text;"
            " all left out (another encoding? `iconv -t utf-8` converts it)"
        )
        return ""
    return text.removeprefix("\ufeff")


def _plain(piece: Piece, settings: TextSettings, notes: list[str]) -> str:
    return _without_tags(_decode(piece, notes), piece, notes)


def _book(piece: Piece, settings: TextSettings, notes: list[str]) -> str:
    """One document: paragraphs are parted by blank lines, and their lines were wrapped unless each is a sentence."""
    text = plain_blanks(_plain(piece, settings, notes))
    if settings.sentences == "line":
        return _PARAGRAPH.sub("\n", text)
    paragraphs = (" ".join(paragraph.split()) for paragraph in _PARAGRAPH.split(text))
    return "\n".join(paragraph for paragraph in paragraphs if paragraph)


def _jsonl(piece: Piece, settings: TextSettings, notes: list[str]) -> str:
    """A document a line, its text under `text_column`; blank lines inside a text do not end it."""
    return "\n\n".join(
        _without_tags(_PARAGRAPH.sub("\n", plain_blanks(text).strip()), piece, notes)
        for text in _json_texts(piece, settings, notes)
    )


def _json_texts(piece: Piece, settings: TextSettings, notes: list[str]) -> Iterator[str]:
    for number, line in enumerate(_decode(piece, notes).split("\n"), piece.first_line):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[settings.text_column]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            notes.append(
                f'{piece.source}:{number}: not a JSON object with "{settings.text_column}" ({error!r}); line left out'
            )
            continue
        if isinstance(text, str):
            yield text
        else:
            notes.append(f'{piece.source}:{number}: "{settings.text_column}" is not a string; line left out')


def _without_tags(text: str, piece: Piece, notes: list[str]) -> str:
    """Text without HTML, should it have any; angle brackets that are no HTML tag stay."""
    first = _HTML.search(text) if "<" in text else None
    if first is None:
        return text
    line = piece.first_line + text.count("\n", 0, first.start())
    cleaned, count = _HTML.subn(" ", text)
    notes.append(f"{piece.source}:{line}: HTML in the text, from {first[0][:80]!r} on; {count} tags left out")
    return html.unescape(cleaned)


def _short_lines(text: str, piece: Piece, notes: list[str]) -> str:
    if len(text) <= LONGEST_LINE or max(map(len, text.split("\n"))) <= LONGEST_LINE:
        return text
    lines = []
    for number, line in enumerate(text.split("\n")):
        if len(line) > LONGEST_LINE:
            notes.append(
                f"{piece.source}:{piece.first_line + number}: a line of {len(line)} characters, cut at white space"
            )
        while len(line) > LONGEST_LINE:
            cut = line.rfind(" ", 1, LONGEST_LINE) + 1 or LONGEST_LINE
            lines.append(line[:cut])
            line = line[cut:]
        lines.append(line)
    return "\n".join(lines)


def _dump(piece: Piece, settings: TextSettings, notes: list[str]) -> str:
    from pretraining.data.wikidump import articles  # mwparserfromhell is needed for dumps only

    return "\n\n".join(articles(piece, notes))


_READERS = {TEXT: _plain, BOOK: _book, JSONL: _jsonl, DUMP: _dump}
