"""From the bytes of a batch to canonical text: one sentence a line, a blank line after each document.

That text is the one form between sources and tokens; `prepare.py extract` writes it to files as it is.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pretraining.data.blanks import HOLE, plain_blanks
from pretraining.data.formats import BOOK, DUMP, EXTRACTED, HTML, JSONL, TEXT, WIKITEXT, damage
from pretraining.data.html_text import without_html
from pretraining.data.sentences import sentence_splitter
from pretraining.data.sources import Batch, Notes, Piece

NO_TEXT = "\n\n"  # the canonical text of a batch without any
LONGEST_LINE = 1 << 20  # characters; a longer one is cut at white space into several sentences
MOST_NOTES = 20  # of a batch: one a line of a huge file would fill memory, and nobody reads them
FOREIGN_WORDS = 0.01  # share of words that are no UTF-8, from which what is left of a piece is no text either
FOREIGN_BYTES = 0.2  # the same of zero bytes
_EMPTY_LINES = re.compile(r"\n(?: *\n)+")
_HEADING = re.compile(r"^(?:= )+.*(?: =)+$", re.MULTILINE)  # one sign on each side: the title of an article
_JOINED = re.compile(r" @([-.,])@ ")
_EXTRACTED = re.compile(
    r'<doc id="[^"\n]*"(?:[^>\n]|"[^"\n]*")*?(?: title="([^\n]*?)")?>\n(.*?)(?:</doc>|\Z)', re.DOTALL
)

_ARTICLE_NEEDS = {"id", "title", "text"}  # of a row that `wikiextractor --json` writes
_ARTICLE_FIELDS = _ARTICLE_NEEDS | {"revid", "url"}


@dataclass(frozen=True)
class TextSettings:
    """How text is read."""

    sentences: str = "rules"  # sentences.SPLITTERS
    language: str = "en"
    text_column: str = "text"  # of JSONL files and data sets
    encoding: str | None = None  # of files that are not UTF-8
    variant: str | None = None  # of a wiki's language, such as zh-hant


@dataclass(frozen=True)
class Canonical:
    """Canonical text of one batch, and what a user should know about its input."""

    text: str
    notes: tuple[str, ...]
    left_out: int = 0  # lines, rows, pages and sentences


def canonical_text(batch: Batch, settings: TextSettings) -> Canonical:
    """Canonical text of a batch; what cannot be read is left out and noted with file and line."""
    split_sentences = sentence_splitter(settings.sentences, settings.language)
    notes, texts = Notes(), []
    for piece in batch.pieces:
        notes += piece.notes
        documents = [document.strip("\n") for document in _READERS[piece.kind](piece, settings, notes)]
        text = "\n\n".join(filter(None, documents))
        if max(map(len, documents), default=0) > LONGEST_LINE:
            text = _short_lines(text, piece, notes)
        sentences = split_sentences(text).strip("\n")
        texts.append(_whole_sentences(sentences, piece, notes) if HOLE in sentences else sentences)
    text = "\n\n".join([*filter(None, texts), ""]) or NO_TEXT
    return Canonical(text, _first_few(notes), notes.left_out)


def _first_few(notes: Notes) -> tuple[str, ...]:
    if len(notes) <= MOST_NOTES:
        return tuple(notes)
    return (*notes[:MOST_NOTES], f"{len(notes) - MOST_NOTES} more like these, the last: {notes[-1]}")


def _whole_sentences(text: str, piece: Piece, notes: Notes) -> str:
    """The sentences that miss no words."""
    lines = text.split("\n")
    kept = [line for line in lines if HOLE not in line]
    notes.leave_out(
        len(lines) - len(kept),
        f"{piece.source}:{piece.first_line}: {len(lines) - len(kept)} of {sum(map(bool, lines))} sentences left out: a"
        " template or formula in them whose words a dump does not have",
    )
    return "\n".join(kept)


def _decode(piece: Piece, settings: TextSettings, notes: Notes) -> str:
    """UTF-8, without the lines that are not; nothing of a piece that is no text or in an encoding nobody told."""
    data = piece.data
    zeros = data.count(0)
    if zeros > FOREIGN_BYTES * len(data):
        note = f"{piece.source}:{piece.first_line}: no text ({zeros / len(data):.0%} zero bytes); all left out"
        notes.leave_out(data.count(b"\n") + 1, note)
        return ""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line, reason = piece.first_line + data.count(b"\n", 0, error.start), error.reason
    found = damage(data)
    if found.is_foreign and settings.encoding:
        try:
            return data.decode(settings.encoding)
        except UnicodeDecodeError:
            pass
    if found.words > FOREIGN_WORDS:
        notes.leave_out(
            data.count(b"\n") + 1,
            f"{piece.source}:{line}: {found.words:.0%} of the words from line {piece.first_line} on are no UTF-8 text;"
            " all left out (another encoding? name it with --encoding, such as cp1252)",
        )
        return ""
    lines = [line.decode("utf-8", "replace") for line in data.split(b"\n")]
    whole = [line for line in lines if "\ufffd" not in line]
    lost = len(lines) - len(whole)
    notes.leave_out(lost, f"{piece.source}:{line}: not UTF-8 ({reason}); {lost} lines from here on left out")
    return "\n".join(whole)


def _plain(piece: Piece, settings: TextSettings, notes: Notes) -> Iterable[str]:
    """Documents between blank lines."""
    text = plain_blanks(_decode(piece, settings, notes))
    if "<" not in text and "&" not in text:
        return _EMPTY_LINES.split(text)
    return _without_html(_numbered(text, piece.first_line), piece, notes)


def _numbered(text: str, line: int) -> Iterator[tuple[int, str]]:
    """(first line, text) of each document of a plain text."""
    start = 0
    for gap in _EMPTY_LINES.finditer(text):
        yield line, text[start : gap.start()]
        line += text.count("\n", start, gap.end())
        start = gap.end()
    yield line, text[start:]


def _html(piece: Piece, settings: TextSettings, notes: Notes) -> Iterable[str]:
    """One document."""
    plain = without_html(_decode(piece, settings, notes), is_html=True)
    return [_one_document(plain.text)]


def _book(piece: Piece, settings: TextSettings, notes: Notes) -> Iterable[str]:
    """One document: paragraphs are parted by blank lines, and their lines were wrapped unless each is a sentence."""
    paragraphs = _plain(piece, settings, notes)
    if settings.sentences != "line":
        paragraphs = (" ".join(paragraph.split()) for paragraph in paragraphs)
    return ["\n".join(filter(None, paragraphs))]


def _wikitext(piece: Piece, settings: TextSettings, notes: Notes) -> Iterable[str]:
    """Articles of WikiText, which a title begins; without titles and headings, "well @-@ known" in one."""
    text = _JOINED.sub(r"\1", plain_blanks(_decode(piece, settings, notes)))
    text = "\n".join(map(str.strip, text.split("\n")))
    marked = _HEADING.sub(lambda heading: "\0" if heading[0].count("=") == 2 else "", text)
    return map(_one_document, marked.split("\0"))


def _jsonl(piece: Piece, settings: TextSettings, notes: Notes) -> Iterable[str]:
    """A document a line, its text under `text_column`; blank lines inside a text do not end it."""
    texts = _json_texts(piece, settings, notes)
    return map(_one_document, _without_html(texts, piece, notes))


def _extracted(piece: Piece, settings: TextSettings, notes: Notes) -> Iterable[str]:
    """Articles as wikiextractor writes them: an element `doc` each, with the title as the first line."""
    text = _decode(piece, settings, notes)
    articles = (
        (piece.first_line + text.count("\n", 0, match.start()), _without_title(match[2], match[1] or ""))
        for match in _EXTRACTED.finditer(text)
    )
    return map(_one_document, _without_html(articles, piece, notes))


def _without_title(text: str, title: str) -> str:
    """A text without its first line, if that is the title alone: a heading is no sentence."""
    first, _, rest = text.lstrip("\n").partition("\n")
    return rest if title and first.strip() == title.strip() and (not rest or rest.startswith("\n")) else text


def _one_document(text: str) -> str:
    return _EMPTY_LINES.sub("\n", plain_blanks(text).strip(" \n"))


def _json_texts(piece: Piece, settings: TextSettings, notes: Notes) -> Iterator[tuple[int, str]]:
    """(line, text) of each row."""
    column = settings.text_column
    faults: dict[str, list[int]] = {}
    text = _decode(piece, settings, notes)
    text = text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    for number, line in enumerate(text.split("\n"), piece.first_line):
        line = line.strip()  # also of the record separator in front of each, which RFC 7464 has
        if not line:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            faults.setdefault("not a JSON object", []).append(number)
        elif column not in row:
            fields = f"--text_column names one of: {', '.join(row)[:200]}" if row else "they have no fields"
            what = f'JSON objects without "{column}" ({fields})'
            faults.setdefault(what, []).append(number)
        elif not isinstance(row[column], str):
            faults.setdefault(f'"{column}" is not a string', []).append(number)
        else:
            yield number, _row_text(row, column)
    for what, numbers in faults.items():
        notes.leave_out(len(numbers), f"{piece.source}:{numbers[0]}: {what}; {_lines(numbers)} left out")


def _row_text(row: dict, column: str) -> str:
    """A row's text; of wikiextractor's rows alone without the title, which older versions put in front of it."""
    text, title = row[column], row.get("title")
    is_article = column == "text" and _ARTICLE_NEEDS <= row.keys() <= _ARTICLE_FIELDS
    below = _without_title(text, title) if is_article and isinstance(title, str) else text
    return below if below.strip() else text


def _lines(numbers: list[int]) -> str:
    """Some line numbers in words."""
    shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return f"line {shown}" if len(numbers) == 1 else f"{len(numbers)} lines ({shown})"


def _without_html(texts: Iterable[tuple[int, str]], piece: Piece, notes: Notes) -> Iterator[str]:
    """Texts without tags and entities; one note tells of all that had some, with the line or row of the first."""
    first, count, tags = None, 0, 0
    for line, text in texts:
        plain = without_html(text)
        if plain.tags:
            if first is None:
                inside = text.count("\n", 0, text.find(plain.first_tag)) if piece.kind in (TEXT, BOOK) else 0
                first = f"{piece.source}:{line + inside}: HTML in the text, from {plain.first_tag!r} on"
            count, tags = count + 1, tags + plain.tags
        yield text if plain.text is text else _one_document(plain.text)
    if first:
        notes.append(f"{first}; {tags} tags in {count} documents left out")


def _short_lines(text: str, piece: Piece, notes: Notes) -> str:
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


def _dump(piece: Piece, settings: TextSettings, notes: Notes) -> Iterable[str]:
    from pretraining.data.wikidump import articles  # mwparserfromhell is needed for dumps only

    return map(_one_document, articles(piece, notes, settings.variant))


# How the bytes of each kind become documents, without empty lines inside.
_READERS = {
    TEXT: _plain,
    BOOK: _book,
    HTML: _html,
    JSONL: _jsonl,
    EXTRACTED: _extracted,
    WIKITEXT: _wikitext,
    DUMP: _dump,
}
