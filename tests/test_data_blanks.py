"""White space by Unicode's definition, against Python's own table of it."""

import sys

import pytest

from pretraining.data.blanks import BLANKS, LINE_ENDS, plain_blanks

PYTHON_ALONE = set("\x1c\x1d\x1e\x1f")  # white space to str.isspace(), not to Unicode


def test_every_white_space_of_unicode_is_a_blank_or_a_line_end():
    spaces = {character for character in map(chr, range(sys.maxunicode + 1)) if character.isspace()}
    assert set(LINE_ENDS + BLANKS) == spaces - PYTHON_ALONE and len(LINE_ENDS + BLANKS) == len(spaces - PYTHON_ALONE)
    ends = {character for character in spaces - PYTHON_ALONE if len(f"a{character}b".splitlines()) == 2}
    assert set(LINE_ENDS) == ends


@pytest.mark.parametrize("end", [*LINE_ENDS, "\r\n", "\n\f", "\f\n", "\r\n\f"])
def test_each_line_end_is_one(end):
    assert plain_blanks(f"one.{end}two.é") == "one.\ntwo.é"
    assert plain_blanks(f"one.{end}two.") == "one.\ntwo."


@pytest.mark.parametrize("blank", BLANKS)
def test_each_blank_is_a_space(blank):
    assert plain_blanks(f"one{blank}two{blank}") == "one two "


def test_two_line_ends_are_an_empty_line_and_controls_are_nothing():
    assert plain_blanks("a\u2029\u2029b\r\rc\r\n\r\nd\n\n\fe") == "a\n\nb\n\nc\n\nd\n\ne"
    assert plain_blanks("a\x00b\x1cc\x7fd\x9f\u200be") == "abcd\u200be"
    assert not any(character.isspace() for character in plain_blanks("".join(PYTHON_ALONE)))
