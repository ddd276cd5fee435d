"""Where text comes from: files of several kinds, read as a stream and cut into batches of whole documents.

A batch depends on the input alone, never on how many processes work on it; that is why the output does not either.
What a file is, is told in `formats.py`; what a reader must make of a batch's bytes, in `documents.py`.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from central.errors import first_line
from central.files import files_below, write_synced
from central.runtime.exits import BadRequest
from pretraining.data.blanks import one_line
from pretraining.data.formats import (
    BOOK,
    DAMAGE,
    DUMP,
    EXTRACTED,
    HTML,
    JSONL,
    TABLE,
    TAR,
    TEXT,
    WIKITEXT,
    ZIP,
    Damaged,
    FormSettings,
    Recoded,
    TextFile,
    is_hidden,
    sample_form,
    table_rows,
    text_files,
)
from pretraining.data.wiki_names import SITE_INFO_BYTES, Wiki, site_info

BATCH_BYTES = 4 << 20
READ_BYTES = 1 << 18
PACKED_TEXT = 3.5  # bytes of text in a byte of a compressed file
LONGEST_DOCUMENT = 32 << 20  # bytes; a longer one is cut, so that memory stays bounded
SHOWN_NOTES = 20

# After which bytes a record of each kind ends: a blank line, the file, a line, a page.
_RECORD_ENDS = {
    TEXT: tuple(f"{end}{end}".encode() for end in ("\n", "\r\n", "\r", "\u2028", "\u2029", "\x85")) + (b"\n\r\n",),
    BOOK: (),
    HTML: (),
    JSONL: (b"\n", b"\r"),
    EXTRACTED: (b"</doc>",),
    DUMP: (b"</page>",),
    WIKITEXT: (b"\n \n",),
}
_SPECIAL = "not a regular file (a device, pipe or socket), which might never end; give a file or folder"


class Notes(list[str]):
    """What a user should know of some input, and how many lines, rows, pages and sentences of it were left out."""

    left_out = 0

    def leave_out(self, count: int, note: str) -> None:
        self.left_out += count
        self.append(note)


def show_notes(notes: list[str], folder: Path) -> None:
    """Print what a user should know of the input: the first few, all of them in a file."""
    for note in notes[:SHOWN_NOTES]:
        print(f"note: {one_line(note)}")
    if len(notes) > SHOWN_NOTES:
        write_synced(folder / ".notes.log", "".join(f"{one_line(note)}\n" for note in notes).encode())
        print(f"note: {len(notes) - SHOWN_NOTES} more in {folder / '.notes.log'}")


@dataclass(frozen=True)
class Source:
    """One input: a file."""

    path: str
    kind: str
    size: int  # bytes on disk; 0 when not known
    is_packed: bool = False
    form_settings: FormSettings = FormSettings()


@dataclass(frozen=True)
class Piece:
    """Whole records of one source."""

    source: str
    kind: str
    first_line: int  # of the unpacked source, from 1
    data: bytes
    notes: tuple[str, ...] = ()
    wiki: Wiki | None = None  # of a dump


@dataclass(frozen=True)
class Batch:
    """What one worker handles at a time."""

    number: int
    pieces: tuple[Piece, ...]
    bytes_read: int  # of all sources on disk, up to here


@dataclass(frozen=True)
class HubDataset:
    """A data set read with Hugging Face `datasets`, by id or from a local folder."""

    name: str
    config: str | None
    split: str
    text_column: str


def find_sources(inputs: list[str], settings: FormSettings) -> list[Source]:
    """The files behind the given files and folders (searched whole, in order of their names); BadRequest if none.

    What cannot be read is refused where it was given by name, and left out of a folder with a line that says why.
    """
    problems, sources = [], []
    for given in map(Path, inputs):
        try:
            if given.is_dir():
                files = [path for path in files_below(given) if not is_hidden(str(path.relative_to(given)))]
                if not files:
                    problems.append(f"--input {given}: the folder has no file in it")
            elif given.exists():
                files = [given]
            else:
                problems.append(f"--input {given}: no such file or folder")
                continue
        except OSError as error:
            problems.append(f"--input {error.filename}: cannot be read ({error.strerror})")
            continue
        for file in files:
            try:
                sources.append(_source(file, settings))
            except OSError as error:
                problems.append(f"--input {file}: cannot be read ({error.strerror or error})")
            except UnreadableForm as error:
                if file == given:
                    problems.append(f"--input {file}: {error}")
                else:
                    print(one_line(f"note: {file}: {error}; left out"))
    if problems:
        raise BadRequest(map(one_line, problems))
    return sources


class UnreadableForm(ValueError):
    """A file that is no text, or text in a form that is not read."""


def _source(path: Path, settings: FormSettings) -> Source:
    if not path.is_file():
        path.stat()  # a link to what is not there says so
        raise UnreadableForm(_SPECIAL)
    with open(path, "rb") as file:
        form, is_packed = sample_form(file, settings)
    if form.fault:
        raise UnreadableForm(form.fault)
    if form.remark:
        print(one_line(f"note: {path}: {form.remark}"))
    return Source(str(path), form.kind, path.stat().st_size, is_packed, settings)


def describe_sources(sources: tuple[Source, ...]) -> list[list[object]]:
    """What tells that files are still the same and read the same way: of archives, how their texts are."""
    return [[s.path, s.kind, s.size, Path(s.path).stat().st_mtime_ns, *_told_of_members(s)] for s in sources]


def _told_of_members(source: Source) -> list[object]:
    return [source.form_settings.one_document_per_file] if source.kind in (TAR, ZIP) else []


def text_bytes(sources: tuple[Source, ...] | list[Source]) -> float:
    """About how many bytes of text the files hold once unpacked."""
    return sum(source.size * (PACKED_TEXT if source.is_packed else 1.0) for source in sources)


def batches(sources: list[Source], dataset: HubDataset | None) -> Iterator[Batch]:
    """All input in order, in batches of about BATCH_BYTES."""
    number, size, pieces, before = 0, 0, [], 0
    for source in sources:
        for piece, position in _pieces(source):
            pieces.append(piece)
            size += len(piece.data)
            if size >= BATCH_BYTES:
                yield Batch(number, tuple(pieces), before + position)
                number, size, pieces = number + 1, 0, []
        before += source.size
    for piece in _dataset_pieces(dataset) if dataset else ():
        yield Batch(number, (*pieces, piece), before)
        number, pieces = number + 1, []
    if pieces:
        yield Batch(number, tuple(pieces), before)


def _pieces(source: Source) -> Iterator[tuple[Piece, int]]:
    """(records of one file, bytes of it read so far); the texts in an archive one after the other."""
    path, kinds = source.path, []
    with open(path, "rb") as raw:
        try:
            for file in text_files(raw, path, source.form_settings):
                kinds.append(file.form.kind)
                for piece in _pieces_of(file, source, raw):
                    yield piece, raw.tell()
        except Damaged as error:
            yield _said(path, _damaged(path, raw, source, error)), raw.tell()
        if source.kind in (TAR, ZIP) and source.form_settings.one_document_per_file is None and BOOK in kinds:
            books = kinds.count(BOOK)
            yield _said(path, f"{path}: {wrapped_lines_said(books, books + kinds.count(TEXT))}"), raw.tell()


def wrapped_lines_said(books: int, texts: int) -> str:
    """What a user should know of plain texts that were taken for books."""
    return (
        f"{books} of {texts} plain texts have wrapped lines: each is read as one document, its lines joined to"
        " paragraphs (--one_document_per_file 0: as documents between blank lines, a sentence ends with its line)"
    )


def _damaged(name: str, raw: BinaryIO, source: Source, error: Exception) -> str:
    return f"{name}: damaged after {raw.tell()} of {source.size} bytes ({error}); what came before is used"


def _said(path: str, note: str) -> Piece:
    return Piece(path, TEXT, 1, b"", (note,))


def _pieces_of(file: TextFile, source: Source, raw: BinaryIO) -> Iterator[Piece]:
    """Whole records of one text. A damaged end is noted in the last piece."""
    name, form = file.name, file.form
    if form.fault:
        yield _said(name, f"{name}: {form.fault}; left out")
        return
    if form.kind == TABLE:
        yield from _row_pieces(name, table_rows(file.stream, form), source.form_settings.text_column)
        return
    stream = file.stream if form.encoding == "utf-8" else Recoded(file.stream, form.encoding)
    ends, buffer, line, wiki, more = _RECORD_ENDS[form.kind], bytearray(), 1, None, True
    notes = [f"{name}: {form.remark}"] if form.remark and name != source.path else []
    while more:
        try:
            more = _fill(buffer, stream, len(buffer) + BATCH_BYTES)
        except DAMAGE as error:
            more = False
            notes.append(_damaged(name, raw, source, error))
        if form.kind == DUMP and wiki is None:
            wiki = site_info(bytes(buffer[:SITE_INFO_BYTES]))
            if not wiki.namespaces:
                notes.append(f"{name}: a dump that does not name its name spaces; those of the larger wikis are taken")
        cut = _after_last(ends, buffer) if more else len(buffer)
        if not cut and len(buffer) >= LONGEST_DOCUMENT:
            cut = _cut_inside(buffer)
            notes.append(f"{name}:{line}: a document of more than {LONGEST_DOCUMENT >> 20} MiB, cut there")
        if cut or notes:
            data = bytes(buffer[:cut])
            yield Piece(name, form.kind, line, data, tuple(notes), wiki)
            line += data.count(b"\n")
            notes = []
            del buffer[:cut]


def _after_last(ends: tuple[bytes, ...], buffer: bytearray) -> int:
    """Where the last of any of these marks ends, 0 without one; each is sought behind the last that was found."""
    cut = 0
    for end in ends:
        found = buffer.rfind(end, max(0, cut - len(end)))
        cut = max(cut, found + len(end)) if found >= 0 else cut
    return cut


def _fill(buffer: bytearray, stream: io.BufferedReader | Recoded, size: int) -> bool:
    """Read until the buffer has `size` bytes; False at the end. What was read before an error stays in the buffer."""
    while len(buffer) < size:
        chunk = stream.read1(min(READ_BYTES, size - len(buffer)))
        if not chunk:
            return False
        buffer += chunk
    return True


def _cut_inside(buffer: bytearray) -> int:
    """A place inside a document to cut it: after the last white space, else before a UTF-8 character."""
    cut = max(buffer.rfind(b"\n"), buffer.rfind(b" ")) + 1 or len(buffer)
    while cut < len(buffer) and buffer[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def _dataset_pieces(dataset: HubDataset) -> Iterator[Piece]:
    return _row_pieces(dataset.name, _dataset_rows(dataset), dataset.text_column)


def _row_pieces(name: str, rows: Iterable[Mapping[str, object]], text_column: str) -> Iterator[Piece]:
    """Rows as JSON lines, so that they take the way of any JSONL file."""
    lines, size, first, notes = [], 0, 1, []
    try:
        for number, row in enumerate(rows, 1):
            if text_column not in row:
                raise BadRequest(f"--text_column {text_column}: data set {name} has the columns {', '.join(row)}")
            lines.append(json.dumps({text_column: row[text_column]}).encode() + b"\n")
            size += len(lines[-1])
            if size >= BATCH_BYTES:
                yield Piece(name, JSONL, first, b"".join(lines))
                lines, size, first = [], 0, number + 1
    except Damaged as error:
        notes.append(f"{name}:{error}; what came before is used")
    except DAMAGE as error:
        notes.append(f"{name}: damaged ({error}); what came before is used")
    if lines or notes:
        yield Piece(name, JSONL, first, b"".join(lines), tuple(notes))


def _dataset_rows(dataset: HubDataset) -> Iterator[dict]:
    try:
        import datasets
    except ImportError as error:
        raise BadRequest("--dataset: pip install datasets") from error
    try:
        if (Path(dataset.name) / "state.json").is_file():  # what Dataset.save_to_disk leaves
            yield from datasets.load_from_disk(dataset.name)
        else:
            yield from datasets.load_dataset(dataset.name, dataset.config, split=dataset.split, streaming=True)
    except (OSError, ValueError) as error:  # not found, no network, no such configuration or split, damaged
        raise BadRequest(f"--dataset {dataset.name}: cannot be read ({first_line(error)})") from error
