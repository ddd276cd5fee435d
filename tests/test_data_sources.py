"""Reading text: kinds of input, batches of whole documents, and every kind of damage with file and line."""

import argparse
import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import re
import tarfile
import textwrap
import zipfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from central.runtime.exits import BadRequest
from pretraining.data import documents, prepare_options, sources
from pretraining.data.documents import TextSettings, canonical_text
from pretraining.data.extract import extract
from pretraining.data.formats import FormSettings
from pretraining.data.sources import Batch, HubDataset, Piece, batches, find_sources
from pretraining.data.workers import Workers
from pretraining.vocabulary import find_vocabulary

LINES = TextSettings(sentences="line")
EPUB = b"PK\x03\x04" + b"\0" * 26 + b"mimetypeapplication/epub+zip"


def read(paths, settings=LINES, dataset=None, **told) -> tuple[list[list[str]], list[str]]:
    """(documents as lists of lines, notes) of some files."""
    form_settings = FormSettings(text_column=settings.text_column, **told)
    return read_sources(find_sources([str(path) for path in paths], form_settings), settings, dataset)


def read_sources(sources_found, settings, dataset=None) -> tuple[list[list[str]], list[str]]:
    text, notes = "", []
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


BOATS = "Nobody came down to the river, and the boats lay there."
NOVEL = "\n\n".join(textwrap.fill(f"It rained in year {year}. " + f"{BOATS} " * 5, 60) for year in range(6))


def test_a_folder_of_books_and_other_text_comes_out_right_in_one_call(tmp_path, capsys):
    """Wrapped lines are told by file, inside of archives too, and said by their number."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(NOVEL)
    (tmp_path / "in" / "b.txt").write_text("One sentence here.\nAnother.\n\nA second document.\n")
    (tmp_path / "in" / "c.txt").write_bytes(NOVEL.replace("\n", "\r\n").encode("utf-16"))
    (tmp_path / "in" / "d.jsonl").write_text('{"text": "A row."}\n')
    with tarfile.open(tmp_path / "in" / "e.tar.gz", "w:gz") as archive:
        for name in "ab":
            archive.add(tmp_path / "in" / f"{name}.txt", f"{name}.txt")
    parser = argparse.ArgumentParser()
    prepare_options.add_text_options(parser)

    def documents_of(*words: str) -> tuple[list[list[str]], str]:
        args = parser.parse_args(["--input", str(tmp_path / "in"), *words])
        found, notes = read_sources(prepare_options.sources_of(args), TextSettings(args.sentences))
        return found, capsys.readouterr().out + "\n".join(notes)

    found, said = documents_of()
    book = [sentence for year in range(6) for sentence in [f"It rained in year {year}.", *[BOATS] * 5]]
    others = [["One sentence here.", "Another."], ["A second document."]]
    assert found == [book, *others, book, ["A row."], book, *others]
    assert "note: 2 of 3 plain texts have wrapped lines" in said
    assert "e.tar.gz: 1 of 2 plain texts have wrapped lines" in said and said.count("wrapped lines") == 2
    found, said = documents_of("--one_document_per_file", "0")
    assert len(found) == 3 * 6 + 2 * 2 + 1 and "wrapped" not in said
    assert documents_of("--one_document_per_file", "0") == documents_of("--one_document_per_file=0")
    for words in (["--one_document_per_file"], ["--one_document_per_file", "1"]):
        found, said = documents_of(*words)
        one = [line for document in others for line in document]
        assert found == [book, one, book, ["A row."], book, one] and "wrapped" not in said
    assert len(documents_of("--sentences", "line")[0]) == 3 * 6 + 2 * 2 + 1  # each line is told to be a sentence


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
    assert [note.split("a.jsonl:")[1] for note in notes] == [
        "2: not a JSON object; 3 lines (2, 6, 8) left out",
        '4: JSON objects without "text" (--text_column names one of: other); line 4 left out',
        '5: "text" is not a string; line 5 left out',
    ]


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


@pytest.mark.parametrize("data", [b"PAR1" + b"a" * 100, b"%PDF-1.7 text", EPUB])
def test_files_of_other_formats_are_refused_or_left_out_of_a_folder(tmp_path, capsys, data):
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "b.txt").write_text("one.\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").write_text("two.\n")
    with pytest.raises(BadRequest, match=r"a\.txt: an? "):
        find_sources([str(tmp_path / "a.txt")], FormSettings())
    assert read([tmp_path])[0] == [["one."]]
    assert "a.txt: a" in capsys.readouterr().out


def test_lines_that_are_damaged_utf8_are_left_out(tmp_path):
    good = "der Bär schläft in der Höhle.\n".encode() * 50
    (tmp_path / "a.txt").write_bytes(good + b"tw\xffo.\n\nth\xe2\x28ree.\n" + good)
    found, notes = read([tmp_path])
    assert [len(document) for document in found] == [50, 50]
    assert len(notes) == 1 and "a.txt:51: not UTF-8" in notes[0] and "2 lines from here on left out" in notes[0]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp1250", "mac-roman", "koi8-r", "shift_jis"])
def test_text_in_another_encoding_is_refused_or_read_as_told(tmp_path, encoding, capsys):
    text = {"koi8-r": "Он пришёл домой.", "shift_jis": "名前はまだ無い。"}.get(encoding, "Il préféra l'été.") + "\n"
    (tmp_path / "a.txt").write_bytes((text * 20).encode(encoding))
    (tmp_path / "b.txt").write_text(text)
    with pytest.raises(BadRequest, match=r"a\.txt: not UTF-8 in \d+% of its words.*--encoding"):
        find_sources([str(tmp_path / "a.txt")], FormSettings())
    assert read([tmp_path]) == ([[text.strip()]], [])
    assert "a.txt: not UTF-8" in capsys.readouterr().out
    assert read([tmp_path], encoding=encoding) == ([[text.strip()] * 20, [text.strip()]], [])
    assert f"a.txt: not UTF-8, read as --encoding {encoding}" in capsys.readouterr().out


IN_8_BITS = {
    "de": ("Der Bürgermeister von Köln hörte die schönen Lieder über den Fluß und ging zu Müller. ", "cp1252"),
    "fr": ("Il préféra l'été à l'hiver, où les journées étaient trop courtes; il a mangé une crêpe. ", "cp1252"),
    "es": ("El niño comió mañana una manzana; ¿dónde está el señor? La canción sonó en el jardín. ", "cp1252"),
    "pt": ("Não há ninguém na estação; a informação chegou amanhã às três. Você vê a lição. ", "cp1252"),
    "it": ("La città è più bella perché c'è il sole; però non può venire lunedì, ed è già così. ", "cp1252"),
    "nl": ("De coördinatie van de geëerde reünie was één van de ideeën van het comité in België. ", "cp1252"),
    "fi": ("Hän meni kävelylle metsään ja näki siellä pöllön, joka söi hiirtä. ", "cp1252"),
    "sv": ("Flickan går över ån till den gamla kvarnen där hästarna äter hö. ", "cp1252"),
    "da": ("Drengen går hen over åen og ser på æblerne på det grønne træ. ", "cp1252"),
    "is": ("Það er gott veður í dag og þau fóru út á sjó. Hún býr í húsi við ána. ", "cp1252"),
    "en": ("“I do not know,” he said – and that was all that anybody heard of it. ", "cp1252"),
    "cs": ("Příliš žluťoučký kůň úpěl ďábelské ódy. Dnes večer půjdeme do divadla. ", "cp1250"),
    "pl": ("Zażółć gęślą jaźń. Wczoraj wieczorem poszliśmy do kina, żeby zobaczyć nowy film. ", "cp1250"),
    "hu": ("Árvíztűrő tükörfúrógép. A fiú elment az erdőbe, hogy gombát szedjen. ", "cp1250"),
    "ro": ("Băiatul merge la şcoală în fiecare dimineaţă şi învaţă să citească. ", "cp1250"),
    "tr": ("Çocuk okula gidiyor ve öğretmenine çiçek veriyor. Güneş doğdu, ışık her yere yayıldı. ", "cp1254"),
    "ru": ("Он пришёл домой и лёг спать. Дождь шёл всю ночь, а утром стало тихо. ", "cp1251"),
    "ru, older": ("Он пришёл домой и лёг спать. Дождь шёл всю ночь, а утром стало тихо. ", "koi8_r"),
    "el": ("Τι κάνεις; Είμαι καλά σήμερα. Ο ήλιος λάμπει πάνω από τη θάλασσα. ", "cp1253"),
    "he": ("שלום עולם, מה שלומך היום? הילד הלך לבית הספר. ", "cp1255"),
    "ja": ("名前はまだ無い。どこで生れたかとんと見当がつかぬ。", "cp932"),
    "zh": ("今天天气很好，我们去公园散步。他在学校学习中文。", "gb18030"),
}


@pytest.mark.parametrize("name", IN_8_BITS)
def test_the_encoding_that_a_text_is_in_is_the_first_guess(tmp_path, name):
    text, encoding = IN_8_BITS[name]
    for times in (8, 2000):  # the whole of it, and a sample
        (tmp_path / "a.txt").write_bytes((text * times + "\n").encode(encoding))
        with pytest.raises(BadRequest) as refused:
            find_sources([str(tmp_path / "a.txt")], FormSettings())
        (guesses,) = re.findall("; perhaps (.*): name its encoding with --encoding", str(refused.value))
        assert guesses.split(" or ")[0] == encoding
        assert not re.search("iso8859_1|mac_latin2|mac_iceland|hp_roman8", guesses)


def test_another_encoding_after_the_sample(tmp_path, monkeypatch):
    """The first bytes are ASCII; what comes later is refused, not torn."""
    monkeypatch.setattr(sources, "BATCH_BYTES", 1 << 16)
    (tmp_path / "a.txt").write_bytes(
        b"plain text here.\n\n" * 8000 + "Le café était fermé.\n\n".encode("latin-1") * 4000
    )
    found, notes = read([tmp_path])
    assert found[-1] == ["plain text here."] and len(found) > 7000
    assert notes and all("no UTF-8 text; all left out (another encoding?" in note for note in notes)
    settings = TextSettings(sentences="line", encoding="latin-1")
    assert (
        read([tmp_path], settings, encoding="latin-1")[0]
        == [["plain text here."]] * 8000 + [["Le café était fermé."]] * 4000
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_an_encoding_told_by_its_mark(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("one é.\n\ntwo 力.\n".encode(encoding))
    assert read([tmp_path]) == ([["one é."], ["two 力."]], [])


@pytest.mark.parametrize(
    "data", ["one two.".encode("utf-16-le"), random.Random(0).randbytes(5000)], ids=["utf-16", "noise"]
)
def test_what_is_no_text_is_refused(tmp_path, data, capsys):
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "b.txt").write_text("two.")
    with pytest.raises(BadRequest, match=r"a\.txt: n"):
        find_sources([str(tmp_path / "a.txt")], FormSettings())
    assert read([tmp_path]) == ([["two."]], [])
    assert "left out" in capsys.readouterr().out


def test_notes_stay_few_whatever_the_damage(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 10_000 + '{"body": "x"}\n' * 50_000 + "{}\n" * 2)
    _, notes = read([tmp_path])
    assert [note.split("a.jsonl:")[1] for note in notes] == [
        '10001: JSON objects without "text" (--text_column names one of: body);'
        " 50000 lines (10001, 10002, 10003, 10004, 10005, ...) left out",
        '60001: JSON objects without "text" (they have no fields); 2 lines (60001, 60002) left out',
    ]
    many = Batch(0, (Piece("x", "text", 1, b"", tuple(f"x:{number}: bad" for number in range(99))),), 0)
    noted = canonical_text(many, LINES).notes
    assert len(noted) == documents.MOST_NOTES + 1 and noted[-1] == "79 more like these, the last: x:98: bad"


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
    assert found == [["plain.", "one & two."], ["3 < 4 and <unk> stay."]]
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
        find_sources([str(tmp_path / "none"), str(tmp_path / "absent.txt")], FormSettings())
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


@pytest.mark.parametrize(
    "data",
    [
        b"id,text\r1,One here.\r2,Two.\r",  # as spreadsheets of old save them
        b"id\ttext\r\n1\tOne here.\r\n2\tTwo.\r\n",
        b'{"text": "One here."}\r{"text": "Two."}\r',
        b'\x1e{"text": "One here."}\n\x1e{"text": "Two."}\n',  # a sequence of JSON, RFC 7464
        '{"text": "One here."}\r\n{"text": "Two."}\r\n'.encode("utf-16"),
    ],
)
def test_rows_whatever_ends_or_begins_their_lines(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    assert read([tmp_path / "a"]) == ([["One here."], ["Two."]], [])


def test_a_json_array_a_line_is_refused(tmp_path):
    (tmp_path / "a").write_text('["One.", "Two."]\n["Three."]\n')
    with pytest.raises(BadRequest, match="a JSON array a line"):
        read([tmp_path / "a"])
    (tmp_path / "a").write_text("[Music]\n[He enters.]\n")
    assert read([tmp_path / "a"])[0] == [["[Music]", "[He enters.]"]]


@given(st.text(alphabet="\n\rx\u2028\x85").map(str.encode))
def test_a_batch_ends_after_the_last_record_whatever_ends_it(data):
    ends = sources._RECORD_ENDS["text"]
    wanted = max((data.rfind(end) + len(end) for end in ends if end in data), default=0)
    assert sources._after_last(ends, bytearray(data)) == wanted


def test_pieces_tell_their_first_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_BYTES", 32)
    text = "".join(f"line {number}\n\n" for number in range(40))
    (tmp_path / "a.txt").write_text(text)
    lines = text.split("\n")
    for batch in batches(find_sources([str(tmp_path)], FormSettings()), None):
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


# Formats, told by their bytes


def tarred(pack, files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.uname = len(content), "someone"
            archive.addfile(member, io.BytesIO(content))
    return pack(data.getvalue())


def zipped(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


PACKS = {"plain": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}
PACKS["lzma"] = partial(lzma.compress, format=lzma.FORMAT_ALONE)
PACKS["pzstd"] = lambda data: b"\x50\x2a\x4d\x18\4\0\0\0size" + zstd(data)  # a frame to skip comes first


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("name", ["a.txt", "PART.TXT.GZ", "wiki_00", "b.jsonl"])
def test_packed_text_under_any_name(tmp_path, pack, name):
    data = b"one.\n\n" * 30_000
    (tmp_path / name).write_bytes(
        PACKS[pack](data[:90_000]) + PACKS[pack](data[90_000:])
    )  # of two streams, as pigz has
    assert read([tmp_path]) == ([["one."]] * 30_000, [])


@pytest.mark.parametrize("pack", [*PACKS, "zip"])
def test_archives_are_their_files(tmp_path, pack):
    rows = b'{"text": "three."}\n{"text": "four."}\n'
    files = {
        "b/one.txt": b"one.\n\ntwo.\n",
        "b/._one.txt": b"\0\1",
        "__MACOSX/x": b"no.\n",
        "rows": gzip.compress(rows),
    }
    files |= {"picture.png": b"\x89PNG\r\n", "last.txt": b"five."}
    (tmp_path / "a").write_bytes(zipped(files) if pack == "zip" else tarred(PACKS[pack], files))
    found, notes = read([tmp_path])
    assert found == [["one."], ["two."], ["three."], ["four."], ["five."]]
    assert notes == [f"{tmp_path}/a/picture.png: a picture; left out"]


def test_an_archive_cut_off_and_one_with_a_password(tmp_path):
    files = {f"{n}.txt": random.Random(n).randbytes(3000).hex().encode() for n in range(9)}
    (tmp_path / "a.tar").write_bytes(tarred(bytes, files)[:38_000])
    locked = bytearray(zipped(files))
    locked[locked.index(b"PK\x01\x02") + 8] |= 1  # the mark of an encrypted file
    (tmp_path / "b.zip").write_bytes(locked)
    found, notes = read([tmp_path])
    assert len(found) == 5
    assert any("a.tar" in note and "damaged after" in note for note in notes)
    assert any("b.zip: damaged" in note and "needs a password" in note for note in notes)


def test_a_bomb_stays_small_in_memory(tmp_path):
    """A gigabyte out of a megabyte is read as a stream, whatever packs it."""
    resource = pytest.importorskip("resource")
    big = b"a" * (1 << 20)
    packer = bz2.BZ2Compressor()
    packed = b"".join([*(packer.compress(big) for _ in range(200)), packer.flush()])
    (tmp_path / "a.txt").write_bytes(gzip.compress(packed))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = sum(
        len(piece.data)
        for batch in batches(find_sources([str(tmp_path)], FormSettings()), None)
        for piece in batch.pieces
    )
    assert size == 200 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 160 << 10  # KiB


def test_an_xz_file_that_wants_gigabytes_is_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    (tmp_path / "a.xz").write_bytes(lzma.compress(b"one.\n", filters=filters))
    found, notes = read([tmp_path])
    assert found == [] and "a.xz: damaged" in notes[0] and "emory" in notes[0]


def test_wikiextractor_s_two_forms(tmp_path):
    text = "Anarchy\n\nOne &amp; two.\n\nSection.\nThree &lt;4.\n"
    (tmp_path / "wiki_00").write_text(
        f'<doc id="1" url="u" title="Anarchy">\n{text}\n</doc>\n'
        '<doc id="2" url="u" title="B &quot;C&quot;">\nB &quot;C&quot;\n\n</doc>\n'
        f'<doc id="3" revid="9" url="u" title="A > B">\nA > B\n\nFour.\n</doc>\n'
    )
    (tmp_path / "wiki_01").write_text(json.dumps({"id": "1", "title": "Anarchy", "text": text}) + "\n")
    article = ["One & two.", "Section.", "Three <4."]
    assert read([tmp_path]) == ([article, ["Four."], article], [])


TITLES = [f"The history of the river number {n} in England." for n in range(4)]


def table(rows: list[dict], delimiter: str = ",") -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


FORMS = {
    "a.jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "a.csv": table,
    "a.tsv": partial(table, delimiter="\t"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_column_named_title_is_text_as_any_other(form, tmp_path):
    rows = [{"id": str(n), "title": title, "text": f"{title}\n\nIt is long."} for n, title in enumerate(TITLES)]
    (tmp_path / form).write_text(FORMS[form](rows), newline="")
    assert read([tmp_path], TextSettings(text_column="title")) == ([[title] for title in TITLES], [])


@pytest.mark.parametrize("form", FORMS)
def test_a_row_s_first_line_is_kept_though_it_is_the_title(form, tmp_path):
    """Only wikiextractor is known to have put it there, and a text that is nothing else is no heading."""
    rows = [{"title": title, "author": "A. B.", "text": f"{title}\n\nIt is long."} for title in TITLES]
    (tmp_path / form).write_text(FORMS[form](rows), newline="")
    assert read([tmp_path]) == ([[title, "It is long."] for title in TITLES], [])
    whole = [{"id": str(n), "title": title, "text": title} for n, title in enumerate(TITLES)]
    (tmp_path / form).write_text(FORMS[form](whole), newline="")
    assert read([tmp_path]) == ([[title] for title in TITLES], [])


COMMAS = "id;text, long;label, short\n" + "".join(f"{n};Number {n}, it is.;x, y\n" for n in range(5))


def test_a_table_whose_names_have_another_delimiter(tmp_path):
    (tmp_path / "a.csv").write_text(COMMAS)
    found, _ = read([tmp_path], TextSettings(text_column="text, long"))
    assert found == [[f"Number {n}, it is."] for n in range(5)]
    (tmp_path / "a.csv").write_text("text;a,b;c,d\n" + "One, two.;3,4;5,6\n" * 3)
    assert read([tmp_path]) == ([["One, two."]] * 3, [])
    (tmp_path / "a.csv").write_text("id,id,text\n" + "1,2,One.\n" * 3)
    assert read([tmp_path]) == ([["One."]] * 3, [])


def test_rows_of_a_table_that_lack_their_text_are_named_and_left_out(tmp_path):
    (tmp_path / "a.tsv").write_text("id\ttext\n" + "".join(f"{n}\tText {n}.\n" for n in range(20)) + "20\n\n21\n")
    found, notes = read([tmp_path])
    assert found == [[f"Text {n}."] for n in range(20)]
    assert len(notes) == 1 and '"text" is not a string; 2 lines' in notes[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (COMMAS, 'a table (";" between its columns)'),
        ("text,text\n" + "One.,Two.\n" * 4, "several columns text"),
        ("# made by x\n" + '{"text": "One."}\n' * 5, "JSON lines below a line that is none ('# made by x')"),
        ("\0" * 10240, "nothing but zero bytes"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(content, said, tmp_path):
    (tmp_path / "a").write_text(content)
    with pytest.raises(BadRequest, match=re.escape(said)):
        read([tmp_path / "a"])


ROWS = "id,text\n" + "".join(f"{n},Row {n}.\n" for n in range(3000))


@pytest.mark.parametrize(
    ("data", "rows", "said"),
    [
        ((ROWS + '0,"Never closed.\n' + ROWS * 3).encode(), 3000, "a.csv:3002: a quotation mark that nothing closes"),
        ((ROWS + '0,"' + "a" * (33 << 20) + '"\n').encode(), 3000, "a.csv:3002: field larger than field limit"),
        (gzip.compress(ROWS.encode())[:-900], None, "damaged"),
        ((ROWS + '0,"Closed\nat last."\n').encode(), 3001, None),
    ],
)
def test_a_damaged_table_gives_what_came_before(data, rows, said, tmp_path):
    (tmp_path / "a.csv").write_bytes(data)
    found, notes = read([tmp_path])
    assert [document[0] for document in found[:2]] == ["Row 0.", "Row 1."] and "Never" not in str(found)
    assert len(found) == rows if rows else 100 < len(found) < 3000
    assert len(notes) == bool(said) and (not said or said in notes[0] and "what came before is used" in notes[0])


@pytest.mark.parametrize(("pack", "garbage"), [(gzip.compress, b"garbage"), (bz2.compress, b"BZh9garbage")])
def test_what_comes_before_garbage_at_the_end_is_used(tmp_path, pack, garbage):
    """Of files beyond what is looked at first, too."""
    for count in (1, 30_000):
        (tmp_path / "a.gz").write_bytes(pack(b"One sentence here.\n" * count) + garbage)
        found, notes = read([tmp_path])
        assert found == [["One sentence here."] * count]
        assert all("what came before is used" in note for note in notes)


@pytest.mark.parametrize(("name", "between"), [("a.csv", ","), ("a.txt", "\t"), ("b", ";")])
def test_tables_with_a_header(tmp_path, name, between):
    rows = ["id{0}text{0}label", '1{0}"One. {0} Two\n\nthree."{0}x', "2{0}Four.{0}y"]
    (tmp_path / name).write_text("\n".join(rows).format(between))
    found, notes = read([tmp_path])
    lines = [[" ".join(line.split()) for line in document] for document in found]
    assert lines == [[" ".join(f"One. {between} Two".split()), "three."], ["Four."]] and notes == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            "id,body\n1,One.\n2,Two.\n3,Three.\n",
            'a table ("," between its columns); --text_column names one of: id, body',
        ),
        ('{"body": "x", "n": 1}\n' * 9, 'JSON lines without "text"; --text_column names one of: body, n'),
        ('[\n {"text": "x"},\n {"text": "y"}\n]\n', "a JSON array"),
        ('{\n  "text": "x"\n}\n', "JSON over several lines"),
        ("".join(f"597:{n}:Title {n}\n" for n in range(9)), "the index of a multistream dump"),
        ("-- MySQL dump 10.19\n--\nCREATE TABLE x;\n", "an SQL dump"),
        ("WARC/1.0\r\nWARC-Type: conversion\r\n\r\nOne.\r\n", "pages of a web crawl"),
        ("1\n00:00:01,000 --> 00:00:02,900\nOne.\n\n2\n00:00:03,000 --> 00:00:04,000\nTwo.\n", "subtitles"),
        ("WEBVTT\n\n00:01.000 --> 00:02.000\nOne.\n", "subtitles"),
        ("From a@b.org Mon Jan  1 00:00:00 2024\nSubject: x\n\nOne.\n", "mail"),
        ("Return-Path: <a@b.org>\nSubject: x\n\nOne.\n", "mail"),
        ("% a comment\n\\documentclass{article}\n\\begin{document}\nOne.\n", "a LaTeX file"),
        ("sep=;\nid;text\n1;One.\n", "a table below a line sep="),
        ("".join(f"{n}\teng\tSentence {n}.\n" for n in range(9)), "a table of 3 columns without a header"),
        ("# text = x\n" + "1\tHe\tPRON\n2\truns\tVERB\n\n" * 9, "a table of 3 columns without a header"),
        ("The DT B-NP O\ndog NN I-NP O\nbarks VBZ B-VP O\n\n" * 9, "a word and its tags on each line"),
        ("<DOC>\n<DOCNO>1</DOCNO>\n<TEXT>\nOne.\n</TEXT>\n</DOC>\n", "markup (<doc>) that is no MediaWiki dump"),
        ("Le cafÃ© Ã©tait fermÃ©. OÃ¹ Ãªtes-vous ?\n", "UTF-8 that was read as cp1252 and encoded again"),
        ('<?xml version="1.0"?>\n<posts>\n<row Body="x"/>\n</posts>\n', "an XML file that is no MediaWiki dump"),
    ],
)
def test_other_forms_are_named_with_what_to_do(tmp_path, data, said):
    (tmp_path / "a").write_text(data)
    with pytest.raises(BadRequest) as refused:
        find_sources([str(tmp_path / "a")], FormSettings())
    assert len(refused.value.problems) == 1 and refused.value.problems[0].startswith(f"--input {tmp_path}/a: {said}")


@pytest.mark.parametrize(
    "text",
    [
        "{ begins the text.\n",
        "[Music] Hello.\n",
        "Well, yes\nNo, never\nAh, so\nOh, no\n",
        "Lines, text\nOne.\n",
        "From London to Paris in 1850\nHe went.\n",
        "\tIt was night.\n\tHe slept.\n\tShe rose.\n\tThey left.\n",
        "<unk> is a word.\n",
        "GO HOME O\n" + "WHO ARE YOU\n" * 30,
        "NÃO É “ASSIM”.\nÀ noite.\n",
        "= 5 = is a sum . Or not.\n",
        "{{x}}\n",
    ],
)
def test_plain_text_that_looks_a_little_like_another_form(tmp_path, text):
    (tmp_path / "a").write_text(text)
    words = [[line.strip() for line in text.strip().split("\n")]]
    found, notes = read([tmp_path])
    assert [[line.strip() for line in document] for document in found] == words and notes == []


def test_wikitext_is_read_as_its_articles(tmp_path, capsys):
    one = " \n = One = \n \n It is well @-@ known , 1 @,@ 000 <unk> . \n \n = = Part = = \n \n The end . \n \n"
    (tmp_path / "a").write_text(one + " = Two = \n \n Here . \n")
    assert read([tmp_path])[0] == [["It is well-known , 1,000 <unk> .", "The end ."], ["Here ."]]
    said = capsys.readouterr().out
    assert "WikiText: read as its articles" in said and '"<unk>"' in said


def test_a_zip_inside_of_a_tar_is_named(tmp_path):
    (tmp_path / "a").write_bytes(tarred(bytes, {"n.zip": zipped({"one.txt": b"one.\n"}), "two.txt": b"two.\n"}))
    found, notes = read([tmp_path])
    assert found == [["two."]] and notes == [
        f"{tmp_path}/a/n.zip: a zip archive inside of another file; unpack it first; left out"
    ]


def test_json_nested_deep_or_long_before_the_first_line_end(tmp_path):
    deep = '{"text": "no", "x": ' + "[" * 30_000 + "]" * 30_000 + "}\n"
    (tmp_path / "a").write_text(deep + '{"text": "' + "word " * 100_000 + '"}\n')
    found, notes = read([tmp_path])
    assert len(found) == 1 and found[0][0].count("word") == 100_000
    assert notes == [f"{tmp_path}/a:1: not a JSON object; line 1 left out"]


def test_what_is_no_regular_file_is_refused_at_once(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("one.")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for name in ("pipe", "zero", "/dev/stdin"):
        with pytest.raises(BadRequest, match="not a regular file"):
            find_sources([str(tmp_path / name)], FormSettings())
    (tmp_path / "gone").unlink()
    assert read([tmp_path]) == ([["one."]], [])
    said = capsys.readouterr().out
    assert "pipe: not a regular file" in said and "zero: not a regular file" in said


# HTML


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("H<sub>2</sub>O is un<b>believ</b>able.", ["H2O is unbelievable."]),
        ("The List<A> or Map<I, S>, a < b, if a <b and c> d.", ["The List<A> or Map<I, S>, a < b, if a <b and c> d."]),
        (
            "<p>One\nwrapped.</p>\n\n<p>Two.</p>\n<hr><ul><li>Three<li>Four</ul>",
            ["One wrapped.", "Two.", "Three", "Four"],
        ),
        ("R&amp;D at AT&T &lt;b&gt; &#169; &copy &nosuch;", ["R&D at AT&T <b> © &copy &nosuch;"]),
        ("A <a href=\"x > y\" title='b'>link</a><br/>B<img src=x>C", ["A link", "B C"]),
        ("x<ruby>漢<rp>(</rp><rt>かん</rt><rp>)</rp></ruby>y", ["x漢y"]),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", ["a b", "c"]),
        ("Foo<P> is a type; so is Bar<T>.", ["Foo<P> is a type; so is Bar<T>."]),
        ("&lt;p&gt; is a tag.", ["<p> is a tag."]),
        ("&lt;p&gt;One.&lt;/p&gt;&lt;p&gt;AT&amp;amp;T.&lt;/p&gt;", ["One.", "AT&T."]),
    ],
)
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_html_is_told_by_document(tmp_path, text, expected, kind):
    if kind == "jsonl" or "\n\n" not in text:
        rows = [json.dumps({"text": text}), json.dumps({"text": "Plain & 1 < 2."})]
        (tmp_path / "a").write_text("\n".join(rows) if kind == "jsonl" else f"{text}\n\nPlain & 1 < 2.")
        found, notes = read([tmp_path])
        lines = [[" ".join(line.split()) for line in document] for document in found]
        assert lines == [expected, ["Plain & 1 < 2."]]
        assert all("a:1: HTML in the text" in note and "in 1 documents" in note for note in notes)


def test_an_html_file_is_one_document(tmp_path):
    (tmp_path / "page").write_text(
        "<!DOCTYPE html>\n<html><head><style>p {}</style></head>\n"
        "<body><p>One is\nhere.</p>\n\n<p>Two&nbsp;too.</p></body></html>"
    )
    assert read([tmp_path]) == ([["One is here.", "Two too."]], [])


def test_notes_of_html_name_the_row(tmp_path):
    (tmp_path / "a").write_text("".join(json.dumps({"text": f"n {n}" + "<br>x" * (n > 3)}) + "\n" for n in range(9)))
    _, notes = read([tmp_path])
    assert notes == [f"{tmp_path}/a:5: HTML in the text, from '<br>' on; 5 tags in 5 documents left out"]


def test_a_line_end_in_a_path_leaves_a_message_one_line(tmp_path, capsys):
    (tmp_path / "a\nb").write_bytes("Le café était.\n".encode("latin-1"))
    (tmp_path / "c").write_text("one.")
    with pytest.raises(BadRequest) as refused:
        find_sources([str(tmp_path / "a\nb"), str(tmp_path / "x\u2028y")], FormSettings())
    assert [len(problem.splitlines()) for problem in refused.value.problems] == [1, 1] and r"a\nb: not" in str(
        refused.value
    )
    assert read([tmp_path])[0] == [["one."]] and len(capsys.readouterr().out.splitlines()) == 1


def test_extracting_no_text_is_a_request_that_cannot_run(tmp_path):
    pages = "<mediawiki>\n<page><title>T</title><ns>4</ns><revision><text>One.</text></revision></page>\n</mediawiki>"
    (tmp_path / "dump.xml").write_text(pages)
    for _ in range(2):  # the second time its files are there
        with pytest.raises(BadRequest, match="no text in it"):
            extract(
                find_sources([str(tmp_path / "dump.xml")], FormSettings()),
                None,
                LINES,
                tmp_path / "out",
                Workers(None, 1),
            )


def test_a_vocabulary_that_might_never_end_is_refused(tmp_path):
    os.mkfifo(tmp_path / "vocab.txt")
    for path in ("/dev/zero", tmp_path / "vocab.txt"):
        with pytest.raises(BadRequest, match="not a regular file"):
            find_vocabulary(Path(path), tmp_path)


def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path, monkeypatch):
    """Its texts would be missing, unsaid."""
    (tmp_path / "closed").mkdir()
    for folder in (tmp_path, tmp_path / "closed"):
        (folder / "a.txt").write_text("Some text.")
    scandir = os.scandir

    def refusing(path):  # root may look everywhere
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(BadRequest) as refused:
        find_sources([str(tmp_path)], FormSettings())
    assert refused.value.problems == (f"--input {tmp_path / 'closed'}: cannot be read (Permission denied)",)


def test_text_behind_a_link_to_a_folder_is_read_once(tmp_path):
    """Links that lead back to where they stand, or to one another, do no harm."""
    given, elsewhere = tmp_path / "given", tmp_path / "elsewhere"
    for folder in (given / "own", elsewhere):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("Some text.")
    for link, place in (("linked", elsewhere), ("twice", elsewhere), ("self", given), ("own/up", given)):
        (given / link).symlink_to(place)
    (elsewhere / "back").symlink_to(given / "own")
    names = [os.path.relpath(source.path, given) for source in find_sources([str(given)], FormSettings())]
    assert names == ["linked/a.txt", "own/a.txt"]
