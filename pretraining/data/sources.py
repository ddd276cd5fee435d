"""Where text comes from: files of several kinds, read as a stream and cut into batches of whole documents.

A batch depends on the input alone, never on how many processes work on it; that is why the output does not either.
What a reader must make of a batch's bytes is in `documents.py`.
"""

import bz2
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from central.runtime.exits import BadRequest

BATCH_BYTES = 4 << 20
READ_BYTES = 1 << 18
PACKED_TEXT = 3.5  # bytes of text in a byte of a compressed file
LONGEST_DOCUMENT = 32 << 20  # bytes; a longer one is cut, so that memory stays bounded

TEXT, BOOK, JSONL, DUMP = "text", "book", "jsonl", "dump"
# After which bytes a record of each kind ends: a blank line, the file, a line, a page.
_RECORD_ENDS = {TEXT: (b"\n\n", b"\n\r\n"), BOOK: (), JSONL: (b"\n",), DUMP: (b"</page>",)}
_OPENERS = {".gz": gzip.open, ".bz2": bz2.open}
# First bytes of files that people give for text: what to do instead.
_NOT_TEXT = {
    b"PAR1": "a Parquet file; give its folder as --dataset",
    b"ARROW1": "an Arrow file; give its folder as --dataset",
    b"%PDF": "a PDF file; convert it to text first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"\xfd7zXZ": "an xz file; unpack it first",
    b"(\xb5/\xfd": "a zstd file; unpack it first",
    b"\x89HDF\r\n": "an HDF5 file, which is what this program makes",
}


@dataclass(frozen=True)
class Source:
    """One input: a file, or a data set of the Hub (path is its id)."""

    path: str
    kind: str
    size: int  # bytes on disk; 0 when not known

    @property
    def name(self) -> str:
        return Path(self.path).name


@dataclass(frozen=True)
class Piece:
    """Whole records of one source."""

    source: str
    kind: str
    first_line: int  # of the unpacked source, from 1
    data: bytes
    notes: tuple[str, ...] = ()


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


def find_sources(inputs: list[str], one_document_per_file: bool) -> list[Source]:
    """The files behind the given files and folders (searched whole, in order of their names); BadRequest if none."""
    problems, sources = [], []
    for given in map(Path, inputs):
        if given.is_dir():
            files = sorted(p for p in given.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(given)))
            if not files:
                problems.append(f"--input {given}: the folder has no file in it")
        elif given.is_file():
            files = [given]
        else:
            problems.append(f"--input {given}: no such file or folder")
            continue
        for file in files:
            try:
                sources.append(Source(str(file), _kind(file, one_document_per_file), file.stat().st_size))
            except OSError as error:
                problems.append(f"--input {file}: cannot be read ({error.strerror or error})")
            except ValueError as error:
                if given.is_file():
                    problems.append(f"--input {file}: {error}")
                else:
                    print(f"note: {file}: {error}; left out")
    if problems:
        raise BadRequest(problems)
    return sources


def text_bytes(sources: tuple[Source, ...] | list[Source]) -> float:
    """About how many bytes of text the files hold once unpacked."""
    return sum(s.size * (PACKED_TEXT if Path(s.path).suffix in _OPENERS else 1.0) for s in sources)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _kind(path: Path, one_document_per_file: bool) -> str:
    """What a file holds, by its name and first bytes; ValueError for formats that are no text."""
    if ".jsonl" in path.suffixes or ".json" in path.suffixes:
        return JSONL
    try:
        with _open(path) as file:
            head = file.read(1024)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        head = b""
    for beginning, remedy in _NOT_TEXT.items():
        if head.startswith(beginning):
            raise ValueError(remedy)
    if head.lstrip(b"\xef\xbb\xbf \r\n").startswith((b"<mediawiki", b"<?xml")) and b"<mediawiki" in head:
        return DUMP
    return BOOK if one_document_per_file else TEXT


def _open(path: Path) -> io.BufferedIOBase:
    return _OPENERS.get(path.suffix, open)(path, "rb")


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
    """(records of one file, bytes of it read so far). A damaged end is noted in the last piece."""
    ends = _RECORD_ENDS[source.kind]
    buffer, line, notes = bytearray(), 1, []
    path = Path(source.path)
    with open(path, "rb") as raw, _open_stream(raw, path) as stream:
        more = True
        while more:
            try:
                more = _fill(buffer, stream, len(buffer) + BATCH_BYTES)
            except (EOFError, OSError, zlib.error) as error:
                more = False
                notes.append(
                    f"{path}: damaged after {raw.tell()} of {source.size} bytes ({error}); what came before is used"
                )
            cut = (
                max((buffer.rfind(end) + len(end) for end in ends if end in buffer), default=0) if more else len(buffer)
            )
            if not cut and len(buffer) >= LONGEST_DOCUMENT:
                cut = _cut_inside(buffer)
                notes.append(f"{path}:{line}: a document of more than {LONGEST_DOCUMENT >> 20} MiB, cut there")
            if cut or notes:
                data = bytes(buffer[:cut])
                yield Piece(source.path, source.kind, line, data, tuple(notes)), raw.tell()
                line += data.count(b"\n")
                notes = []
                del buffer[:cut]


def _fill(buffer: bytearray, stream: io.BufferedIOBase, size: int) -> bool:
    """Read until the buffer has `size` bytes; False at the end. What was read before an error stays in the buffer."""
    while len(buffer) < size:
        chunk = stream.read1(min(READ_BYTES, size - len(buffer)))
        if not chunk:
            return False
        buffer += chunk
    return True


def _open_stream(raw: io.BufferedReader, path: Path) -> io.BufferedIOBase:
    return _OPENERS[path.suffix](raw, "rb") if path.suffix in _OPENERS else raw


def _cut_inside(buffer: bytearray) -> int:
    """A place inside a document to cut it: after the last white space, else before a UTF-8 character."""
    cut = max(buffer.rfind(b"\n"), buffer.rfind(b" ")) + 1 or len(buffer)
    while cut < len(buffer) and buffer[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def _dataset_pieces(dataset: HubDataset) -> Iterator[Piece]:
    """Rows as JSON lines, so that they take the way of any JSONL file."""
    lines, size, first = [], 0, 1
    for number, row in enumerate(_dataset_rows(dataset), 1):
        if dataset.text_column not in row:
            columns = ", ".join(row)
            raise BadRequest(f"--text_column {dataset.text_column}: data set {dataset.name} has the columns {columns}")
        lines.append(json.dumps({dataset.text_column: row[dataset.text_column]}).encode() + b"\n")
        size += len(lines[-1])
        if size >= BATCH_BYTES:
            yield Piece(dataset.name, JSONL, first, b"".join(lines))
            lines, size, first = [], 0, number + 1
    if lines:
        yield Piece(dataset.name, JSONL, first, b"".join(lines))


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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadRequest(f"--dataset {dataset.name}: cannot be read ({reason})") from error
