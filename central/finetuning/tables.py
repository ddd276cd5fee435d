"""Tables of text and labels for fine-tuning: from the Hub by name, or from the local files that people have.

`read_table(path)` knows TSV as GLUE distributes it, CSV, JSON, JSONL, parquet, gz of each and folders of
`datasets.save_to_disk`; `load_splits(...)` finds the train, validation and test tables of a run. Every error names
the file and the line. Nothing is left out of a test file: its rows get their predictions by number.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from central.errors import first_line
from central.files import is_special
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
ORIGINALS = ("msr_paraphrase_train", "msr_paraphrase_test")  # lie beside GLUE's own split of them
VERSION = re.compile(r"([-_.]v?|v)\d+(\.\d+)*")  # after the name of a split, as in SQuAD's train-v1.1.json
FORMATS = (".tsv", ".txt", ".csv", ".json", ".jsonl", ".ndjson", ".parquet")
HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")  # the escape of a surrogate, which no text has alone
LISTED = 3  # rows that an error lists by number before it only counts


@dataclass(frozen=True)
class Table:
    """One split: columns of equal length, and where they came from. Raises BadRequest for one without rows."""

    columns: dict[str, list]
    source: str  # the file, or the Hub's name of it
    sha256: str  # of the file's bytes, or the Hub's fingerprint of the split
    lines: Sequence[int] | None = None  # line of each row in the file, where a row is a line
    skipped: int = 0  # broken rows left out because the official script leaves them out
    first_line: tuple[str, ...] | None = None  # of a text file, where the columns have their names from it

    def __post_init__(self) -> None:
        if not len(self):
            raise BadRequest(f"{self.source}: holds no rows")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def where(self, row: int) -> str:
        """How a message names a row (counted from 0): file, and line or row counted from 1."""
        return f"{self.source}, line {self.lines[row]}" if self.lines else f"{self.source}, row {row + 1}"

    def without_header(self, name: str) -> "Table":
        """The table of a file of one column whose first line is a row; the column gets a name."""
        (values,), (first,) = self.columns.values(), self.first_line or ()
        return replace(self, columns={name: [first, *values]}, lines=[1, *(self.lines or ())], first_line=None)

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


def read_table(
    path: str | Path, header: Sequence[str] | None = None, skip_broken_rows: bool = False, every_line: bool = False
) -> Table:
    """Read one file, or one folder of `datasets.save_to_disk`.

    `header` names the columns of a TSV, if its first line does not; `skip_broken_rows` counts rows with a wrong
    number of fields instead of refusing them; with `every_line` blank lines are not passed over, as the rows are
    known by their number. Raises BadRequest naming file and line.
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
        numbered = list(_csv_rows(path, text)) if kind.lower() == ".csv" else _tsv_rows(text)
        return _delimited(path, digest, numbered, header, skip_broken_rows, every_line)
    rows, lines = _json_rows(path, text, kind.lower() != ".json", every_line)
    return Table(_columns_of(path, rows), str(path), digest, lines)


def _bytes_of(path: Path) -> bytes:
    if is_special(path):
        raise BadRequest(f"{path}: is no regular file (a device, pipe or socket): write its content to a file first")
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


def _named(source: str | Path, names: Sequence[str], columns: Sequence[list]) -> dict[str, list]:
    """Columns by their names, without blanks around these; one without a name is called as pandas calls it."""
    names = [str(name).strip() or f"Unnamed: {number}" for number, name in enumerate(names)]
    if not names or len(set(names)) < len(names):
        raise BadRequest(f"{source}: needs distinct column names, found {', '.join(names) or 'none'}")
    return dict(zip(names, columns, strict=True))


def _delimited(
    path: Path,
    digest: str,
    numbered: list[tuple[int, list[str]]],
    header: Sequence[str] | None,
    skip_broken_rows: bool,
    every_line: bool,
) -> Table:
    """The table of numbered rows; one without fields is a blank line, in a file of one column an empty text."""
    begin = next((i for i, (_, row) in enumerate(numbered) if row), len(numbered))
    if every_line and 0 < begin < len(numbered):
        raise BadRequest(f"{path}, line 1: is empty: needs a line of column names, or a row")
    first = numbered[begin][1] if begin < len(numbered) else []
    has_names = not header or bool({*header} & {name.strip() for name in first})
    names = first if has_names else list(header or ())  # the file begins with a row, as GLUE's CoLA does
    named = _named(f"{path}, line 1", names, [[] for _ in names])
    numbered = numbered[begin + has_names :]
    if len(names) == 1:
        numbered = [(number, row or [""]) for number, row in numbered]
    elif every_line:
        while numbered and not numbered[-1][1]:
            numbered.pop()
    else:
        numbered = [(number, row) for number, row in numbered if row]
    good = [(number, row) for number, row in numbered if len(row) == len(names)]
    broken = [f"line {number} has {len(row)} fields" for number, row in numbered if len(row) != len(names)]
    if broken and not skip_broken_rows:
        raise BadRequest(f"{path}: {listed(broken)}, where the first line names {len(names)}: mend or remove them")
    columns = {name: [row[i] for _, row in good] for i, name in enumerate(named)}
    return Table(columns, str(path), digest, [n for n, _ in good], len(broken), tuple(first) if has_names else None)


def _tsv_rows(text: str) -> list[tuple[int, list[str]]]:
    """Fields of each line; quotes in GLUE's files are text, and some stand alone."""
    lines = text.split("\n")
    if not lines[-1]:  # the end of the line before
        lines.pop()
    fields = (line.rstrip("\r").split("\t") for line in lines)
    return [(number, [] if row == [""] else row) for number, row in enumerate(fields, 1)]


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


def _json_rows(path: Path, text: str, one_a_line: bool, every_line: bool) -> tuple[list[dict], list[int] | None]:
    """Rows of a JSON document, or of one document a line, which files named .json often are."""
    if not one_a_line:
        try:
            document = parse_json(text)
        except ValueError as error:
            if not _is_json_object(text.split("\n", 1)[0]):
                line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
                reason = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise BadRequest(f"{path}{line}: not JSON ({reason})") from None
        else:
            rows = document.get("data", [document]) if isinstance(document, dict) else document
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise BadRequest(f'{path}: needs a list of objects, or {{"data": [...]}}')
            return rows, None
    rows, lines = [], []
    stripped = text.rstrip() if every_line else text
    for number, line in enumerate(stripped.split("\n"), 1):
        if line.strip() or every_line:
            if not _is_json_object(line):
                raise BadRequest(f"{path}, line {number}: not a JSON object on one line")
            rows.append(parse_json(line))
            lines.append(number)
    return rows, lines


def parse_json(text: str) -> Any:
    """A JSON document. Raises ValueError, also for what the library cannot hold: depth, digits, half characters."""
    try:
        document = json.loads(text)
        if HALF_CHARACTER.search(text):
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("an escape \\ud800 to \\udfff without its other half") from None
    return document


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(parse_json(text), dict)
    except ValueError:
        return False


def _columns_of(path: Path, rows: list[dict]) -> dict[str, list]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _named(path, names, [[row.get(name) for row in rows] for name in names]) if names else {}


def _parquet_columns(path: Path, data: bytes) -> dict[str, list]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(data)).read()
        columns = [column.to_pylist() for column in table.columns]
    except Exception as error:  # damage shows in a dozen kinds, by the place it is in
        raise BadRequest(f"{path}: not a parquet file, or damaged ({first_line(error)})") from None
    return _named(path, table.column_names, columns)


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
    given = {split: path for split, path in files.items() if path}
    tables: dict[str, Table] = {}
    problems: list[str] = []
    named = {} if given else _open_named(dataset_name, config_name, cache_dir, headers or {}, skip_broken_rows)
    for split in wanted:
        try:
            if given:
                if split in given:
                    tables[split] = _read_split(split, given[split], headers or {}, skip_broken_rows)
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


def _read_split(split: str, path: str | Path, headers: dict, skip_broken_rows: bool) -> Table:
    is_test = split.startswith("test")
    return read_table(path, headers.get(split), skip_broken_rows and not is_test, every_line=is_test)


def split_files(folder: Path) -> dict[str, Path]:
    """The file of each split in a folder, by its name: train.tsv, dev-v1.1.json, msr_paraphrase_test.txt.gz.

    Raises BadRequest where two could be meant, or one is no regular file.
    """
    found: dict[str, list[Path]] = {split: [] for split in SPLIT_NAMES}
    for path in sorted(folder.iterdir()):
        stem = path.name.lower().removesuffix(".gz")
        kind = next((each for each in FORMATS if stem.endswith(each)), "")
        for split, names in SPLIT_NAMES.items() if kind else ():
            stem = stem.removesuffix(kind)
            if any(stem == name or (stem.startswith(name) and VERSION.fullmatch(stem[len(name) :])) for name in names):
                found[split].append(path)
    problems = []
    for split, paths in found.items():
        found[split] = [path for path in paths if not path.name.startswith(ORIGINALS)] or paths
        if len(found[split]) > 1:
            several = ", ".join(path.name for path in found[split])
            problems.append(f"{folder}: several files of the {split} split ({several}): name one with --{split}_file")
        problems += [f"{path}: is no regular file" for path in found[split] if not path.is_file()]
    if problems:
        raise BadRequest(problems)
    return {split: paths[0] for split, paths in found.items() if paths}


def _open_named(
    name: str | None, config_name: str | None, cache_dir: str | None, headers: dict, skip_broken_rows: bool
) -> dict[str, Callable[[], Table]]:
    """Split -> function that reads its table."""
    if not name:
        raise BadRequest("no data: give --train_file / --validation_file / --test_file, or --dataset_name")
    folder = Path(name)
    if folder.is_dir() and not (folder / "dataset_dict.json").exists():
        found = split_files(folder)
        if found:
            return {s: partial(_read_split, s, found[s], headers, skip_broken_rows) for s in found}
    import datasets

    datasets.disable_progress_bars()
    try:
        if (folder / "dataset_dict.json").exists():
            splits = datasets.load_from_disk(str(folder))
        else:
            hub_id, revision = HUB_DATASETS.get(name, (name, None))
            splits = datasets.load_dataset(hub_id, config_name, revision=revision, cache_dir=cache_dir)
    except Exception as error:  # the library raises a dozen kinds, most of them about the network
        raise BadRequest(
            f"data {name!r}{f' ({config_name})' if config_name else ''} cannot be loaded: {first_line(error)}: check "
            "the name and "
            "the network, or give local files with --train_file / --validation_file / --test_file"
        ) from None
    names = {split: next((n for n in SPLIT_NAMES[split] if n in splits), None) for split in SPLIT_NAMES}
    return {s: partial(_from_arrow, splits[n], f"{name} {n}") for s, n in names.items() if n}


def _from_arrow_folder(folder: Path) -> Table:
    import datasets

    try:
        split = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise BadRequest(f"{folder}: not a folder of datasets.save_to_disk ({error})") from None
    if isinstance(split, datasets.DatasetDict):
        raise BadRequest(f"{folder}: holds several splits: give it as --dataset_name")
    return _from_arrow(split, str(folder))


def _from_arrow(split: Any, source: str) -> Table:
    """Class labels become their names, so that they read the same as those of a local file."""
    import datasets

    columns = split.to_dict()
    for name, feature in split.features.items():
        if isinstance(feature, datasets.ClassLabel):
            columns[name] = [None if i is None or i < 0 else feature.names[i] for i in columns[name]]
        elif isinstance(labels := getattr(feature, "feature", None), datasets.ClassLabel):  # a list of them
            columns[name] = [[labels.names[i] for i in row] for row in columns[name]]
    return Table(_named(source, [*columns], [*columns.values()]), source, split._fingerprint)
