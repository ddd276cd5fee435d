"""Reading text: kinds of input, batches of whole documents, and every kind of damage with file and line."""

import bz2
import gzip
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from central.runtime.exits import BadRequest
from pretraining.data import documents, sources
from pretraining.data.documents import TextSettings, canonical_text
from pretraining.data.sources import Batch, HubDataset, Piece, batches, find_sources

LINES = TextSettings(sentences="line")


def read(paths, settings=LINES, one_document_per_file=False, dataset=None) -> tuple[list[list[str]], list[str]]:
    """(documents as lists of lines, notes) of some files."""
    text, notes = "", []
    sources_found = find_sources([str(path) for path in paths], one_document_per_file)
    for batch in batches(sources_found, dataset):
        canonical = canonical_text(batch, settings)
        text += canonical.text
        notes += canonical.notes
    found = ([line for line in document.split("\n") if line.strip()] for document in text.split("\n\n"))
    return [document for document in found if document], notes


def test_plain_text_has_a_blank_line_between_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one.\ntwo.\n\n \nthree.\n")
    (tmp_path / "b.txt").write_text("four.")
    assert read([tmp_path]) == ([["one.", "two."], ["three."], ["four."]], [])


def test_dos_line_ends_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone.\r\ntwo.\r\n\r\nthree.\r\n")
    assert read([tmp_path])[0] == [["one.", "two."], ["three."]]


def test_books_are_one_document_a_file_with_wrapped_lines(tmp_path):
    (tmp_path / "a.txt").write_text("CHAPTER I\n\nIt was a dark\nnight. It rained.\n\n\nThe end.\n")
    (tmp_path / "b.txt").write_text("Another book.\n")
    found, _ = read([tmp_path], TextSettings(), one_document_per_file=True)
    assert found == [["CHAPTER I", "It was a dark night.", "It rained.", "The end."], ["Another book."]]


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".jsonl", bytes), (".jsonl.gz", gzip.compress), (".jsonl.bz2", bz2.compress)]
)
def test_jsonl(tmp_path, suffix, pack):
    rows = [{"body": "one.\n\ntwo."}, {"body": "three."}]
    (tmp_path / f"a{suffix}").write_bytes(pack("\n".join(map(json.dumps, rows)).encode()))
    settings = TextSettings(sentences="line", text_column="body")
    assert read([tmp_path], settings) == ([["one.", "two."], ["three."]], [])


def test_damaged_json_lines_are_named_and_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "one."}\n{"text": \n\n{"other": 1}\n{"text": 5}\n[1]\n{"text": "two."}\n' + "[" * 100_000 + "\n"
    )
    found, notes = read([tmp_path])
    assert found == [["one."], ["two."]]
    assert [note.split(": ")[0].rpartition(":")[2] for note in notes] == ["2", "4", "5", "6", "8"]


def test_a_hub_dataset_from_a_local_folder(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text('{"text": "One. Two."}\n{"text": "Three."}\n')
    dataset = HubDataset(str(tmp_path), None, "train", "text")
    found, _ = read([], TextSettings(), dataset=dataset)
    assert found == [["One.", "Two."], ["Three."]]
    with pytest.raises(BadRequest, match="--text_column body: .* has the columns text"):
        read([], TextSettings(text_column="body"), dataset=HubDataset(str(tmp_path), None, "train", "body"))
    with pytest.raises(BadRequest, match="--dataset .*absent"):
        read([], TextSettings(), dataset=HubDataset(str(tmp_path / "absent"), None, "train", "text"))


def test_a_dataset_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["One. Two.", "Three."]}).save_to_disk(tmp_path / "saved")
    found, _ = read([], TextSettings(), dataset=HubDataset(str(tmp_path / "saved"), None, "train", "text"))
    assert found == [["One.", "Two."], ["Three."]]


def test_a_damaged_dataset_is_one_line(tmp_path):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "train.parquet"
    datasets.Dataset.from_dict({"text": [f"sentence {number}." for number in range(10_000)]}).to_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000] + b"\0" * (len(whole) - 2000) + whole[-1000:])
    with pytest.raises(BadRequest, match="--dataset .* cannot be read"):
        read([], TextSettings(), dataset=HubDataset(str(tmp_path), None, "train", "text"))


@pytest.mark.parametrize("data", [b"PAR1" + b"a" * 100, b"%PDF-1.7 text", b"PK\x03\x04text"])
def test_files_of_other_formats_are_refused_or_left_out_of_a_folder(tmp_path, capsys, data):
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "b.txt").write_text("one.\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").write_text("two.\n")
    with pytest.raises(BadRequest, match=r"a\.txt: a "):
        find_sources([str(tmp_path / "a.txt")], False)
    assert read([tmp_path])[0] == [["one."]]
    assert "a.txt: a " in capsys.readouterr().out


def test_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one.\ntw\xffo.\n\nth\xe2\x28ree.\n")
    found, notes = read([tmp_path])
    assert found == [["one.", "two."], ["th(ree."]]
    assert len(notes) == 1 and "a.txt:2: not UTF-8" in notes[0] and "2 bytes" in notes[0]


@pytest.mark.parametrize(
    "data",
    [
        "one two.".encode("utf-16"),
        "one two.".encode("utf-16-le"),
        "раз два три.".encode("koi8-r"),
        random.Random(0).randbytes(5000),
        gzip.compress(b"text " * 100, mtime=0),
    ],
    ids=["utf-16", "utf-16 without mark", "koi8-r", "noise", "gzip under another name"],
)
def test_what_is_no_utf8_text_is_left_out_whole(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "b.txt").write_text("two.")
    found, notes = read([tmp_path])
    assert found == [["two."]]
    assert len(notes) == 1 and "a.txt:1: " in notes[0] and "no UTF-8 text; all left out" in notes[0]


def test_notes_stay_few_whatever_the_damage(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n' * 50_000)
    _, notes = read([tmp_path])
    assert len(notes) == documents.MOST_NOTES + 1
    assert f"{50_000 - documents.MOST_NOTES} more like these, the last: " in notes[-1] and ":50000: " in notes[-1]


def test_half_a_character_spelled_in_json(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one \\ud83d. \\ud83d\\ude00 two."}\n')
    assert read([tmp_path]) == ([["one . \U0001f600 two."]], [])


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_a_packed_file_cut_off_in_the_middle(tmp_path, suffix, pack, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_BYTES", 1 << 16)
    text = "".join(f"sentence number {number} of {number * 7919 % 1000}.\n\n" for number in range(100_000))
    packed = pack(text.encode())
    (tmp_path / f"a.txt{suffix}").write_bytes(packed[: len(packed) * 3 // 4])
    (tmp_path / "b.txt").write_text("after.")
    found, notes = read([tmp_path])
    assert found[-1] == ["after."] and 1000 < len(found) < 100_000
    assert len(notes) == 1 and f"a.txt{suffix}: damaged after" in notes[0]


def test_html_in_the_text(tmp_path):
    (tmp_path / "a.txt").write_text('plain.\n<p class="x">one &amp; <b>two</b>.</p>\n\n3 < 4 and <unk> stay.\n')
    found, notes = read([tmp_path])
    assert [line.split() for line in found[0]] == [["plain."], ["one", "&", "two", "."]]
    assert found[1] == ["3 < 4 and <unk> stay."]
    assert "a.txt:2: HTML in the text" in notes[0] and "4 tags" in notes[0]


def test_html_that_is_never_shown(tmp_path):
    hidden = '<script type="x">var a = 1 < 2;\nb();</script><style>p {color: red}</style><!-- a\nremark -->'
    (tmp_path / "a.txt").write_text(f"one.{hidden}\ntwo.\n")
    (tmp_path / "b.txt").write_text("<script> is a tag, <!-- begins a remark.\n" * 3)
    found, notes = read([tmp_path])
    lines = [[" ".join(line.split()) for line in document] for document in found]
    assert lines == [["one.", "two."], ["is a tag, <!-- begins a remark."] * 3]
    assert "a.txt:1: HTML in the text" in notes[0] and "3 tags" in notes[0]


def test_html_left_open_everywhere_is_no_slower(tmp_path):
    (tmp_path / "a.txt").write_text("<script>a<!--b " * 100_000)
    found, _ = read([tmp_path])
    assert sum(line.count("b") for line in found[0]) == 100_000


def test_a_very_long_line_is_cut_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST_LINE", 100)
    (tmp_path / "a.txt").write_text("short.\n" + "word " * 100 + "\n" + "x" * 250 + "\n")
    (found,), notes = read([tmp_path])
    assert max(map(len, found)) <= 100 and "".join(found).count("word") == 100 and "".join(found).count("x") == 250
    assert "a.txt:2: a line of 500 characters" in notes[0] and "a.txt:3" in notes[1]


def test_a_one_line_file_of_50_mb(tmp_path):
    (tmp_path / "a.txt").write_text("word " * 10_000_000)
    found, notes = read([tmp_path])
    assert sum(len(line.split()) for document in found for line in document) == 10_000_000
    assert any("a.txt:1: a line of" in note for note in notes)


def test_a_document_beyond_the_limit_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_BYTES", 100)
    monkeypatch.setattr(sources, "LONGEST_DOCUMENT", 300)
    (tmp_path / "a.txt").write_text("é力" * 500)
    found, notes = read([tmp_path])
    assert "".join(line for document in found for line in document) == "é力" * 500
    assert "cut there" in notes[0] and not any("UTF-8" in note for note in notes)


def test_empty_files_and_folders(tmp_path):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text("\n \n\n")
    assert read([tmp_path]) == ([], [])
    (tmp_path / "none").mkdir()
    with pytest.raises(BadRequest) as caught:
        find_sources([str(tmp_path / "none"), str(tmp_path / "absent.txt")], False)
    assert len(caught.value.problems) == 2 and "no file in it" in str(caught.value) and "absent" in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.text("ab é力", min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=5), max_size=30
    )
)
def test_batches_are_whole_documents_whatever_their_size(tmp_path_factory, lists):
    folder = tmp_path_factory.mktemp("text")
    text = "".join("".join(f"{line}\n" for line in document) + "\n" for document in lists)
    (folder / "a.txt").write_text(text)
    expected = [[line.strip("\n") for line in document] for document in lists]
    with pytest.MonkeyPatch.context() as patch:
        for size in (16, 64, 1 << 20):
            patch.setattr(sources, "BATCH_BYTES", size)
            assert read([folder])[0] == expected


def test_pieces_tell_their_first_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_BYTES", 32)
    text = "".join(f"line {number}\n\n" for number in range(40))
    (tmp_path / "a.txt").write_text(text)
    lines = text.split("\n")
    for batch in batches(find_sources([str(tmp_path)], False), None):
        for piece in batch.pieces:
            assert piece.data.decode().split("\n")[0] == lines[piece.first_line - 1]


def test_canonical_text_ends_each_document_with_a_blank_line():
    pieces = tuple(Piece("x", "text", 1, data) for data in (b"a.\n", b"", b"\n\nb.\n\nc."))
    assert canonical_text(Batch(0, pieces, 0), LINES).text == "a.\n\nb.\n\nc.\n\n"


@pytest.mark.parametrize("end", ["\f", "\u2028", "\u2029", "\x85", "\r", "\r\n", "\v"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_any_line_end_parts_sentences_and_blank_lines_part_documents(tmp_path, kind, end):
    document = end.join(["One is here", "Two is there", "Three\u00a0ends."])
    rows = [json.dumps({"text": document}, ensure_ascii=False)] * 2
    (tmp_path / f"a.{kind}").write_text("\n".join(rows) if kind == "jsonl" else f"{document}\n\n{document}", newline="")
    assert read([tmp_path]) == ([["One is here", "Two is there", "Three ends."]] * 2, [])


def test_canonical_text_parts_documents_by_one_empty_line():
    piece = Piece("x", "text", 1, "a.\u2028\u00a0\u2028b.\n \u3000\n\n\x1c\nc.\x1dd.".encode())
    assert canonical_text(Batch(0, (piece,), 0), LINES).text == "a.\n\nb.\n\nc.d.\n\n"
