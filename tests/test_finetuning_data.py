"""Reading tables for fine-tuning: every format, every broken file, names of the Hub."""

import gzip
import json
import os
import socket
from random import Random

import datasets
import pyarrow.parquet
import pytest

from central.finetuning.tables import HUB_DATASETS, load_splits, read_table, split_files
from central.runtime.exits import BadRequest

ROWS = [
    {"sentence1": 'a "bare quote', "sentence2": "b", "label": 1},
    {"sentence1": "über, c", "sentence2": 'd "e" f', "label": 0},
]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def delimited(separator, quote=str):
    lines = [list(ROWS[0]), *(row.values() for row in ROWS)]
    return "".join(separator.join(quote(str(value)) for value in line) + "\n" for line in lines)


FILES = {
    "t.tsv": delimited("\t"),
    "t.txt": "\ufeff" + delimited("\t").replace("\n", "\r\n"),
    "t.csv": delimited(",", lambda value: '"' + value.replace('"', '""') + '"'),
    "t.json": json.dumps(ROWS),
    "data.json": json.dumps({"version": "1", "data": ROWS}),
    "lines.json": "\n".join(map(json.dumps, ROWS)) + "\n",
    "t.jsonl": "\n".join(map(json.dumps, ROWS)),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_every_text_format_and_its_gz(tmp_path, name, packed):
    path = write(tmp_path / name, FILES[name])
    if packed:
        path = tmp_path / f"{name}.gz"
        path.write_bytes(gzip.compress(FILES[name].encode()))
    table = read_table(path)
    assert [str(label) for label in table.columns.pop("label")] == ["1", "0"]
    assert table.columns == {name: [row[name] for row in ROWS] for name in ("sentence1", "sentence2")}
    assert len(table.sha256) == 64 and table.source == str(path)


def test_parquet_and_a_folder_of_save_to_disk(tmp_path):
    split = datasets.Dataset.from_list(ROWS)
    split.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress((tmp_path / "t.parquet").read_bytes()))
    split.save_to_disk(tmp_path / "saved")
    for name in ("t.parquet", "t.parquet.gz", "saved"):
        assert read_table(tmp_path / name).columns["sentence1"] == [row["sentence1"] for row in ROWS]


def test_the_hash_is_that_of_the_text_packed_or_not(tmp_path):
    path = write(tmp_path / "t.tsv", FILES["t.tsv"])
    packed = tmp_path / "u.tsv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_table(path).sha256 == read_table(packed).sha256


def test_mrpc_as_distributed(shared_data):
    table = read_table(shared_data / "mrpc" / "msr_paraphrase_train.txt")
    assert len(table) == 4076 and list(table.columns)[0] == "Quality"
    assert len(read_table(shared_data / "mrpc" / "train.tsv")) == 3668


BROKEN = {
    "row.tsv": ("a\tlabel\nx\t1\ny\n\nz\t0\t9\n", ["row.tsv: line 3 has 1 fields; line 5 has 3 fields", "names 2"]),
    "row.csv": ('a,label\n"x\ny",1\nz\n', ["line 4 has 1 fields"]),
    "quote.csv": ('a,label\nx,1\n"y,1\nz,0\n', ["row that begins in line 3", "mend its quotes"]),
    "header.csv": ("a,label\n", ["no rows"]),
    "names.tsv": ("a\ta\nx\ty\n", ["line 1", "distinct"]),
    "empty.csv": ("", ["line 1"]),
    "empty.jsonl": ("\n", ["no rows"]),
    "bad.jsonl": ('{"a": 1}\n{"a": \n', ["bad.jsonl, line 2"]),
    "bad.json": ('{"data": [1,\n 2', ["bad.json, line 2"]),
    "list.json": ("[1, 2]", ["list of objects"]),
    "t.docx": ("x", [".docx", ".tsv"]),
    "t.tsv.gz": ("not packed", ["cannot be read"]),
    "t.parquet": ("not parquet", ["not a parquet file"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_the_line(tmp_path, name):
    text, said = BROKEN[name]
    with pytest.raises(BadRequest) as error:
        read_table(write(tmp_path / name, text))
    assert str(tmp_path) in str(error.value)
    for part in said:
        assert part in str(error.value)


def test_a_damaged_gz_is_refused_wherever_it_is_damaged(tmp_path):
    whole = gzip.compress(FILES["t.tsv"].encode() * 20)
    path, random = tmp_path / "t.tsv.gz", Random(5)
    for damaged in (whole[:-9], *(_with_flipped_bit(whole, random) for _ in range(200))):
        path.write_bytes(damaged)
        try:
            table = read_table(path)
        except BadRequest as error:
            assert str(path) in str(error)
        else:
            assert len(table) == 59  # the flipped bit was one of the header's, such as the time


def _with_flipped_bit(data: bytes, random: Random) -> bytes:
    place = random.randrange(2, len(data))
    return data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]


def test_another_encoding_is_named_with_the_line(tmp_path):
    with pytest.raises(BadRequest, match="latin.tsv, line 3: not UTF-8"):
        read_table(write(tmp_path / "latin.tsv", "a\tb\nx\ty\nü\tz\n", "latin-1"))


def test_broken_rows_are_counted_where_the_official_script_skips_them(tmp_path):
    table = read_table(write(tmp_path / "t.tsv", "a\tb\n1\t2\nbroken\n3\t4\n"), skip_broken_rows=True)
    assert table.columns == {"a": ["1", "3"], "b": ["2", "4"]} and table.skipped == 1
    assert table.where(1).endswith("t.tsv, line 4")


def test_a_file_without_names_gets_them_and_one_with_names_keeps_them(tmp_path):
    header = ("source", "label", "mark", "sentence")
    bare = read_table(write(tmp_path / "bare.tsv", "gj04\t1\t\tText one.\n"), header)
    named = read_table(write(tmp_path / "named.tsv", "index\tsentence\n0\tText one.\n"), header)
    assert bare.columns["sentence"] == named.columns["sentence"] == ["Text one."]


def splits(files=None, name=None, config=None, wanted=("train", "validation"), **more):
    return load_splits(files or {}, name, config, wanted, **more)


def test_local_files_win_and_all_missing_ones_are_told(tmp_path):
    path = write(tmp_path / "t.tsv", FILES["t.tsv"])
    tables = splits({"train": str(path), "validation": str(path)}, name="no/such")
    assert len(tables["train"]) == len(tables["validation"]) == 2
    with pytest.raises(BadRequest) as error:
        splits({"test": str(path)})
    assert len(error.value.problems) == 2 and "--train_file" in error.value.problems[0]


def test_a_folder_of_glue_files_by_name(tmp_path):
    for name in ("train.tsv", "dev_matched.tsv", "dev_mismatched.tsv", "test_matched.tsv"):
        write(tmp_path / name, FILES["t.tsv"])
    wanted = ("train", "validation", "validation_mismatched", "test", "test_mismatched")
    tables = splits(name=str(tmp_path), wanted=wanted)
    assert sorted(tables) == ["test", "train", "validation", "validation_mismatched"]
    assert tables["validation"].source.endswith("dev_matched.tsv")


def test_a_folder_of_several_saved_splits_gives_labels_by_name(tmp_path):
    label = datasets.ClassLabel(names=["not_equivalent", "equivalent"])
    features = datasets.Features({"sentence1": datasets.Value("string"), "label": label})
    rows = [{"sentence1": "x", "label": 1}, {"sentence1": "y", "label": -1}]
    split = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"train": split, "validation": split}).save_to_disk(tmp_path / "saved")
    tables = splits(name=str(tmp_path / "saved"))
    assert tables["train"].columns["label"] == ["equivalent", None]


def test_a_repository_of_the_hub_without_a_script_offline(tmp_path, monkeypatch):
    """The layout of nyu-mll/glue: a folder of parquet files for each configuration, declared in README.md."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a socket was opened"))
    repository = tmp_path / "glue"
    files = [{"split": split, "path": f"mrpc/{split}-*"} for split in ("train", "validation")]
    (repository / "mrpc").mkdir(parents=True)
    write(
        repository / "README.md", "---\nconfigs:\n- config_name: mrpc\n  data_files: " + json.dumps(files) + "\n---\n"
    )
    for split in ("train", "validation"):
        datasets.Dataset.from_list(ROWS).to_parquet(repository / "mrpc" / f"{split}-00000-of-00001.parquet")
    tables = splits(name=str(repository), config="mrpc", cache_dir=str(tmp_path / "cache"))
    assert tables["train"].columns["sentence2"] == [row["sentence2"] for row in ROWS]


def test_the_hub_is_asked_for_a_pinned_revision(monkeypatch):
    asked = {}

    def load_dataset(path, name, revision, cache_dir):
        asked.update(path=path, name=name, revision=revision)
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(splits(name="glue", config="mrpc", wanted=["train"])["train"]) == 2
    assert asked == {"path": "nyu-mll/glue", "name": "mrpc", "revision": HUB_DATASETS["glue"][1]}
    assert all(len(revision) == 40 for _, revision in HUB_DATASETS.values())


def test_a_name_that_cannot_be_had_offline_says_what_to_do():
    with pytest.raises(BadRequest, match="'glue' .mrpc. cannot be loaded: .*--train_file") as error:
        splits(name="glue", config="mrpc")
    assert len(error.value.problems) == 1
    with pytest.raises(BadRequest, match="no data"):
        splits()


# ---- files as people have them


@pytest.mark.parametrize(
    ("name", "text"),
    [("t.csv", " text ,label \na,1\n"), ("t.tsv", "text \t label\na\t1\n"), ("t.jsonl", '{"text ": "a", " label": 1}')],
)
def test_blanks_around_names_are_no_part_of_them(tmp_path, name, text):
    table = read_table(write(tmp_path / name, text))
    assert list(table.columns) == ["text", "label"]


def test_names_that_differ_in_blanks_only_are_refused(tmp_path):
    with pytest.raises(BadRequest, match="line 1: needs distinct column names, found text, text"):
        read_table(write(tmp_path / "t.csv", "text,text \na,b\n"))


def test_a_column_without_a_name_is_called_as_pandas_calls_it(tmp_path):
    table = read_table(write(tmp_path / "t.csv", ",text,label,\n7,a,1,\n3,b,0,\n"))
    assert list(table.columns) == ["Unnamed: 0", "text", "label", "Unnamed: 3"]


LINES = {  # a test file, and the texts it holds, or why it is refused
    "quoted.csv": ('text\n"a"\n""\n"b"\n', ["a", "", "b"]),
    "blank.csv": ("text\na\n\nb\n", ["a", "", "b"]),
    "blank.txt": ("text\r\na\r\n\r\nb\r\n", ["a", "", "b"]),
    "end.tsv": ("text\na\n\n", ["a", ""]),
    "cells.csv": ('id,text\n1,a\n2,\n3,""\n', ["a", "", ""]),
    "wide.csv": ("id,text\n1,a\n\n2,b\n", "line 3 has 0 fields"),
    "wide.tsv": ("id\ttext\n1\ta\n2\n3\tc\n", "line 3 has 1 fields"),
    "wide_end.tsv": ("id\ttext\n1\ta\n\n\n", ["a"]),
    "first.txt": ("\ntext\na\n", "line 1: is empty"),
    "rows.jsonl": ('{"text": "a"}\n\n{"text": "b"}\n', "line 2: not a JSON object"),
    "rows_end.jsonl": ('{"text": "a"}\n{"text": "b"}\n\n', ["a", "b"]),
}


@pytest.mark.parametrize("name", LINES)
def test_nothing_of_a_test_file_is_dropped(tmp_path, name):
    text, expected = LINES[name]
    path = str(write(tmp_path / name, text))
    if isinstance(expected, list):
        (table,) = splits({"test": path}, wanted=["test"], skip_broken_rows=True).values()
        assert table.columns["text"] == expected
        return
    with pytest.raises(BadRequest, match=expected):
        splits({"test": path}, wanted=["test"], skip_broken_rows=True)


def test_a_file_without_a_line_of_names_keeps_its_first_line(tmp_path):
    table = read_table(write(tmp_path / "t.txt", "a b\nc d\n"), every_line=True).without_header("text")
    assert table.columns == {"text": ["a b", "c d"]}
    assert [table.where(row).rpartition(", ")[2] for row in (0, 1)] == ["line 1", "line 2"]


@pytest.mark.parametrize(
    ("names", "train", "validation"),
    [
        (("train-v1.1.json", "dev-v1.1.json", "evaluate-v1.1.py"), "train-v1.1.json", "dev-v1.1.json"),
        (("train-v2.0.json.gz", "dev-v2.0.json.gz"), "train-v2.0.json.gz", "dev-v2.0.json.gz"),
        (("Train.CSV", "Valid.CSV", "trainer.csv"), "Train.CSV", "Valid.CSV"),
        (("train_v2.jsonl", "dev.jsonl"), "train_v2.jsonl", "dev.jsonl"),
        (("train.tsv", "msr_paraphrase_train.txt", "dev.tsv"), "train.tsv", "dev.tsv"),
    ],
)
def test_the_files_of_splits_are_known_by_their_names(tmp_path, names, train, validation):
    for name in names:
        write(tmp_path / name, "")
    found = split_files(tmp_path)
    assert {split: path.name for split, path in found.items()} == {"train": train, "validation": validation}


def test_two_files_of_a_split_and_what_is_no_file_are_refused(tmp_path):
    for name in ("train-v1.1.json", "train-v2.0.json"):
        write(tmp_path / name, "")
    os.mkfifo(tmp_path / "dev.json")
    (tmp_path / "test.json").symlink_to(tmp_path / "not_mounted")
    with pytest.raises(BadRequest) as error:
        split_files(tmp_path)
    several, pipe, link = error.value.problems
    assert "train-v1.1.json, train-v2.0.json" in several and "--train_file" in several
    assert "dev.json: is no regular file" in pipe and "test.json: is no regular file" in link


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "link"])
def test_what_is_no_regular_file_is_refused_unread(tmp_path, kind):
    path = tmp_path / "t.tsv"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
        path = path if kind == "link" else tmp_path / "zero.tsv"
        if kind == "device":
            path.symlink_to(tmp_path / "t.tsv")
    with pytest.raises(BadRequest, match="t.tsv|zero.tsv: is no regular file"):
        read_table(path)


DEEP = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.json", DEEP, "nested too deeply"),
        ("t.jsonl", '{"text": ' + DEEP + "}", "line 1: not a JSON object"),
        ("t.json", '[{"text": ' + "9" * 5000 + "}]", "not JSON"),
        ("t.json", '[{"text": "\\ud83d"}]', "without its other half"),
        ("t.jsonl", '{"text": "x"}\n{"text": "\\udc00 y"}', "line 2: not a JSON object"),
    ],
)
def test_json_that_cannot_be_held_is_refused(tmp_path, name, text, said):
    with pytest.raises(BadRequest, match=said):
        read_table(write(tmp_path / name, text))
    assert read_table(write(tmp_path / "good.json", '[{"text": "\\ud83d\\ude00"}]')).columns["text"] == ["😀"]


def test_a_damaged_parquet_is_refused_wherever_it_is_damaged(tmp_path):
    path, random = tmp_path / "t.parquet", Random(3)
    rows = [{"text": f"some text {i}", "label": i % 2, "score": i / 7, "tags": ["a"] * (i % 3)} for i in range(50)]
    datasets.Dataset.from_list(rows).to_parquet(path)
    whole = path.read_bytes()
    cuts = [whole[:-9], whole[: len(whole) // 2], whole[:-4], whole[:4]]
    for damaged in (*cuts, *(_with_flipped_bit(whole, random) for _ in range(150))):
        path.write_bytes(damaged)
        try:
            read_table(path)  # a flipped bit of a value cannot be seen
        except BadRequest as error:
            assert str(path) in str(error) and "\n" not in str(error)
    path.write_bytes(whole[:-9])
    with pytest.raises(BadRequest, match="t.parquet: not a parquet file, or damaged"):
        read_table(path)


def test_a_parquet_with_a_column_twice_is_refused(tmp_path):
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    for names in (["text", "text"], ["text", " text"]):
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=names), tmp_path / "t.parquet")
        with pytest.raises(BadRequest, match="t.parquet: needs distinct column names, found text, text"):
            read_table(tmp_path / "t.parquet")
