"""Sentence boundaries by rules, by lines, by pysbd."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from central.runtime.exits import BadRequest
from pretraining.data.sentences import ABBREVIATIONS, language_note, sentence_splitter

CASES = {
    "en": [
        ["Mr. Smith went to Washington.", "He met Dr. J. R. Jones."],
        ['"Stop!" she cried.', "Nobody did."],
        ["It cost 3.50 dollars.", "See fig. 4 for more."],
        ["Is it?", "Yes!", "Wait...", "Now."],
        ["He said (twice.)", "Then he left."],
        ["The U.S. Army came at 5 p.m. and left."],
        ["The site example.com is down.", "1984 was a year."],
    ],
    "de": [["Das ist z.B. gut.", "Es kostet ca. 5 Euro."], ["Am 5. Mai kam er."]],
    "zh": [["今天下雨。", "明天晴！", "好吗？"], ["他说：「好。」"], ["真的吗？？", "是。。。"]],
    "hi": [["यह एक वाक्य है।", "यह दूसरा है।"]],
    "ar": [["ما هذا؟", "هذا كتاب."]],
    "xx": [["Unknown language.", "Two sentences."]],
}


@pytest.mark.parametrize(("language", "sentences"), [(lang, case) for lang, cases in CASES.items() for case in cases])
def test_cases(language, sentences):
    between = "" if language == "zh" else " "
    assert sentence_splitter("rules", language)(between.join(sentences)).split("\n") == sentences


def test_a_language_without_abbreviations_is_said():
    assert language_note("rules", "de") is None and language_note("line", "xx") is None
    assert "--language xx: no abbreviations known for it (known: en, de, " in language_note("rules", "xx")


def test_marks_without_end_take_no_time():
    for mark in (".", "!", "。", ". . "):
        text = mark * (1 << 19)
        assert "".join(sentence_splitter("rules", "en")(text).split()) == "".join(text.split())


def test_lines_stay_apart_and_blank_lines_stay():
    text = "One. Two.\n\nThree.\nFour"
    assert sentence_splitter("rules", "en")(text) == "One.\nTwo.\n\nThree.\nFour"
    assert sentence_splitter("line", "en")(text) == text


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("Aa .!?\n\"'()。 1é"), max_size=80))
def test_nothing_is_lost_and_no_document_ends(text):
    split = sentence_splitter("rules", "en")(text)
    assert "".join(split.split()) == "".join(text.split())
    blank = [bool(line.strip()) for line in text.split("\n")]
    assert sum(not line.strip() for line in split.split("\n")) == blank.count(False)


def test_pysbd_where_it_is_installed():
    pytest.importorskip("pysbd")
    split = sentence_splitter("pysbd", "en")
    assert split("Mr. Smith left. He was late.\n\nEnd.") == "Mr. Smith left.\nHe was late.\n\nEnd."
    with pytest.raises(BadRequest, match="--language xx"):
        sentence_splitter("pysbd", "xx")


def test_abbreviations_are_lower_case_without_their_last_period():
    for words in ABBREVIATIONS.values():
        assert words == words.lower() and not any(word.endswith(".") for word in words.split())
