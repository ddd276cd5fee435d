"""What an input is, told by its bytes and never by its name: how it is packed, its encoding, the form of its text.

Everything is read as a stream, so memory stays bounded whatever a packed file grows to.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import IO, Any, Protocol

from central.runtime.exits import BadRequest
from pretraining.data.blanks import plain_blanks
from pretraining.data.html_text import TAGS
from pretraining.data.sentences import has_wrapped_lines

SAMPLE_BYTES = 1 << 16
READ_BYTES = 1 << 18
MOST_PACKINGS = 3  # of a file, one around the other
LEAST_FOR_A_GUESS = 256  # bytes, from which an encoding is guessed at all
MOST_MEMORY = 1 << 28  # bytes that an unpacker may take; what needs more is refused

TEXT, BOOK, JSONL, DUMP, EXTRACTED, TABLE, HTML = "text", "book", "jsonl", "dump", "extracted", "table", "html"
WIKITEXT = "wikitext"
TAR, ZIP = "tar", "zip"

# First bytes of files that people give for text: what they are and what to do instead.
_DATASET, _CONVERT, _UNPACK = "give its folder as --dataset", "convert it to text first", "unpack it first"
_NOT_TEXT = (
    (b"PAR1", f"a Parquet file; {_DATASET}"),
    (b"ARROW1", f"an Arrow file; {_DATASET}"),
    (b"\x89HDF\r\n", "an HDF5 file, which is what this program makes"),
    (b"%PDF", f"a PDF file; {_CONVERT}"),
    (b"%!PS", f"a PostScript file; {_CONVERT}"),
    (rb"{\rtf", f"an RTF file; {_CONVERT}"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", f"an old Office document; {_CONVERT}"),
    (b"SQLite format 3\0", f"an SQLite database; {_CONVERT}"),
    (b"Obj\x01", f"an Avro file; {_CONVERT}"),
    (b"ORC", f"an ORC file; {_CONVERT}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {_UNPACK}"),
    (b"Rar!\x1a\x07", f"a RAR archive; {_UNPACK}"),
    (b"\x04\x22\x4d\x18", f"an LZ4 file; {_UNPACK}"),
    (b"\x1f\x9d", f"a file of `compress`; {_UNPACK}"),
    (b"\x89PNG", "a picture"),
    (b"GIF8", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"\x7fELF", "a program"),
    (b"\x93NUMPY", "a NumPy array"),
)
# The beginnings of texts that are more than text: what they are and what to do instead.
_MORE_THAN_TEXT = (
    (r"WARC/\d", f"pages of a web crawl (WARC, WET); {_CONVERT}"),
    (r"WEBVTT\b|\d+\s*\n(?:\d+:)?\d\d:\d\d[,.]\d{3} +-->", f"subtitles; {_CONVERT}"),
    (
        r"From \S+@\S+ .*\d{4}\s*\n|(?:Return-Path|Received|Message-ID|MIME-Version): .*\n(?:[\w-]+:|[ \t])",
        f"mail; {_CONVERT}",
    ),
    (r"(?:%.*\n\s*)*\\(?:documentclass|documentstyle)\b", f"a LaTeX file; {_CONVERT}"),
    (r"sep=.\s*\n", "a table below a line sep=; take that line out"),
    (r"-- (?:MySQL|MariaDB|PostgreSQL) ", f"an SQL dump; {_CONVERT}"),
)
# Letters beyond ASCII: German, French, Spanish, Portuguese, Italian, Catalan, Dutch, Swedish and Finnish, Estonian,
# Danish and Norwegian, Icelandic.
_WESTERN_LETTERS = (
    "äöüßéàèç",
    "éèêëàâçîïôûùüœæÿ",
    "áéíñóúü",
    "àáâãçéêíóôõúü",
    "àèéìíîòóùú",
    "àçèéíïòóúü",
    "éèêëïöüáóíç",
    "åäöé",
    "äöüõ",
    "æøåéèêòóôü",
    "áéíóúýðþæö",
)
_WESTERN_SIGNS = "«»‹›“”„‘’–—…·°§€£©®™•¿¡ºª´\xa0\xad"
MOST_GUESSES = 3
_USUAL_ENCODINGS = (
    *("cp1252", "cp1251", "gb18030", "cp932", "cp1250", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258"),
    *("big5", "cp949", "euc_jp", "euc_kr", "koi8_r", "koi8_u", "iso8859_2", "iso8859_5", "cp866", "cp850", "cp852"),
    "mac_roman",
)
_ENCODED_TWICE = "UTF-8 that was read as cp1252 and encoded again (cafÃ©); undo it first (iconv -f utf-8 -t cp1252)"
LEAST_TAGGED = 20  # lines of a word and its tags, from which a text is told to be made of such
_TAGGED_LINE = re.compile(r"\S+(?:[ \t]\S+){0,4}[ \t](?:O|[BIES]-\S+)")
_ARTICLE_TITLE = re.compile(r" ?= [^=\n]+ = ?$", re.MULTILINE)
_TABLE_END = "\x1eend of table"  # comes after its last line: a row of its own, or in a cell that nothing closes
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError)


@dataclass(frozen=True)
class Form:
    """The form of one text: `fault` says why it is not read, `remark` what a user should know of how it is."""

    kind: str = TEXT
    encoding: str = "utf-8"
    fault: str | None = None
    remark: str | None = None
    delimiter: str = ""  # of a table


@dataclass(frozen=True)
class TextFile:
    """A text inside of an input file, unpacked while it is read; `name` has the way into archives."""

    name: str
    form: Form
    stream: io.BufferedReader


@dataclass(frozen=True)
class FormSettings:
    """What a user tells of the files."""

    encoding: str | None = None  # of those that are not UTF-8
    text_column: str = "text"  # of JSON lines and tables
    one_document_per_file: bool | None = None  # plain text is a book each; None: where its lines are wrapped


class Damaged(ValueError):
    """A packed file that ends too early or is broken."""


class Readable(Protocol):
    """What bytes come out of."""

    def read(self, size: int, /) -> bytes: ...


def sample_form(raw: Readable, settings: FormSettings) -> tuple[Form, bool]:
    """(the form of a file, from its beginning; whether it is packed). An archive's form is TAR or ZIP."""
    try:
        head, _, packings = _unpacked(raw)
    except DAMAGE:
        return Form(), True  # told when it is read
    return _archive(head) or form_of(head, settings), packings > 0


def text_files(raw: IO[bytes], name: str, settings: FormSettings, depth: int = 0) -> Iterator[TextFile]:
    """The texts of an open file, those inside of archives one after the other; each is to be read before the next.

    Damaged is raised where a packed file or archive breaks off.
    """
    try:
        head, stream, packings = _unpacked(raw)
        archive = _archive(head)
        if archive is None or archive.fault:
            yield TextFile(name, archive or form_of(head, settings), stream)
        elif depth == MOST_PACKINGS:
            yield TextFile(name, Form(fault=f"an archive inside of {depth} others; {_UNPACK}"), stream)
        elif archive.kind == TAR:
            for member, inside in _tar_members(stream):
                yield from text_files(inside, f"{name}/{member}", settings, depth + 1)
        elif packings or not raw.seekable():
            yield TextFile(name, Form(fault=f"a zip archive inside of another file; {_UNPACK}"), stream)
        else:
            raw.seek(0)
            for member, inside in _zip_members(raw):
                yield from text_files(inside, f"{name}/{member}", settings, depth + 1)
    except DAMAGE as error:
        raise Damaged(str(error) or type(error).__name__) from error


def form_of(head: bytes, settings: FormSettings) -> Form:
    """The form of a text by its first bytes."""
    for beginning, fault in _NOT_TEXT:
        if head.startswith(beginning):
            return Form(fault=fault)
    form = _encoded(head, settings)
    if form.fault:
        return form
    text = head.decode(form.encoding, "ignore").removeprefix("\ufeff").lstrip()
    whole = len(head) < SAMPLE_BYTES
    for told in (_markup, _json, _index, _wikitext, _table, _tagged):
        found = told(text, whole, settings)
        if found:
            return replace(found, encoding=form.encoding, remark=found.remark or form.remark)
    is_book = settings.one_document_per_file
    if is_book is None:
        text = plain_blanks(text)
        is_book = has_wrapped_lines(text if whole else text.rpartition("\n")[0])
    return replace(form, kind=BOOK) if is_book else form


@dataclass(frozen=True)
class Damage:
    """How much of some bytes is no UTF-8."""

    words: float  # share of words with such bytes
    is_foreign: bool  # more of what is beyond ASCII is damaged than whole: no damage then, but another encoding


def damage(data: bytes) -> Damage:
    words = data.decode("utf-8", "replace").split()
    damaged = sum("\ufffd" in word for word in words)
    whole = sum(not word.isascii() for word in words) - damaged
    return Damage(damaged / max(1, len(words)), damaged > whole)


def _encoded(head: bytes, settings: FormSettings) -> Form:
    """A text's encoding: by its mark, UTF-8, or the one told."""
    for mark, encoding in ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32")):
        if head.startswith(mark):
            return Form(encoding=encoding)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Form(encoding="utf-16")
    if head.count(0) > len(head) / 100:
        if not head.strip(b"\0"):
            return Form(fault="nothing but zero bytes, as an empty archive or a file that was never written")
        if settings.encoding and head.decode(settings.encoding, "replace").count("\ufffd") <= 1:
            return Form(encoding=settings.encoding)
        return Form(fault="no text, or in an encoding such as UTF-16 that --encoding can name")
    if len(head) == SAMPLE_BYTES:
        head = head[: head.rfind(b"\n") + 1] or head[:-4]  # no character in halves
    try:
        text = head.decode("utf-8")
        return Form(fault=_ENCODED_TWICE) if not text.isascii() and _is_encoded_twice(text) else Form()
    except UnicodeDecodeError:
        found = damage(head)
    if not found.is_foreign:
        return Form()  # the damaged lines are left out when it is read
    if settings.encoding is None:
        return _refused(head, found.words)
    try:
        head.decode(settings.encoding)
    except UnicodeDecodeError as error:
        return Form(fault=f"neither UTF-8 nor --encoding {settings.encoding} ({error.reason})")
    return Form(encoding=settings.encoding, remark=f"not UTF-8, read as --encoding {settings.encoding}")


def _is_encoded_twice(text: str) -> bool:
    """Whether most words beyond ASCII are such as cafÃ©: bytes of UTF-8 that were read as cp1252 or Latin-1."""
    words = [word for word in text.split() if not word.isascii()]
    return len(words) > 2 and sum(map(_is_word_encoded_twice, words)) > len(words) / 2


def _is_word_encoded_twice(word: str) -> bool:
    for encoding in ("cp1252", "latin-1"):
        try:
            word.encode(encoding).decode("utf-8")
            return True
        except UnicodeError:
            pass
    return False


def _refused(head: bytes, share: float) -> Form:
    """Which encoding it is can be guessed, and wrong letters are not seen by those who guess: the user says it."""
    likely = _likely_encodings(head) if len(head) >= LEAST_FOR_A_GUESS else []
    perhaps = f"; perhaps {' or '.join(likely)}" if likely else ""
    return Form(fault=f"not UTF-8 in {share:.0%} of its words{perhaps}: name its encoding with --encoding")


def _likely_encodings(head: bytes) -> list[str]:
    """cp1252 where that gives the letters of one Western language, else what a library finds, the usual names of it."""
    from charset_normalizer import from_bytes  # a tenth of a second, and most texts are UTF-8

    if _is_western(head):
        return ["cp1252"]
    same = [match.could_be_from_charset for match in from_bytes(head)]  # encodings that read the text alike
    usual = [next((name for name in _USUAL_ENCODINGS if name in names), None) for names in same]
    return list(dict.fromkeys(name for name in usual if name))[:MOST_GUESSES]


def _is_western(head: bytes) -> bool:
    try:
        text = head.decode("cp1252").lower()
    except UnicodeDecodeError:
        return False
    letters = [letter for letter in text if not letter.isascii() and letter not in _WESTERN_SIGNS]
    return any(sum(letter not in known for letter in letters) <= 0.05 * len(letters) for known in _WESTERN_LETTERS)


def _markup(text: str, whole: bool, settings: FormSettings) -> Form | None:
    if not text.startswith("<"):
        return None
    beginning = text[:4096].lower()
    if beginning.startswith(("<mediawiki", "<page>")) or beginning.startswith("<?xml") and "<mediawiki" in beginning:
        return Form(DUMP)
    if re.match(r'<doc id="', beginning):
        return Form(EXTRACTED)
    if beginning.startswith(("<!doctype html", "<html")) or beginning.startswith("<?xml") and "<html" in beginning:
        return Form(HTML)
    first = re.match(r"<([a-z][\w.:-]*)[^<>]*>", beginning)
    name = first[1] if first else ""
    is_xml = beginning.startswith("<?xml")
    if is_xml or name and name not in TAGS and f"</{name}>" in text.lower():
        what = "an XML file" if is_xml else f"markup (<{name}>)"
        return Form(fault=f"{what} that is no MediaWiki dump; convert it to text or JSON lines first")
    return None


def _json(text: str, whole: bool, settings: FormSettings) -> Form | None:
    """JSON lines; other JSON is refused, and so are lines none of which has the text."""
    if re.match(r'\[\s*(?:[\[{"]|\])', text) and not re.match(r"\[[^\n]*\]\s*[^\s\]]", text):
        return Form(fault="a JSON array; a JSON object a line is read (jq -c '.[]' makes them)")
    if text[:1] not in ("[", "{"):
        below = text.splitlines()[1:21] if "\n{" in text else []
        if len(below) > 2 and all(map(_json_object, below[:-1])):
            return Form(fault=f"JSON lines below a line that is none ({text.splitlines()[0][:40]!r}); take it out")
        return None
    lines = [line for line in re.split(r"[\r\n]", text) if line.strip()]
    if not whole:
        lines.pop()
    if len(lines) > 1 and all(re.fullmatch(r'\[\s*["\[{].*\]\s*', line) for line in lines):
        return Form(fault="a JSON array a line; a JSON object a line is read (jq -c '{text: .[0]}' makes them)")
    if not re.match(r'\{\s*(?:"|\})', text):
        return None
    rows = [row for row in map(_json_object, lines) if row is not None]
    if not rows and len(lines) > 1:
        return Form(fault="JSON over several lines; a JSON object a line is read (jq -c . makes it one)")
    if rows and not any(settings.text_column in row for row in rows):
        fields = ", ".join(dict.fromkeys(str(field) for row in rows[:20] for field in row)) or "none"
        return Form(fault=f'JSON lines without "{settings.text_column}"; --text_column names one of: {fields[:200]}')
    return Form(JSONL)


def _json_object(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _index(text: str, whole: bool, settings: FormSettings) -> Form | None:
    lines = text.split("\n", 20)[:-1]
    if len(lines) > 1 and all(re.match(r"\d+:\d+:\S", line) for line in lines):
        return Form(fault="the index of a multistream dump, which has no text; give the dump itself")
    fault = next((fault for beginning, fault in _MORE_THAN_TEXT if re.match(beginning, text)), None)
    return Form(fault=fault) if fault else None


def _wikitext(text: str, whole: bool, settings: FormSettings) -> Form | None:
    """Articles of the WikiText corpora: titles and headings between signs of equality, words apart."""
    if not _ARTICLE_TITLE.match(text) or " @-@ " not in text and " . " not in text:
        return None
    rare = '; rare words are "<unk>" in it, which the raw form has' if "<unk>" in text else ""
    return Form(WIKITEXT, remark=f"WikiText: read as its articles, without titles and headings{rare}")


def _tagged(text: str, whole: bool, settings: FormSettings) -> Form | None:
    """A word a line with its tags."""
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    tagged = sum(_TAGGED_LINE.fullmatch(line) is not None for line in lines)
    if tagged >= LEAST_TAGGED and tagged >= 0.9 * len(lines):
        return Form(fault=f"a word and its tags on each line; {_CONVERT}")
    return None


def _table(text: str, whole: bool, settings: FormSettings) -> Form | None:
    """Comma or tab separated values, told by a header of names and rows of as many cells."""
    header = re.split(r"[\r\n]", text, maxsplit=1)[0]
    for delimiter in "\t,;":
        names = next(csv.reader([header], delimiter=delimiter), []) if delimiter in header else []
        name_of_column = r"\w[\w .#/-]{0,30}" if delimiter == "," else r"\w[\w .,#/-]{0,30}"
        named = settings.text_column in names
        if (
            len(names) < 2
            or len(set(names)) < len(names)
            and not named
            or not all(re.fullmatch(name_of_column, name) for name in names)
        ):
            continue
        if not named and any(" " in name.strip() for name in names) and (delimiter != ";" or len(names) < 3):
            continue  # more likely the first line of a text
        try:
            rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
        except csv.Error:
            continue
        rows = rows[1:] if whole else rows[1:-1]
        if len(rows) >= (1 if named else 3) and sum(len(row) == len(names) for row in rows) >= 0.9 * len(rows):
            if names.count(settings.text_column) > 1:
                return Form(fault=f"a table with several columns {settings.text_column}; give them other names")
            if named:
                return Form(TABLE, delimiter=delimiter)
            what = "tab" if delimiter == "\t" else f'"{delimiter}"'
            return Form(fault=f"a table ({what} between its columns); --text_column names one of: {', '.join(names)}")
    lines = [line.strip() for line in text.split("\n")[: None if whole else -1] if not line.startswith("#")]
    tabs = [line.count("\t") for line in lines if line]  # between words, as a tab in front of a paragraph is none
    if len(tabs) > 3 and tabs[0] and tabs.count(tabs[0]) >= 0.95 * len(tabs):
        columns = f"a table of {tabs[0] + 1} columns without a header"
        return Form(fault=f"{columns}; name them in a first line, one of them {settings.text_column}")
    return None


def table_rows(stream: io.BufferedReader, form: Form) -> Iterator[dict[str, str | None]]:
    """Rows of a table that `form_of` has told; None for the cells that a row lacks.

    Damaged, with the line, where a cell does not end.
    """
    csv.field_size_limit(1 << 25)
    lines = io.TextIOWrapper(stream, form.encoding, errors="replace", newline="")
    header = lines.readline().removeprefix("\ufeff")
    names = next(csv.reader([header], delimiter=form.delimiter))
    reader, start = csv.reader(chain(lines, [_TABLE_END]), delimiter=form.delimiter), 2
    try:
        for row in reader:
            if row and row[-1].endswith(_TABLE_END):
                if row != [_TABLE_END]:
                    raise Damaged(f"{start}: a quotation mark that nothing closes")
            elif row:
                yield {**dict.fromkeys(names), **dict(zip(names, row, strict=False))}
            start = reader.line_num + 2
    except csv.Error as error:
        raise Damaged(f"{start}: {error}") from error


class Recoded:
    """A text in any encoding as UTF-8."""

    def __init__(self, stream: io.BufferedReader, encoding: str):
        import codecs

        self.stream, self.decoder = stream, codecs.getincrementaldecoder(encoding)("replace")

    def read1(self, size: int) -> bytes:
        while True:
            chunk = self.stream.read1(size)
            recoded = self.decoder.decode(chunk, final=not chunk).encode("utf-8", "ignore")
            if recoded or not chunk:
                return recoded


# Unpacking


class _Rejoined(io.RawIOBase):
    """A stream whose beginning was read already."""

    def __init__(self, head: bytes, stream: Readable):
        self.head, self.stream = memoryview(head), stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self.head[: len(buffer)] if self.head else _read_some(self.stream, len(buffer))
        self.head = self.head[len(chunk) :]
        buffer[: len(chunk)] = chunk
        return len(chunk)


class _Unxz(io.RawIOBase):
    """An xz file, with a bound on the memory that its dictionary may take (lzma.LZMAFile knows none)."""

    def __init__(self, stream: Readable):
        self.stream, self.decoder, self.rest = stream, lzma.LZMADecompressor(memlimit=MOST_MEMORY), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self.decoder.eof:
                self.rest = (self.decoder.unused_data or self.stream.read(READ_BYTES)).lstrip(b"\0")
                if not self.rest:
                    return 0
                self.decoder = lzma.LZMADecompressor(memlimit=MOST_MEMORY)
            elif self.decoder.needs_input and not self.rest:
                self.rest = self.stream.read(READ_BYTES)
                if not self.rest:
                    raise EOFError("it ends before its end mark")
            chunk = self.decoder.decompress(self.rest, len(buffer))
            self.rest = b""
            if chunk:
                buffer[: len(chunk)] = chunk
                return len(chunk)


class _Unzstd(io.RawIOBase):
    """A zstd file of one frame or several."""

    def __init__(self, stream: io.BufferedReader):
        try:
            import zstandard
        except ImportError as error:
            raise BadRequest("--input: a zstd file needs a package: pip install zstandard") from error
        self.error = zstandard.ZstdError
        self.reader = zstandard.ZstdDecompressor(max_window_size=MOST_MEMORY).stream_reader(
            stream, read_size=READ_BYTES, read_across_frames=True
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self.reader.readinto(buffer)
        except self.error as error:
            raise OSError(str(error)) from error


_ZSTD_SKIPPABLE = tuple(bytes((0x50 + number, 0x2A, 0x4D, 0x18)) for number in range(16))  # pzstd begins so
_UNPACKERS: tuple[tuple[tuple[bytes, ...], Callable[[io.BufferedReader], Readable]], ...] = (
    ((b"\x1f\x8b",), lambda stream: gzip.GzipFile(fileobj=stream)),
    ((b"BZh",), bz2.BZ2File),
    ((b"\xfd7zXZ\0", b"]\0\0"), _Unxz),  # also of the older form, .lzma
    ((b"(\xb5/\xfd", *_ZSTD_SKIPPABLE), _Unzstd),
)


def _unpacked(raw: Readable) -> tuple[bytes, io.BufferedReader, int]:
    """(first bytes, the whole stream, times it was packed)."""
    source, packings = raw, 0
    while True:
        head = _read_up_to(source, SAMPLE_BYTES)
        stream: io.BufferedReader = io.BufferedReader(_Rejoined(head, source), READ_BYTES)
        unpack = next((unpack for marks, unpack in _UNPACKERS if head.startswith(marks)), None)
        if unpack is None or packings == MOST_PACKINGS:
            return head, stream, packings
        source, packings = unpack(stream), packings + 1


def _read_some(stream: Readable, size: int) -> bytes:
    """What comes at once: `read` goes on up to the size, and loses what it has where damage stops it."""
    read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
    return read(size)


def _read_up_to(stream: Readable, size: int) -> bytes:
    """As many bytes as there are, whatever comes at a time; those before a damaged place, if there are any."""
    data = b""
    while len(data) < size:
        try:
            chunk = _read_some(stream, size - len(data))
        except DAMAGE:
            if data:
                break
            raise
        if not chunk:
            break
        data += chunk
    return data


def _archive(head: bytes) -> Form | None:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        if head[30:38] == b"mimetype" or b"[Content_Types].xml" in head[:4096]:
            return Form(fault=f"an e-book or Office document; {_CONVERT}")
        return Form(ZIP)
    if len(head) >= tarfile.BLOCKSIZE:
        try:
            tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
            return Form(TAR)
        except tarfile.HeaderError:
            pass
    return None


def _tar_members(stream: io.BufferedReader) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(fileobj=stream, mode="r|", errorlevel=0) as archive:
        for member in archive:
            inside = archive.extractfile(member) if member.isfile() and not is_hidden(member.name) else None
            if inside:  # it cannot be sought in, and fails when it is asked
                yield member.name, io.BufferedReader(_Rejoined(b"", inside), READ_BYTES)


def _zip_members(raw: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(raw) as archive:
        for member in archive.infolist():
            if member.is_dir() or is_hidden(member.filename):
                continue
            if member.flag_bits & 1:
                raise OSError(f"{member.filename} needs a password")
            with archive.open(member) as inside:
                yield member.filename, inside


def is_hidden(path: str) -> bool:
    """Whether a file is one that systems and programs keep for themselves."""
    return any(part.startswith(".") and part != "." or part == "__MACOSX" for part in path.split("/"))
