"""The report of a corpus: its numbers against plain counting, its bounds, what is refused, what `verify` shows."""

import collections
import json
import random
import re
import textwrap
import unicodedata
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from central.runtime.exits import run
from pretraining.data import pipeline, prepare, report, sources, tokens
from pretraining.data.report import Histogram
from pretraining.data.wordpiece import SPECIAL_TOKENS

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["".join(pair) for pair in zip(LETTERS * 4, LETTERS[3:] * 4, LETTERS[7:] * 4, strict=False)][:60]


@pytest.fixture
def vocab(tmp_path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in (*SPECIAL_TOKENS, *".!?,", *WORDS)))
    return path


def documents(count: int, seed: int = 0, sentences: tuple[int, int] = (3, 12)) -> list[list[str]]:
    rng = random.Random(seed)
    return [
        [" ".join(rng.choices(WORDS, k=rng.randint(4, 15))) + "." for _ in range(rng.randint(*sentences))]
        for _ in range(count)
    ]


def text_of(made: list[list[str]]) -> str:
    return "\n\n".join("\n".join(document) for document in made) + "\n"


def prepare_text(text: str, vocab: Path, folder: Path, *more: str) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "in.txt"
    if not (source.exists() and source.read_text(encoding="utf-8") == text):  # one written again is another request
        source.write_text(text, encoding="utf-8")
    line = f"--input {folder / 'in.txt'} --vocab_file {vocab} --output_dir {folder / 'out'} --num_processes 1"
    options = "--max_seq_length 32 64 --max_predictions_per_seq 5 10 --sentences line"
    return run(prepare.main, [*line.split(), *options.split(), *more])


def report_of(folder: Path) -> dict:
    first, second = sorted((folder / "out").glob("hdf5*/corpus/corpus.json"))
    assert first.read_bytes() == second.read_bytes()
    return json.loads(first.read_text(encoding="utf-8"))


def test_the_numbers_by_plain_counting(vocab, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "BATCH_BYTES", 4096)  # several parts
    made = documents(60)
    made[5][0] = "ж " * 9 + "力 😀 ab!"
    assert prepare_text(text_of(made), vocab, tmp_path) == 0
    found = report_of(tmp_path)
    known = set(vocab.read_text().split())
    words = [[s.replace(".", " .").replace("!", " !").split() for s in document] for document in made]
    tokens = [len(sentence) for document in words for sentence in document]
    unknown = [word for document in words for sentence in document for word in sentence if word not in known]
    assert found["documents"] == 60 and found["sentences"] == len(tokens) and found["tokens"] == sum(tokens)
    assert found["tokens_a_sentence"]["median"] == np.quantile(tokens, 0.5, method="inverted_cdf")
    assert found["tokens_a_sentence"]["longest"] == max(tokens)
    lengths = list(map(len, made))
    assert found["sentences_a_document"]["99%"] == np.quantile(lengths, 0.99, method="inverted_cdf")
    assert found["unknown"]["share"] == round(len(unknown) / sum(tokens), 6)
    assert found["unknown"]["characters"][0] == ["ж", 9]
    counts = dict(map(tuple, found["unknown"]["characters"]))
    assert counts["力"] == counts["😀"] == 1
    assert found["unknown"]["scripts"]["Cyrillic"] == {"words": 9, "tokens": 9, "share": 1.0}
    for length, folder in zip((32, 64), sorted((tmp_path / "out").glob("hdf5*/corpus")), strict=True):
        training = found["phases"][str(length)]["training"]
        sequences = padding = positions = random_next = 0
        for path in folder.glob("*training*"):
            with h5py.File(path) as file:
                mask, labels = file["input_mask"][:], file["next_sentence_labels"][:]
            sequences, random_next = sequences + len(mask), random_next + int(labels.sum())
            padding, positions = padding + int((mask == 0).sum()), positions + mask.size
        assert training["sequences"] == sequences
        assert training["padding"] == pytest.approx(padding / positions, abs=1e-5)
        assert training["next_sentence_random"] == pytest.approx(random_next / sequences, abs=1e-5)
        share = training["next_sentence_random"]
        assert training["next_sentence_majority"] == pytest.approx(max(share, 1 - share))
        assert 0.9 < training["text_in_sequences"] <= 1
    said = capsys.readouterr().out
    assert "text: 60 documents" in said and "32 tokens, training: " in said and "ж (9)" in said
    assert prepare.main(["verify", str(tmp_path / "out"), "--num_processes", "1"]) == 0
    shown = capsys.readouterr().out
    for line in report.lines(found):
        assert f"    {line}\n" in shown
    assert "[UNK] " in shown and "(majority " in shown


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), max_size=30), min_size=1, max_size=5))
def test_histograms_add_up(lists):
    total = Histogram.total([Histogram.of(np.array(numbers, np.int64)) for numbers in lists])
    everything = sorted(number for numbers in lists for number in numbers)
    assert dict(zip(total.values.tolist(), total.counts.tolist(), strict=True)) == collections.Counter(everything)
    for share in (0.5, 0.99, 1.0):
        wanted = np.quantile(everything, share, method="inverted_cdf") if everything else 0
        assert total.quantile(share) == wanted


RUSSIAN = "Он пришёл домой и лёг спать.\nДождь шёл всю ночь.\nУтром стало тихо.\n\n" * 12
REFUSED = {
    "unknown": (RUSSIAN, "of the tokens are [UNK] (Cyrillic 8"),
    "one_document": ("\n".join(sentence for document in documents(20) for sentence in document), "all text is one doc"),
    "one_label": (
        text_of([[sentence] for document in documents(20) for sentence in document]),
        "every document is one",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_unless_allowed(name, vocab, tmp_path, capsys):
    text, said = REFUSED[name]
    assert prepare_text(text, vocab, tmp_path) == 2
    error = capsys.readouterr().err
    assert said in error and f"--allow {name}" in error and len(error.strip().splitlines()) <= 3
    assert not list(tmp_path.rglob("*.hdf5"))
    assert prepare_text(text, vocab, tmp_path, "--allow", *(other for other in REFUSED if other != name)) == 2
    capsys.readouterr()
    assert prepare_text(text, vocab, tmp_path, "--allow", name) == 0
    shown = capsys.readouterr().out
    assert "warning: " in shown and list(tmp_path.rglob("*training*.hdf5"))


def test_all_reasons_are_told_together(vocab, tmp_path, capsys):
    assert prepare_text(RUSSIAN.replace("\n\n", "\n"), vocab, tmp_path) == 2
    error = capsys.readouterr().err
    assert "--allow unknown" in error and "--allow one_document" in error


def prepare_rows(made: list[list[str]], vocab: Path, folder: Path, *more: str) -> int:
    """As `prepare_text`, of a JSON line for each document."""
    rows = "".join(json.dumps({"text": "\n".join(document)}) + "\n" for document in made)
    return prepare_text(rows, vocab, folder, *more)


@pytest.mark.parametrize(
    "name, made", [("one_document", documents(1, 0, (90, 90))), ("one_label", documents(40, 0, (1, 1)))]
)
def test_blank_lines_are_advised_to_those_who_give_plain_text(name, made, vocab, tmp_path, capsys):
    for prepare_as, is_plain in ((lambda *more: prepare_text(text_of(made), *more), True), (prepare_rows, False)):
        folder = tmp_path / str(is_plain)
        arguments = (vocab, folder) if is_plain else (made, vocab, folder)
        assert prepare_as(*arguments) == 2
        assert ("blank lines" in capsys.readouterr().err) == is_plain
        assert prepare_as(*arguments, "--allow", name) == 0
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
        assert any("document" in line for line in said) and ("blank lines" in "".join(said)) == is_plain
        assert "--max_seq_length" in "".join(said) or name == "one_document"  # half of the rows is padding


def test_the_way_out_for_a_single_book_goes_on(vocab, tmp_path, capsys):
    paragraphs = [textwrap.fill(" ".join(document), 60) for document in documents(40, sentences=(6, 12))]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    line = f"--input {tmp_path / 'book.txt'} --vocab_file {vocab} --output_dir {tmp_path / 'out'} --num_processes 1"
    line += " --max_seq_length 32 64 --max_predictions_per_seq 5 10"
    assert run(prepare.main, line.split()) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "one document" in line]
    assert "a chapter each" in said
    (way_out,) = re.findall(r"--one_document_per_file \d", said)
    assert run(prepare.main, [*line.split(), *way_out.split()]) == 0
    assert report_of(tmp_path)["documents"] == 40


def test_a_vocabulary_of_five_tokens(tmp_path, capsys):
    (tmp_path / "five.txt").write_text("\n".join(SPECIAL_TOKENS))
    assert prepare_text(text_of(documents(30)), tmp_path / "five.txt", tmp_path) == 2
    assert "100.0% of the tokens are [UNK] (Latin 100%)" in capsys.readouterr().err


def test_signs_and_emoji_do_not_refuse_good_text(vocab, tmp_path, capsys):
    made = [[f"{sentence} 😀 😀 ☃ ☃" for sentence in document] for document in documents(30)]
    assert prepare_text(text_of(made), vocab, tmp_path) == 0
    assert "of the tokens are [UNK], most behind ☃" in capsys.readouterr().out  # said


def warnings_of(text: str, vocab: Path, folder: Path, capsys, *more: str) -> str:
    capsys.readouterr()
    assert prepare_text(text, vocab, folder, "--allow", "unknown", *more) == 0
    return "\n".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: "))


def report_with(text: str, vocab: Path, folder: Path) -> dict:
    assert prepare_text(text, vocab, folder, "--allow", "unknown") == 0
    return report_of(folder)


def test_a_good_text_has_no_warnings(vocab, tmp_path, capsys):
    assert warnings_of(text_of(documents(80)), vocab, tmp_path, capsys) == ""


def test_numbers_beyond_their_bounds_are_said(vocab, tmp_path, capsys):
    paragraphs = text_of(documents(60, sentences=(1, 2)))
    said = warnings_of(paragraphs, vocab, tmp_path / "a", capsys)
    assert "of the sequences of 64 tokens is padding" in said
    few = text_of(documents(3))
    assert "no text is held out at 32 tokens" in warnings_of(few, vocab, tmp_path / "b", capsys)
    said = warnings_of(text_of(documents(60)), vocab, tmp_path / "c", capsys, "--test_fraction", "0")
    assert "no text is held out at 64 tokens" in said
    mostly = text_of(documents(50, sentences=(1, 1)) + documents(10, seed=1))
    said = warnings_of(mostly, vocab, tmp_path / "d", capsys)
    assert "% of the documents have one sentence" in said
    words = text_of([[sentence.split()[0] for sentence in document] for document in documents(300)])
    assert "half of the sentences have no more than 1 tokens" in warnings_of(words, vocab, tmp_path / "e", capsys)


def padding_of(folder: Path, split: str) -> float:
    (path,) = (folder / "out").glob(f"hdf5*_seq_len_64_*/corpus/*_{split}_*.hdf5")
    with h5py.File(path) as file:
        return (file["input_mask"][:] == 0).mean()


def test_held_out_documents_that_were_cut_to_a_short_length_are_said(vocab, tmp_path, capsys):
    """Six long documents, some of them cut: two are held out, by the seed such as were not or such as were."""
    text = text_of(documents(6, sentences=(200, 220)))
    options = ("--short_seq_prob", "0.3", "--random_seed")
    assert "padding" not in warnings_of(text, vocab, tmp_path / "even", capsys, *options, "8")
    said = warnings_of(text, vocab, tmp_path / "cut", capsys, *options, "10")
    (line,) = [line for line in said.splitlines() if "padding" in line]
    training, test = (padding_of(tmp_path / "cut", split) for split in ("training", "test"))
    assert training < 0.5 and test > training + 0.2 > padding_of(tmp_path / "even", "test")
    assert line.startswith(f"warning: {test:.0%} of the held-out sequences of 64 tokens is padding")
    assert f"of the others {training:.0%}: --short_seq_prob draws one length for all of a document" in line
    assert prepare.main(["verify", str(tmp_path / "cut" / "out"), "--num_processes", "1"]) == 0
    assert line in capsys.readouterr().out


def test_long_documents_are_not_called_short(vocab, tmp_path, capsys):
    """All of them are cut, by this seed most of the sequences to less than half of the length."""
    text = text_of(documents(6, sentences=(200, 220)))
    options = ("--short_seq_prob", "1", "--dupe_factor", "1", "--random_seed", "2")
    said = warnings_of(text, vocab, tmp_path, capsys, *options)
    assert padding_of(tmp_path, "training") > 0.5
    (line,) = [line for line in said.splitlines() if "of the sequences of 64 tokens is padding" in line]
    assert "documents are short" not in said and "--short_seq_prob 0 draws none" in line


def held_out_in_files(folder: Path) -> tuple[int, float]:
    """(documents, share of the tokens), of what the files of one phase say of themselves."""
    documents, tokens = 0, {"training": 0, "test": 0}
    for path in (folder / "out").glob("hdf5*_seq_len_32_*/corpus/*.hdf5"):
        with h5py.File(path) as file:
            split = file.attrs["split"]
            tokens[split] += int(file.attrs["text_tokens"])
            documents += int(file.attrs["documents"]) * (split == "test")
    return documents, tokens["test"] / sum(tokens.values())


@pytest.mark.parametrize("books, short", [(4, 0), (2, 60)], ids=["few", "unequal"])
def test_the_share_that_is_held_out_is_said_and_told_where_it_is_not_what_was_asked_for(
    books, short, vocab, tmp_path, capsys
):
    """Two of four books are half of the text; of 62 documents two are nearly all of it."""
    text = text_of(documents(books, sentences=(800, 900)) + documents(short, seed=1))
    said = warnings_of(text, vocab, tmp_path, capsys)
    documents_held, share = held_out_in_files(tmp_path)
    assert not 0.05 <= share <= 0.2
    (line,) = [line for line in said.splitlines() if "held out" in line]
    assert line.startswith(f"warning: {share:.1%} of the text is held out, where --test_fraction 0.1 was asked for")
    assert f"({documents_held} of {books + short})" in line and "a file for each chapter" in line
    found = report_of(tmp_path)["held_out"]
    assert found["documents"] == documents_held and found["share_of_tokens"] == pytest.approx(share, abs=1e-6)
    assert prepare.main(["verify", str(tmp_path / "out"), "--num_processes", "1"]) == 0
    shown = capsys.readouterr().out
    assert line in shown and f"held out: {documents_held} of the documents with {share:.1%} of the tokens" in shown


def test_the_share_that_is_held_out_is_no_warning_where_it_is_right_or_the_text_a_few_lines(vocab, tmp_path, capsys):
    even = text_of(documents(100, sentences=(12, 14)))
    assert warnings_of(even, vocab, tmp_path / "even", capsys) == ""
    assert 0.05 < report_of(tmp_path / "even")["held_out"]["share_of_tokens"] < 0.2
    assert "of the text is held out" not in warnings_of(text_of(documents(6)), vocab, tmp_path / "few", capsys)
    assert report_of(tmp_path / "few")["held_out"]["share_of_tokens"] > 0.2


def test_a_report_of_before_the_share_was_kept_is_shown(vocab, tmp_path, capsys):
    assert prepare_text(text_of(documents(30)), vocab, tmp_path) == 0
    older = report_of(tmp_path)
    del older["held_out"]
    for path in tmp_path.rglob("corpus.json"):
        path.write_bytes(report.write(older))
    capsys.readouterr()
    assert prepare.main(["verify", str(tmp_path / "out"), "--num_processes", "1"]) == 0
    assert "text: 30 documents" in capsys.readouterr().out


def test_text_that_comes_twice_and_few_masks_are_said(vocab, tmp_path, capsys):
    twice = text_of(documents(300) * 2)
    assert "% of the sentences occurred before" in warnings_of(twice, vocab, tmp_path / "a", capsys)
    few = warnings_of(text_of(documents(60)), vocab, tmp_path / "b", capsys, "--max_predictions_per_seq", "1", "10")
    assert "of the tokens are masked at 32 tokens, of 15% asked for" in few and "at 64 tokens, of" not in few


def test_the_same_words_in_another_order_are_another_sentence(monkeypatch):
    monkeypatch.setattr(tokens, "HASH_SAMPLE", 1)
    sentences = [[5, 6, 7], [7, 6, 5], [5, 6, 7], [6, 5, 7], [5, 6], [5], [6, 7]]
    ids, lengths = np.array(sum(sentences, []), np.uint16), np.array([*map(len, sentences)])
    hashes = tokens._sampled_hashes(ids, lengths)
    assert hashes[0] == hashes[2] and len(set(hashes.tolist())) == len(sentences) - 1


def test_what_is_left_out_is_one_number(vocab, tmp_path, capsys):
    """A line that is no UTF-8, two rows without a text: three of the input."""
    rows = [json.dumps({"text": "\n".join(document)}) for document in documents(40)]
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_text("\n".join([*rows, '{"text": 1}', "no row"]) + "\n")
    (source / "b.txt").write_bytes(text_of(documents(40, seed=1)).encode() + "\nÄ é.\n".encode() + b"A \xff b.\n")
    line = [
        "--input",
        str(source),
        "--vocab_file",
        str(vocab),
        "--output_dir",
        str(tmp_path / "out"),
        "--num_processes",
    ]
    more = "1 --max_seq_length 32 64 --max_predictions_per_seq 5 10 --sentences line --allow unknown"
    assert run(prepare.main, [*line, *more.split()]) == 0
    assert report_of(tmp_path)["left_out"] == 3
    said = capsys.readouterr().out
    assert "; 3 lines and sentences left out" in said and "were left out: the notes" not in said
    (source / "a.jsonl").write_text("\n".join([*rows, *["no row"] * 90]) + "\n")
    assert run(prepare.main, [*line[:5], str(tmp_path / "more"), *line[6:], *more.split()]) == 0
    assert "of the lines and sentences were left out: the notes of the run name them" in capsys.readouterr().out


def test_tokens_of_an_older_version_are_refused_by_the_step_that_reads_them(vocab, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "TOKENS_VERSION", pipeline.TOKENS_VERSION - 1)
    assert prepare_text(text_of(documents(60)), vocab, tmp_path, "--keep_tokens") == 0
    monkeypatch.undo()
    line = f"hdf5 --vocab_file {vocab} --output_dir {tmp_path / 'out'} --num_processes 1"
    assert run(prepare.main, line.split()) == 2
    assert "no finished tokens of this version" in capsys.readouterr().err


def test_long_sentences_are_in_sequences(vocab, tmp_path, capsys):
    """Sentences of several sequences each: nearly all of their text is used."""
    rng = random.Random(0)
    made = [[" ".join(rng.choices(WORDS, k=300)) for _ in range(2)] for _ in range(20)]
    assert prepare_text(text_of(made), vocab, tmp_path) == 0
    for splits in report_of(tmp_path)["phases"].values():
        assert splits["training"]["text_in_sequences"] > 0.97
        assert splits["training"]["next_sentence_majority"] < 0.75


MARKS = {
    "Devanagari": "कुत्ता घर में है। की किताब मेज़ पर है।",
    "Katakana": "ガギグゲゴ パピプペポ デパート",
    "Cyrillic": "Мой край, твой дом и чужой йод.",
    "Thai": "ที่นี่ กิน น้ำ",
    "Latin": "Tiếng Việt có dấu đẹp lắm.",
}
LATIN = {
    "de": "Der Bürgermeister fragte, ob das Haus schon schön genug ist, und ging dann nach Hause.",
    "fr": "Le café était fermé hier et il a plu.",
    "cs": "Dnes večer půjdeme do divadla.",
    "tr": "Çocuk okula gidiyor ve öğretmenine çiçek veriyor.",
    "es": "El niño comió una manzana en el jardín.",
}


@pytest.mark.parametrize("script", MARKS)
def test_marks_that_lower_case_takes_are_said(script, vocab, tmp_path, capsys):
    text = text_of([[MARKS[script]] * 4] * 12)
    said = warnings_of(text, vocab, tmp_path / "a", capsys)
    assert f"% of the {script} words" in said and "--strip_accents 0 keeps them" in said
    assert "lower case" not in warnings_of(text, vocab, tmp_path / "b", capsys, "--strip_accents", "0")
    assert "lower case" not in warnings_of(text, vocab, tmp_path / "c", capsys, "--do_lower_case", "0")


@pytest.mark.parametrize("language", LATIN)
def test_letters_of_european_languages_that_lower_case_changes_are_said(language, vocab, tmp_path, capsys):
    said = warnings_of(text_of([[LATIN[language]] * 4] * 12), vocab, tmp_path, capsys)
    words = re.findall(r"\w+", LATIN[language])
    marked = [word for word in words if unicodedata.normalize("NFD", word) != word]
    (line,) = [line for line in said.splitlines() if "lower case" in line]
    assert f" from {len(marked) / len(words):.0%} of the Latin words; --strip_accents 0 keeps them" in line


def test_some_foreign_names_in_english_are_no_warning(vocab, tmp_path, capsys):
    """One word in a hundred and fifty, as of SQuAD's paragraphs one in four hundred."""
    sentence = " ".join((WORDS * 3)[:149])
    said = warnings_of(text_of([[f"{sentence} Beyoncé"] * 4] * 12), vocab, tmp_path, capsys)
    assert report_of(tmp_path)["lost_marks"]["Latin"]["share_of_words"] == pytest.approx(1 / 150, abs=1e-6)
    assert "lower case" not in said


def test_scripts_that_lose_marks_share_a_line(vocab, tmp_path, capsys):
    text = text_of([[MARKS["Devanagari"], MARKS["Thai"]] * 4] * 12)
    (said,) = [line for line in warnings_of(text, vocab, tmp_path, capsys).splitlines() if "lower case" in line]
    assert re.search(r": \d+ from \d+% of the Devanagari words, \d+ from \d+% of the Thai words; --strip", said)


def test_a_handful_of_foreign_words_is_no_warning(vocab, tmp_path, capsys):
    """All that is known of them stays in corpus.json."""
    made = documents(80)
    made[3][1] += " ガギ ที่ में Мой 力 ˈˌ"
    assert warnings_of(text_of(made), vocab, tmp_path / "few", capsys) == ""
    found = report_of(tmp_path / "few")
    assert {"Katakana", "Thai", "Devanagari", "Cyrillic"} <= found["lost_marks"].keys()
    assert found["unknown"]["scripts"].keys() == found["lost_marks"].keys() | {"Latin", "Han", "Other"}
    (line,) = [line for line in report.lines(found) if line.startswith("[UNK]")]
    assert "of words in" not in line and "behind them" in line
    cyrillic = text_of([*made, *([[MARKS["Cyrillic"]] * 12] * 20)])
    assert prepare_text(cyrillic, vocab, tmp_path / "more") == 2
    assert re.search(r"\(Cyrillic \d+%\), so", capsys.readouterr().err)
    assert "; of words in Cyrillic 7" in "\n".join(report.lines(report_with(cyrillic, vocab, tmp_path / "more")))


def test_greek_is_often_written_without_its_accents(vocab, tmp_path, capsys):
    greek = "Τι κάνεις; Είμαι καλά σήμερα."
    assert "lower case" not in warnings_of(text_of([[greek] * 4] * 12), vocab, tmp_path, capsys)


CUT = ("part_000001.npz", "part_000002.tokens", "part_000000.sentences", ".request.json", "complete.json")


@pytest.mark.parametrize("length", [0, 40, -1])
@pytest.mark.parametrize("name", CUT)
def test_a_token_store_that_was_cut_is_made_again(name, length, vocab, tmp_path, monkeypatch, capsys):
    """To nothing, to a beginning, to all but a byte; what of it is whole stays."""
    monkeypatch.setattr(sources, "BATCH_BYTES", 4096)
    text = text_of(documents(90))
    assert prepare_text(text, vocab, tmp_path / "calm") == 0
    folder = tmp_path / "cut"
    folder.mkdir()
    assert prepare_text(text, vocab, folder, "--keep_tokens") == 0
    for path in folder.rglob("*.hdf5"):
        path.unlink()
    cut = folder / "out" / "tokens_corpus" / name
    cut.write_bytes(cut.read_bytes()[:length])
    capsys.readouterr()
    assert prepare_text(text, vocab, folder) == 0
    for path in (tmp_path / "calm").rglob("*.hdf5"):
        assert (folder / path.relative_to(tmp_path / "calm")).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("record", [b"[1]", b"[" * 3000 + b"]" * 3000])
def test_a_record_that_is_no_text(record, vocab, tmp_path):
    text = text_of(documents(30))
    assert prepare_text(text, vocab, tmp_path) == 0
    (tmp_path / "out" / "tokens_corpus" / ".request.json").write_bytes(b"\xff\xfe\x00")
    assert prepare_text(text, vocab, tmp_path) == 0
    (tmp_path / "out" / "tokens_corpus" / ".request.json").write_bytes(record)
    line = ["hdf5", "--vocab_file", str(vocab), "--output_dir", str(tmp_path / "out"), "--max_seq_length", "32"]
    assert run(prepare.main, [*line, "--max_predictions_per_seq", "5"]) == 2


@pytest.mark.parametrize("parts", ["[" * 3000 + "]" * 3000, "1e999", "-1", "1" + "0" * 20])
def test_a_token_store_that_counts_no_parts_is_made_again(parts, vocab, tmp_path):
    text = text_of(documents(30))
    assert prepare_text(text, vocab, tmp_path) == 0
    shards = {path: path.read_bytes() for path in tmp_path.rglob("*.hdf5")}
    for path in shards:
        path.unlink()
    (tmp_path / "out" / "tokens_corpus" / "complete.json").write_text(f'{{"parts": {parts}}}')
    assert prepare_text(text, vocab, tmp_path) == 0
    assert shards and {path: path.read_bytes() for path in tmp_path.rglob("*.hdf5")} == shards
