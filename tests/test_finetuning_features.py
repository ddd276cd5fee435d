"""Features of texts: the key of their cache, and texts cut before they are tokenised."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from central.finetuning.features import cut_to_fit, room_for_text, shortened, tokenizer_key
from central.finetuning.pretrained import check_text
from central.runtime.exits import BadRequest

pytest_plugins = ("finetuning_fixtures",)


def tokenizer_with(folder: Path, copy: Path, **changes):
    """The tokenizer of a copy of a folder with other settings."""
    copy.mkdir()
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        if (folder / name).exists():
            (copy / name).write_bytes((folder / name).read_bytes())
    file = copy / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return AutoTokenizer.from_pretrained(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"truncation_side": "left"},
        {"padding_side": "left"},
        {"model_max_length": 77},
        {"model_input_names": ["input_ids"]},
        {"split_special_tokens": True},
        {"a_setting_of_tomorrow": 1},
    ],
)
def test_every_setting_of_a_tokenizer_is_part_of_the_key(tiny_model, tmp_path, changes):
    plain, same = (tokenizer_with(tiny_model, tmp_path / name) for name in ("plain", "same"))
    assert tokenizer_key(plain) == tokenizer_key(same)  # wherever it lies
    other = tokenizer_with(tiny_model, tmp_path / "other", **changes)
    assert tokenizer_key(other) != tokenizer_key(plain)
    key = tokenizer_key(other)
    other("x", truncation=True, max_length=3, padding="max_length")
    assert tokenizer_key(other) == key


def test_a_side_set_after_loading_is_part_of_the_key(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    keys = {tokenizer_key(tokenizer)}
    for name in ("truncation_side", "padding_side"):
        setattr(tokenizer, name, "left")
        keys.add(tokenizer_key(tokenizer))
    assert len(keys) == 3


# ---- long texts


WORDS = st.sampled_from(["film", "good", "where?", "w7", "unbelievable", "京", "  ", "\n", "x" * 150, "-", "a.b"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(WORDS, min_size=1, max_size=30), min_size=1, max_size=2), st.integers(1, 300), st.booleans())
def test_a_text_cut_before_gives_the_tokens_of_the_whole(tiny_tokenizer, parts, times, from_left):
    """Single texts and pairs, one or both far too long, truncated at either side. Of whole pairs the tokenizer makes
    every pair of windows, which 300 times would be gigabytes."""
    times = times // (1 if len(parts) == 1 else 8) + 1
    tokenizer, max_length = tiny_tokenizer, 11
    texts = [[" ".join(part) * (times if i == 0 else times // 3 + 1)] for i, part in enumerate(parts)]
    tokenizer.truncation_side = "left" if from_left else "right"
    try:
        cut = cut_to_fit(tokenizer, texts, max_length)
        found, expected = (tokenizer(*each, truncation=True, max_length=max_length) for each in (cut, texts))
    finally:
        tokenizer.truncation_side = "right"
    assert found["input_ids"] == expected["input_ids"]


def test_a_megabyte_is_cut_and_what_must_stay_whole_is_not(tiny_tokenizer):
    long, short = "good film , " * 90_000, "where is it ?"
    assert len(shortened(tiny_tokenizer, long, 128)) < 20_000
    assert shortened(tiny_tokenizer, "京" * 10**6, 16) == "京" * 1024  # a token each
    assert shortened(tiny_tokenizer, "x" * 10**5, 16) == "x" * 10**5  # one [UNK]
    assert [len(column[0]) < 20_000 for column in cut_to_fit(tiny_tokenizer, [[long], [short]], 128)] == [True, True]
    both = cut_to_fit(tiny_tokenizer, [[long], [long + "x"]], 128)  # whole, the tokenizer would need all memory
    assert [len(column[0]) < 20_000 for column in both] == [True, True]
    assert cut_to_fit(tiny_tokenizer, [["a b"], ["c"]], 128) == [["a b"], ["c"]]


@pytest.mark.parametrize("longer", [0, 1])
def test_the_longer_of_a_pair_stays_the_longer(tiny_tokenizer, longer):
    """It keeps the odd token; a cut at its blank, after 300 of 1,000 tokens, would make it the shorter one."""
    texts = [["京" * 500]]
    texts.insert(longer, ["京" * 300 + " " + "京" * 700])
    found, expected = (
        tiny_tokenizer(*each, truncation=True, max_length=12)["token_type_ids"]
        for each in (cut_to_fit(tiny_tokenizer, texts, 12), texts)
    )
    assert found == expected


@pytest.mark.parametrize(("length", "pair"), [(2, False), (1, False), (4, True)])
def test_a_length_without_room_for_text_is_refused(tiny_tokenizer, length, pair):
    with pytest.raises(BadRequest, match=f"--max_seq_length {length}: .* no text fits: at least {5 if pair else 3}"):
        room_for_text(tiny_tokenizer, length, pair)


def test_a_length_with_hardly_any_room_is_said(tiny_tokenizer):
    for length in range(3, 8):
        (said,) = room_for_text(tiny_tokenizer, length, is_pair=False)
        assert f"only {length - 2} tokens of a text fit" in said
    assert room_for_text(tiny_tokenizer, 8, is_pair=False) == []


# ---- [UNK]


def checked(tokenizer, texts, bound=0.1):
    said = []
    check_text(tokenizer, texts, lambda i: f"row {i}", bound, said.append)
    return said


@pytest.mark.parametrize("texts", [["good film 😀", "bad day 🤮 🏆"], ["it is : ☂ ☃ film", "good ★★ film"]])
def test_emoji_and_signs_are_said_and_not_refused(tiny_tokenizer, texts):
    (said,) = checked(tiny_tokenizer, texts)
    assert "row 0: " in said and "% of the tokens are [UNK]" in said


def test_words_with_letters_are_refused_beyond_the_bound(tiny_tokenizer):
    texts = ["good film жизнь", "ελλάδα film is good"]
    with pytest.raises(BadRequest, match=r"row 0: \d+ % of the tokens.* are \[UNK\].*--max_unknown_share, 0.1"):
        checked(tiny_tokenizer, texts)
    assert checked(tiny_tokenizer, texts, bound=0.9)
    assert checked(tiny_tokenizer, ["good film", "yes"]) == []


@pytest.mark.parametrize("texts", [["😀😀 🏆", "🤮"], ["☂ ☃ ★", "★ ★ film"]])
def test_texts_of_hardly_anything_but_unknown_signs_are_refused(tiny_tokenizer, texts):
    with pytest.raises(BadRequest, match="% of the tokens are"):
        checked(tiny_tokenizer, texts)
    assert checked(tiny_tokenizer, texts, bound=1.0)
