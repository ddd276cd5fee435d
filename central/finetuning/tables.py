"""Tables of text and labels for fine-tuning: from the Hub by name, or from the local files that people have.

`read_table(path)` knows TSV as GLUE distributes it, CSV, JSON, JSONL, parquet, gz of each and folders of
`datasets.save_to_disk`; `load_splits(...)` finds the train, validation and test tables of a run. Every error names
the file and the line.
"""

import csv
import gzip
import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from central.runtime.exits import BadRequest

# Name -> (Hub id, revision). A revision keeps the data of a run the data of its repetition; none of them has a script.
HUB_DATASETS = {
    "glue": ("nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"),
    "squad": ("rajpurkar/squad", "7b6d24c440a36b6815f21b70d25016731768db1f"),
    "squad_v2": ("rajpurkar/squad_v2", "3ffb306f725f7d2ce8394bc1873b24868140c412"),
}
# Split -> the names it has in GLUE's zip files, in folders of files and on the Hub.
SPLIT_NAMES = {
    "train": ("train", "msr_paraphrase_train"),
    "validation": ("validation", "dev", "dev_matched", "validation_matched", "val", "valid"),
    "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
    "test": ("test", "test_matched", "msr_paraphrase_test"),
    "test_mismatched": ("test_mismatched",),
}
FORMATS = (".tsv", ".txt", ".csv", ".json", ".jsonl", ".ndjson", ".parquet")
LISTED = 3  # rows that an error lists by number before it only counts


@dataclass(frozen=True)
class Table:
    """One split: columns of equal length, and where they came from. Raises BadRequest for one without rows."""

    columns: dict[str, list]
    source: str  # the file, or the Hub's name of it
    sha256: str  # of the file's bytes, or the Hub's fingerprint of the split
    lines: Sequence[int] | None = None  # line of each row in the file, where a row is a line
    skipped: int = 0  # broken rows left out because the official script leaves them out

    def __post_init__(self):
        if not len(self):
            raise BadRequest(f"{self.source}: holds no rows")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def where(self, row: int) -> str:
        """How a message names a row (counted from 0): file, and line or row counted from 1."""
        return f"{self.source}, line {self.lines[row]}" if self.lines else f"{self.source}, row {row + 1}"

    def head(self, count: int | None) -> "Table":
        """The first `count` rows; all of them for None."""
        if count is None:
            return self
        lines = None if self.lines is None else self.lines[:count]
        return replace(self, columns={name: values[:count] for name, values in self.columns.items()}, lines=lines)


def listed(rows: Iterable[str]) -> str:
    """The first few of many places, and how many more there are."""
    rows = list(rows)
    more = f" and {len(rows) - LISTED} more" if len(rows) > LISTED else ""
    return "; ".join(rows[:LISTED]) + more


# ---- files


def read_table(path: str | Path, header: Sequence[str] | None = None, skip_broken_rows: bool = False) -> Table:
    """Read one file, or one folder of `datasets.save_to_disk`.

    `header` names the columns of a TSV, if its first line does not; `skip_broken_rows` counts rows with a wrong
    number of fields instead of refusing them. Raises BadRequest naming file and line.
    """
    path = Path(path)
    if path.is_dir():
        return _from_arrow_folder(path)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind.lower() not in FORMATS:
        raise BadRequest(
            f"{path}: unknown format {kind or 'without suffix'!r}: give one of {' '.join(FORMATS)}, or its .gz"
        )
    data = _bytes_of(path)
    digest = hashlib.sha256(data).hexdigest()
    if kind.lower() == ".parquet":
        return Table(_parquet_columns(path, data), str(path), digest)
    text = _text_of(path, data)
    if kind.lower() in (".tsv", ".txt", ".csv"):
        columns, lines, skipped = _delimited(path, text, kind.lower() == ".csv", header, skip_broken_rows)
        return Table(columns, str(path), digest, lines, skipped)
    rows, lines = _json_rows(path, text, kind.lower() != ".json")
    return Table(_columns_of(rows), str(path), digest, lines)


def _bytes_of(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except FileNotFoundError:
        raise BadRequest(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise BadRequest(f"{path}: cannot be read ({error})") from None


def _text_of(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")  # GLUE's MRPC begins with a byte-order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadRequest(f"{path}, line {line}: not UTF-8 text: convert the file to UTF-8") from None


def _delimited(path, text, is_csv, header, skip_broken_rows) -> tuple[dict[str, list], list[int], int]:
    """Columns, the line of each row and the number of rows skipped."""
    if is_csv:
        numbered = _csv_rows(path, text)
    else:  # quotes in GLUE's files are text, and some stand alone
        numbered = ((number, line.rstrip("\r").split("\t")) for number, line in enumerate(text.split("\n"), 1))
    numbered = ((number, row) for number, row in numbered if row not in ([], [""]))
    first = next(numbered, (1, []))
    names = first[1]
    if header and not set(header) & set(names):  # the file begins with a row, as GLUE's CoLA does
        names, numbered = list(header), itertools.chain([first], numbered)
    if not names or len(set(names)) < len(names):
        raise BadRequest(f"{path}, line 1: needs a line of distinct column names, found {names}")
    good, lines, broken = [], [], []
    for number, row in numbered:
        if len(row) == len(names):
            good.append(row)
            lines.append(number)
        else:
            broken.append(f"line {number} has {len(row)} fields")
    if broken and not skip_broken_rows:
        raise BadRequest(f"{path}: {listed(broken)}, where the first line names {len(names)}: mend or remove them")
    return {name: [row[i] for row in good] for i, name in enumerate(names)}, lines, len(broken)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line each one ends in. A quote that is never closed would swallow the rest of the file."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    begin = 1
    try:
        for row in reader:
            begin = reader.line_num + 1
            yield reader.line_num, row
    except csv.Error as error:
        raise BadRequest(f"{path}, row that begins in line {begin}: not CSV ({error}): mend its quotes") from None


def _json_rows(path: Path, text: str, one_a_line: bool) -> tuple[list[dict], list[int] | None]:
    """Rows of a JSON document, or of one document a line, which files named .json often are."""
    if not one_a_line:
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            first = text.split("\n", 1)[0]
            if not _is_json_object(first):
                raise BadRequest(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
        else:
            rows = document.get("data", [document]) if isinstance(document, dict) else document
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise BadRequest(f'{path}: needs a list of objects, or {{"data": [...]}}')
            return rows, None
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            if not _is_json_object(line):
                raise BadRequest(f"{path}, line {number}: not a JSON object on one line")
            rows.append(json.loads(line))
            lines.append(number)
    return rows, lines


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False


def _columns_of(rows: list[dict]) -> dict[str, list]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _parquet_columns(path: Path, data: bytes) -> dict[str, list]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(io.BytesIO(data)).to_pydict()
    except pyarrow.ArrowException as error:
        raise BadRequest(f"{path}: not a parquet file ({error})") from None


# ---- folders and the Hub


def load_splits(
    files: dict[str, str | None],
    dataset_name: str | None,
    config_name: str | None,
    wanted: Sequence[str],
    cache_dir: str | None = None,
    headers: dict[str, Sequence[str] | None] | None = None,
    skip_broken_rows: bool = False,
) -> dict[str, Table]:
    """Tables of the wanted splits: `files` (split -> path) win over the dataset's name.

    `dataset_name` is a key of HUB_DATASETS, a Hub id, or a local folder: GLUE's files, parquet, or `save_to_disk`.
    Raises BadRequest with every problem found.
    """
    files = {split: path for split, path in files.items() if path}
    tables, problems = {}, []
    named = {} if files else _open_named(dataset_name, config_name, cache_dir, headers or {}, skip_broken_rows)
    for split in wanted:
        try:
            if files:
                if split in files:
                    tables[split] = read_table(files[split], (headers or {}).get(split), skip_broken_rows)
                elif not split.endswith("_mismatched"):
                    flag = f"--do_{ {'train': 'train', 'validation': 'eval', 'test': 'predict'}[split] }"
                    problems.append(f"{flag} needs --{split}_file beside the other local files")
                continue
            if split in named:
                tables[split] = named[split]()
            elif not split.endswith("_mismatched"):
                problems.append(f"{dataset_name} has no {split} split; it has {', '.join(named) or 'none'}")
        except BadRequest as error:
            problems += error.problems
    if problems:
        raise BadRequest(problems)
    return tables


def _open_named(name, config_name, cache_dir, headers, skip_broken_rows) -> dict[str, Any]:
    """Split -> function that reads its table."""
    if not name:
        raise BadRequest("no data: give --train_file / --validation_file / --test_file, or --dataset_name")
    folder = Path(name)
    if folder.is_dir() and not (folder / "dataset_dict.json").exists():
        found = {
            split: path
            for split, names in SPLIT_NAMES.items()
            for path in sorted(folder.iterdir())
            if path.is_file() and path.name.split(".")[0] in names and set(path.suffixes) & set(FORMATS)
        }
        if found:
            return {s: lambda s=s: read_table(found[s], headers.get(s), skip_broken_rows) for s in found}
    import datasets

    datasets.disable_progress_bars()
    try:
        if (folder / "dataset_dict.json").exists():
            splits = datasets.load_from_disk(str(folder))
        else:
            hub_id, revision = HUB_DATASETS.get(name, (name, None))
            splits = datasets.load_dataset(hub_id, config_name, revision=revision, cache_dir=cache_dir)
    except Exception as error:  # the library raises a dozen kinds, most of them about the network
        reason = str(error).strip().split("\n")[0]
        raise BadRequest(
            f"data {name!r}{f' ({config_name})' if config_name else ''} cannot be loaded: {reason}: check the name and "
            "the network, or give local files with --train_file / --validation_file / --test_file"
        ) from None
    names = {split: next((n for n in SPLIT_NAMES[split] if n in splits), None) for split in SPLIT_NAMES}
    return {s: lambda n=n: _from_arrow(splits[n], f"{name} {n}") for s, n in names.items() if n}


def _from_arrow_folder(folder: Path) -> Table:
    import datasets

    try:
        split = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise BadRequest(f"{folder}: not a folder of datasets.save_to_disk ({error})") from None
    if isinstance(split, datasets.DatasetDict):
        raise BadRequest(f"{folder}: holds several splits: give it as --dataset_name")
    return _from_arrow(split, str(folder))


def _from_arrow(split, source: str) -> Table:
    """Class labels become their names, so that they read the same as those of a local file."""
    import datasets

    columns = split.to_dict()
    for name, feature in split.features.items():
        if isinstance(feature, datasets.ClassLabel):
            columns[name] = [None if i is None or i < 0 else feature.names[i] for i in columns[name]]
    return Table(columns, source, split._fingerprint)
