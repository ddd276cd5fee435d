"""WordPiece: the ids of Hugging Face's tokenizer, and of Google's, written here a second time, by characters.

Google's is followed but where Hugging Face's, which checkpoints carry, differs: Σ is lower-cased as any other letter,
and characters for private use are left out.
"""

import gzip
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from central.runtime.exits import BadRequest
from pretraining.data import wordpiece
from pretraining.data.wordpiece import (
    OTHER,
    SPECIAL_TOKENS,
    USAGE,
    Tokenizer,
    Usage,
    Vocabulary,
    read_vocabulary,
    script_of,
    split_punctuation,
)
from pretraining.vocabulary import find_vocabulary, fingerprint_of

SMALL = (
    *SPECIAL_TOKENS,
    *"abcdefghijklmnopqrstuvwxyz0123456789.,!?'-$",
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"),
    *("un", "##aff", "##able", "the", "##ing", "want", "##ed", "run", "##n"),
    *("σ", "ς", "##σ", "##ς", "ο", "##ο", "δ", "##δ", "力", "加", "é", "##é", "A", "##A"),
)


def reference_ids(text: str, vocabulary: Vocabulary) -> list[int]:
    """The reference's three passes, slowly: clean and space, lower and split, longest pieces first."""
    cleaned = ""
    for character in text:
        category = unicodedata.category(character)
        if character in " \t\n\r" or category == "Zs":
            cleaned += " "
        elif ord(character) in (0, 0xFFFD) or category in ("Cc", "Cf", "Co"):
            continue
        elif _is_ideograph(ord(character)):
            cleaned += f" {character} "
        else:
            cleaned += character
    words = []
    for word in cleaned.split():
        if vocabulary.do_lower_case:
            word = unicodedata.normalize("NFD", "".join(character.lower() for character in word))
            word = "".join(character for character in word if unicodedata.category(character) != "Mn")
        current = ""
        for character in word:
            if _is_mark(character):
                words += [current, character]
                current = ""
            else:
                current += character
        words.append(current)
    ids = []
    for word in " ".join(words).split():
        ids += _longest_pieces(word, vocabulary)
    return ids


def _is_ideograph(code: int) -> bool:
    blocks = "4E00-9FFF 3400-4DBF 20000-2A6DF 2A700-2B73F 2B740-2B81F 2B820-2CEAF F900-FAFF 2F800-2FA1F"
    return any(int(a, 16) <= code <= int(b, 16) for a, b in (block.split("-") for block in blocks.split()))


def _is_mark(character: str) -> bool:
    code = ord(character)
    ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_mark or unicodedata.category(character)[0] == "P"


def _longest_pieces(word: str, vocabulary: Vocabulary) -> list[int]:
    numbers = vocabulary.ids
    if len(word) > 200:
        return [numbers["[UNK]"]]
    ids, rest = [], word
    while rest:
        start = "##" if ids else ""
        sizes = [size for size in range(len(rest), 0, -1) if start + rest[:size] in numbers]
        if not sizes:
            return [numbers["[UNK]"]]
        ids.append(numbers[start + rest[: sizes[0]]])
        rest = rest[sizes[0] :]
    return ids


@pytest.fixture(scope="module")
def bert(shared_data: Path) -> Vocabulary:
    return read_vocabulary(shared_data / "vocab" / "vocab.txt", True)


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_examples(do_lower_case):
    tokenizer = Tokenizer(Vocabulary(SMALL, do_lower_case))
    assert tokenizer.tokens("unwanted running, the 力加!") == (
        ["un", "##w", "##a", "##n", "##t", "##ed", "run", "##n", "##ing", ",", "the", "力", "加", "!"]
    )
    assert tokenizer.tokens("") == []
    assert tokenizer.tokens("x" * 201) == ["[UNK]"]
    assert tokenizer.tokens("A") == (["a"] if do_lower_case else ["A"])


def test_greek_final_sigma_follows_hugging_face():
    tokenizer = Tokenizer(Vocabulary(SMALL))
    assert tokenizer.tokens("ΟΔΟΣ") == ["ο", "##δ", "##ο", "##σ"]
    assert tokenizer.tokens("οδος") == ["ο", "##δ", "##ο", "##ς"]
    assert tokenizer.tokens("ΟΔΟΣΟ") == ["ο", "##δ", "##ο", "##σ", "##ο"]


def test_every_character_alone_and_inside_a_word(bert):
    tokenizer = Tokenizer(bert)
    codes = [code for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    interesting = [
        code for code in codes if code < 0x2100 or unicodedata.category(chr(code)) != "Cn" and code % 61 == 0
    ]
    for code in interesting:
        if chr(code) in "\n":
            continue
        text = f"a{chr(code)}b {chr(code)}"
        assert tokenizer.encode(text).ids.tolist() == reference_ids(text, bert), hex(code)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.booleans())
def test_any_text(text, do_lower_case):
    vocabulary = Vocabulary(SMALL, do_lower_case)
    text = text.replace("\n", " ")
    assert Tokenizer(vocabulary).encode(text).ids.tolist() == reference_ids(text, vocabulary)


# Lower case that depends on neighbours; combining, deleted, unassigned characters; ideographs; odd white space.
TRICKY = (
    "ΣσςΟΔİıßſÉéaA'’ʼ.!$^`\u0300\u0301\u0327\u0345\u00ad\u200b\u200d\ufeff\ufffd\u0378\ue000\x00\x07\x1f\x7f\x85"
    "力加が한\U00020000\U000e0001 \t\u00a0\u2028\u3000"
)
APART = sorted({form for c in TRICKY for form in unicodedata.normalize("NFD", c + c.lower()) if form.strip()} - {"\0"})
LETTERS = (*SPECIAL_TOKENS, *APART, *(f"##{letter}" for letter in APART))


@settings(max_examples=600, deadline=None)
@given(st.text(st.sampled_from(TRICKY), max_size=16), st.booleans())
def test_tricky_characters_side_by_side(text, do_lower_case):
    """Each has an id of its own, so that no difference hides behind [UNK]."""
    vocabulary = Vocabulary(LETTERS, do_lower_case)
    assert Tokenizer(vocabulary).encode(text).ids.tolist() == reference_ids(text, vocabulary)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab .\t\0\x0b\x85\u2028\u00a0\u3000é力"), max_size=12), max_size=8))
def test_lines_and_blank_lines(lines):
    vocabulary = Vocabulary(SMALL)
    encoded = Tokenizer(vocabulary).encode("".join(f"{line}\n" for line in lines) or "\n")
    expected = [reference_ids(line, vocabulary) for line in lines or [""]]
    assert encoded.ids.tolist() == [number for ids in expected for number in ids]
    assert encoded.line_tokens.tolist() == [len(ids) for ids in expected]
    for line, blank, ids in zip(lines or [""], encoded.blank, expected, strict=True):
        assert not (blank and ids)
        assert blank or line.strip()


def test_real_text_in_many_scripts(bert, shared_data):
    tokenizer = Tokenizer(bert)
    text = (shared_data / "bert" / "sample_text.txt").read_text(encoding="utf-8")
    with gzip.open(shared_data / "wiki" / "squad-train-paragraphs.txt.gz", "rt", encoding="utf-8") as file:
        text += "".join(line for line in file.readlines()[:1500])
    lines = text.split("\n")
    encoded = tokenizer.encode(text)
    expected = [reference_ids(line, bert) for line in lines[:300]]
    ours = np.split(encoded.ids, np.cumsum(encoded.line_tokens))[: len(expected)]
    assert [ids.tolist() for ids in ours] == expected


def test_real_text_against_hugging_face(bert, shared_data):
    tokenizers = pytest.importorskip("tokenizers")
    other = tokenizers.BertWordPieceTokenizer(str(shared_data / "vocab" / "vocab.txt"), lowercase=True)
    with gzip.open(shared_data / "wiki" / "squad-train-paragraphs.txt.gz", "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file][:4000]
    encoded = Tokenizer(bert).encode("\n".join(lines))
    ours = np.split(encoded.ids, np.cumsum(encoded.line_tokens))
    for line, ids in zip(lines, ours, strict=False):
        assert ids.tolist() == other.encode(line, add_special_tokens=False).ids


def test_ids_do_not_depend_on_what_came_before(monkeypatch):
    vocabulary = Vocabulary(SMALL)
    text = "the running unaffable want\nruns 123 ab" + " x" * 30
    fresh = Tokenizer(vocabulary).encode(text)
    monkeypatch.setattr(wordpiece, "CACHE_WORDS", 3)  # forget all the time
    tokenizer = Tokenizer(vocabulary)
    for word in range(50):
        tokenizer.encode(f"word{word} the")
        again = tokenizer.encode(text)
        assert again.ids.tolist() == fresh.ids.tolist()
        assert again.line_tokens.tolist() == fresh.line_tokens.tolist()


def test_cached_property_values():
    vocabulary = Vocabulary(SMALL)
    assert vocabulary.id_type is np.uint16
    assert vocabulary.continuation.sum() == sum(token.startswith("##") for token in SMALL)
    assert Vocabulary(tuple(map(str, range(70_000)))).id_type is np.uint32


def write(path: Path, tokens) -> Path:
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return path


def test_a_vocabulary_without_mask_is_refused(tmp_path):
    file = write(tmp_path / "vocab.txt", [token for token in SMALL if token != "[MASK]"])
    with pytest.raises(BadRequest, match=r"vocab.txt: no \[MASK\]"):
        read_vocabulary(file, True)


def test_all_faults_of_a_vocabulary_are_named(tmp_path):
    file = write(tmp_path / "vocab.txt", ["the", "[UNK]", "the"])
    with pytest.raises(BadRequest) as caught:
        read_vocabulary(file, True)
    text = str(caught.value)
    assert all(token in text for token in ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "'the' is on 2 lines"))


def test_padding_must_be_id_0(tmp_path):
    with pytest.raises(BadRequest, match=r"line 1 is 'the'"):
        read_vocabulary(write(tmp_path / "vocab.txt", ["the", *SPECIAL_TOKENS]), True)


def test_a_vocabulary_that_is_not_there(tmp_path):
    with pytest.raises(BadRequest, match="absent.txt: cannot be read"):
        read_vocabulary(tmp_path / "absent.txt", True)


# What Hugging Face's tables (Unicode 8) do not know yet, or know otherwise; docs/data.md lists the same.
NEWER_THAN_HUGGING_FACE = ("Cn", "Cf", "Mn", "Mc")


def _characters_of_scripts() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for code in range(0x20000):
        character = chr(code)
        if unicodedata.category(character)[0] in "LMNPS":
            found.setdefault(script_of(character) if character.isalpha() else OTHER, []).append(character)
    return found


@pytest.mark.parametrize("strip_accents", [None, True, False])
@pytest.mark.parametrize("do_lower_case", [True, False])
def test_every_script_as_hugging_faces_normaliser_has_it(do_lower_case, strip_accents):
    """Words of one script after the other; what differs is of marks that came to Unicode after its tables."""
    normalizers = pytest.importorskip("tokenizers.normalizers")
    other = normalizers.BertNormalizer(lowercase=do_lower_case, strip_accents=strip_accents)
    ours = Vocabulary(SMALL, do_lower_case, strip_accents).normaliser
    different = {}
    for script, characters in _characters_of_scripts().items():
        for character in characters:
            for word in (f"a{character}b", character, f"{character}Σ{character}"):
                theirs = [part for w in other.normalize_str(word).split() for part in split_punctuation(w)]
                if ours.parts(word) != theirs:
                    different[character] = script
    assert {unicodedata.category(character) for character in different} <= set(NEWER_THAN_HUGGING_FACE)
    assert len(different) < 500 and not any(character < "\u07fd" for character in different)


def test_strip_accents_is_a_setting_of_its_own():
    tokens = (*SPECIAL_TOKENS, "и", "й", "ё", "е", "É", "e", "é", "E")
    found = {
        (lower, strip): Tokenizer(Vocabulary(tokens, lower, strip)).tokens("Й Ё É")
        for lower in (True, False)
        for strip in (None, True, False)
    }
    assert found[True, None] == found[True, True] == ["и", "е", "e"]
    assert found[True, False] == ["й", "ё", "é"]
    assert found[False, None] == found[False, False] == ["[UNK]", "[UNK]", "É"]
    assert found[False, True] == ["[UNK]", "[UNK]", "E"]


def test_usage_tells_of_scripts_unknown_words_and_lost_marks(monkeypatch):
    tokens = (*SPECIAL_TOKENS, "the", "и", "##и", ".")
    for blocks in (64, 1):  # counted at the end, or all the time
        monkeypatch.setattr(wordpiece, "BLOCKS_COUNTED", blocks)
        tokenizer = Tokenizer(Vocabulary(tokens))
        for text in ("the thé ий.\n", "the ий\n", "жи 😀\n"):
            tokenizer.encode(text)
        usage = tokenizer.take_usage()
        numbers = {name: dict(zip(USAGE, row.tolist(), strict=True)) for name, row in usage.scripts.items()}
        assert numbers == {
            "Latin": {"words": 3, "tokens": 3, "unknown": 0, "words_that_lose_marks": 1, "lost_marks": 1},
            "Cyrillic": {"words": 3, "tokens": 6, "unknown": 1, "words_that_lose_marks": 2, "lost_marks": 2},
            "Other": {"words": 1, "tokens": 1, "unknown": 1, "words_that_lose_marks": 0, "lost_marks": 0},
        }
        assert usage.unknown_characters == {"ж": 1, "😀": 1}
        assert tokenizer.take_usage() == Usage.none()


@pytest.mark.parametrize(
    ("word", "script"),
    [("ˈfɪlə", "Latin"), ("ˌ", "Other"), ("ʻokina", "Latin"), ("ー", "Other"), ("ーカ", "Katakana"), ("ｶ", "Katakana")],
)
def test_a_letter_that_only_modifies_others_has_no_script(word, script):
    assert wordpiece.script_of(word) == script


def test_usage_survives_that_words_are_forgotten(monkeypatch):
    vocabulary = Vocabulary(SMALL)
    monkeypatch.setattr(wordpiece, "CACHE_WORDS", 3)
    tokenizer = Tokenizer(vocabulary)
    count = sum(len(tokenizer.encode(f"the word{number} ж\n").ids) for number in range(40))
    usage = tokenizer.take_usage()
    assert sum(row[1] for row in usage.scripts.values()) == count
    assert usage.scripts["Latin"][0] == 80 and usage.unknown_characters == {"ж": 40}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"\x89HDF\r\n\x1a\n\x00\x00", "cannot be read as UTF-8 text"),
        (b"PK\x03\x04\x00\x00", "not a text file"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_one_line(content, said, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(BadRequest, match=said) as caught:
        read_vocabulary(tmp_path / "vocab.txt", True)
    assert len(caught.value.problems) == 1 and "--vocab_file" in str(caught.value)


VOCABULARIES = {
    "U+2028 as a token": "{}\na\n\u2028\n\u2029\nb\n",
    "a blank last line": "{}\na\nb\n\n",
    "no line end at the end": "{}\na\nb",
    "lines of Windows": "{}\r\na\r\nb\r\n",
    "blanks behind a token": "{}\na \nb\u3000\n",
    "an empty line inside": "{}\na\n\nb\n",
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_reader_gives_the_ids_of_hugging_face(name, tmp_path):
    """prepare.py's, the training's and that of `AutoTokenizer`, and the fingerprint of what it saves."""
    transformers = pytest.importorskip("transformers")
    text = VOCABULARIES[name].format("\n".join(SPECIAL_TOKENS))
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\n", "\r\n")
    file = tmp_path / "vocab.txt"
    file.write_bytes(text.encode())
    ours = read_vocabulary(file, True)
    run = find_vocabulary(file, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "saved")
    ids = theirs.get_vocab()
    assert {token: ours.ids[token] for token in (*SPECIAL_TOKENS, "a", "b")} == {
        token: ids[token] for token in (*SPECIAL_TOKENS, "a", "b")
    }
    assert run.tokens == ours.tokens and run.sha256 == ours.sha256
    assert run.files()["vocab.txt"].encode() == file.read_bytes()
    assert fingerprint_of(tmp_path) == fingerprint_of(tmp_path / "saved") == ours.sha256


def test_a_byte_order_mark_is_read_and_not_kept(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "\n".join([*SPECIAL_TOKENS, "a"]).encode())
    assert read_vocabulary(file, True).tokens[0] == "[PAD]"
    assert find_vocabulary(file, tmp_path).files()["vocab.txt"].startswith("[PAD]\n")
