"""Sentence boundaries by rules, by lines, by pysbd."""

import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from central.runtime.exits import BadRequest
from pretraining.data.sentences import ABBREVIATIONS, has_wrapped_lines, language_note, sentence_splitter

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
    "de": [
        ["Das ist z.B. gut.", "Es kostet ca. 5 Euro."],
        ["Am 5. Mai kam er.", "Er wohnt in der Hauptstr. 5 in Bonn.", "Das kostet 3 Mio. Euro.", "Ja."],
        ["Viele Früchte, z. B. Äpfel, wachsen hier.", "Er kam mit u. a. Herrn Müller."],
        ["Das gilt i. d. R. Montags nicht.", "Siehe § 3 Abs. 2 und Nr. 5 dort."],
        ["Brot, Milch usw.", "Der Rest blieb liegen."],
        ["„Darf ich mitspielen?“, fragte sie.", "»Ja.«", "Dann ging er.", "„Nein.“", "Sie blieb."],
    ],
    "fr": [["« Tu viens ? »", "Il se tut.", "M. Dupont habite av. Foch.", "J.-J. Rousseau lit."]],
    "ru": [["Это было в 1812 г.", "Он ушёл."], ["Города, т. е. Москва и др. места, растут.", "Да."]],
    "zh": [
        ["今天下雨。", "明天晴！", "好吗？"],
        ["他说：「好。」"],
        ["真的吗？？", "是。。。"],
        ["“你好！”他说。", "“真的？”小明高兴地问道：“是吗？”", "“是。”", "我们去公园。"],
    ],
    "ja": [
        ["「行こう。」と彼は言った。", "雨だ。"],
        ["「だめ！」って叫んだ。", "「いいよ。」", "そして帰った。", "「うん。」", "もう遅い。"],
        ["値は３．５です。", "次へ。"],
    ],
    "hi": [["यह एक वाक्य है।", "यह दूसरा है।"], ["डॉ. राम आए।", "ए. पी. जे. अब्दुल कलाम आए।"]],
    "ar": [["ما هذا؟", "هذا كتاب."]],
    "am": [["መጽሐፉ ተጠናቋል።", "ችግር አለ፡፡", "እሱ አልተፈታም::", "ምን ነው፧", "ደህና።"]],
    "hy": [["Բարեւ ձեզ։", "Ինչպես եք:", "Լավ։"]],
    "el": [["Τι κάνεις;", "Είμαι καλά.", "Πού πας;", "Σπίτι."]],
    "my": [["ဒါက စာအုပ်ပါ။", "ဟုတ်ကဲ့၊ ကောင်းပါတယ်။"]],
    "km": [["នេះជាសៀវភៅ។", "ល្អណាស់។"]],
    "bo": [["བཀྲ་ཤིས་བདེ་ལེགས།", "ཁྱེད་རང་སྐུ་གཟུགས།"]],
    "ur": [["یہ کتاب ہے۔", "کیا حال ہے؟", "ٹھیک ہے۔"]],
    "xx": [["Unknown language.", "Two sentences."], ["Vitamin C is good.", "At 5 p.m. it closed."]],
}
CASES["en"] += [
    ["The answer is no.", "He left at 5 p.m.", "She stayed (see Fig. 3).", "No. 5 is alive."],
    ["Peter Pan is a J. M. Barrie play.", "Visit the U.S. Army.", "It cost $5.50.", "OK...", "Fine."],
    ["She lives in the U.S.", "She likes it.", "So did I.", "We all did."],
    ["“Really?!”", "‘Yes.’", "It is (or was.)", "He loves art.", "Art. 3 says so.", "In Sept. 1999 he came."],
    ["Wait . . . what?", "Stop! ! !", "Is it; or is it not?", "Note: this::that; or.", "Yes."],
]


@pytest.mark.parametrize(("language", "sentences"), [(lang, case) for lang, cases in CASES.items() for case in cases])
def test_cases(language, sentences):
    between = "" if language in ("zh", "ja") else " "
    assert sentence_splitter("rules", language)(between.join(sentences)).split("\n") == sentences


def test_any_blank_after_a_mark():
    for blank in " \t\xa0\u2003\u3000\u202f":
        assert sentence_splitter("rules", "en")(f"One.{blank}Two.{blank}{blank}Three.").split("\n") == (
            ["One.", "Two.", "Three."]
        )


def test_the_marks_are_unicodes():
    """Sentence_Terminal by a library that has Unicode's tables, but a comma and a dot that leads a line."""
    regex = pytest.importorskip("regex")
    split = sentence_splitter("rules", "en")
    terminal = regex.compile(r"\p{Sentence_Terminal}")
    marks = [chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000 and terminal.match(chr(code))]
    assert len(marks) > 130
    lost = [mark for mark in marks if split(f"Aa bb{mark} Cc dd.") != f"Aa bb{mark}\nCc dd."]
    assert lost == ["\u104a", "\u2024"]


SENTENCES = (
    "The old man J. K. Rowland lived by the sea for Mr. Smith.",
    "He had no. 5 painted on his boat!",
    '"Where are you going?" he asked her.',
    "She said that it was 3.5 miles to the u.s. border, so did I.",
    "We all went home at 5 p.m. and slept...",
    "Was it raining?",
    "Nobody knows.",
)


def test_a_text_without_capitals_is_split_at_every_mark():
    split = sentence_splitter("rules", "en")
    lower = [sentence.lower() for sentence in SENTENCES]
    document = " ".join(lower[:4] + lower[5:])  # an ellipsis before a small letter may be inside of a sentence
    assert split(document).split("\n") == lower[:4] + lower[5:]
    with_capitals = " ".join(SENTENCES[:4] + SENTENCES[5:])
    # Told for each document, whatever stands beside it; one capital in a long text is a name.
    both = split(f"{with_capitals}\n\n{document}\n\n{with_capitals}").split("\n")
    assert both == [*SENTENCES[:4], *SENTENCES[5:], "", *lower[:4], *lower[5:], "", *SENTENCES[:4], *SENTENCES[5:]]
    assert split(f"{document} " * 3 + "The CEO of IBM, I. B. M., went. yes.").count("\n") == 3 * 6 + 1


def test_a_text_without_capitals_in_other_scripts():
    for text in ("он ушёл. она осталась. дождь шёл.", "ήρθε ο νίκος. τι κάνεις; είμαι καλά."):
        assert sentence_splitter("rules", "ru")(text).count("\n") == 2


def test_a_small_letter_after_a_mark_goes_on_where_there_are_capitals():
    text = "The Foo Corp. of London (est. 1900) was sold. Then approx. five men left. The band Wham! was good."
    assert sentence_splitter("rules", "en")(text).count("\n") == 2


def test_a_language_without_marks_is_said():
    assert "--language th: Thai has no mark that ends a sentence" in language_note("rules", "th")
    assert language_note("line", "th") is None


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


PROSE = (
    "The road went down to the river and nobody had mended it since the flood. A boat lay there, half full of rain. "
    "She had known for some time that her brother would not come back before the winter, yet she went every evening, "
    "when the work in the kitchen was done, to look for him. Once a stranger asked the way. It was a cold spring. The "
    "letters that he had promised, and which the whole house had waited for so impatiently, came only in the summer, "
    "all of them together, in a bag that smelled of salt; they were read aloud at the table. Nobody laughed. "
)
GERMAN = (
    "Die Straße führte hinunter zum Fluss, und seit der Überschwemmung hatte sie niemand ausgebessert. Dort lag ein "
    "Boot, halb voll Regenwasser. Sie wusste schon lange, dass ihr Bruder vor dem Winter nicht zurückkommen würde, und "
    "doch ging sie jeden Abend, wenn die Küchenarbeit getan war, hinaus, um nach ihm zu sehen. Es war kalt. "
)
CHINESE = (
    "这条路一直通到河边，自从发大水以后就没有人修过。那里有一条船，里面积了半船雨水。"
    "她早就知道哥哥冬天以前不会回来，可是每天晚上还是去看。"
)


def wrapped(text: str, width: int, paragraphs: int = 12, indent: str = "", between: str = "\n\n") -> str:
    """Paragraphs of several sentences, each begun elsewhere in the text."""
    shifts = (text[text.find(" ", 23 * number % len(text) // 2) :] + text for number in range(paragraphs))
    return between.join(textwrap.fill(shifted.strip(), width, initial_indent=indent) for shifted in shifts)


@pytest.mark.parametrize("width", [38, 60, 65, 72, 80, 100, 150])
@pytest.mark.parametrize("text", [PROSE, GERMAN, PROSE.lower().replace(".", "").replace(",", "")])
def test_wrapped_lines_are_seen(text, width):
    assert has_wrapped_lines(wrapped(text, width))
    assert has_wrapped_lines(wrapped(text, width, indent="    ", between="\n"))  # paragraphs without blank lines
    assert has_wrapped_lines("CONTENTS\n\nI. The road\nII. The boat\n\n" + wrapped(text, width))


def test_wrapped_lines_without_blanks_are_seen():
    text = CHINESE * 20
    assert has_wrapped_lines("\n".join(text[start : start + 36] for start in range(0, len(text), 36)))


SENTENCES = [sentence.strip() + "." for sentence in PROSE.split(". ") if sentence.strip()]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(SENTENCES * 20),  # a sentence a line
        "\n".join(sentence.strip(".").lower() for sentence in SENTENCES * 20),  # without marks
        "\n".join(f"She saw the boat {number:02} at the same place again." for number in range(40)),  # all as long
        "\n\n".join([PROSE.strip()] * 20),  # a paragraph a line
        "\n".join([PROSE.strip()] * 20),
        "\n".join(PROSE.split() * 4),  # a word a line
        "\n".join(f"{name.title()}, a town in the north of the country" for name in PROSE.split()),  # a list
        "\n".join([*CHINESE.replace("。", "。\n").split("\n")] * 9),
        wrapped(PROSE, 72, paragraphs=1)[:400],  # too short to tell
        "",
    ],
)
def test_lines_that_are_not_wrapped(text):
    assert not has_wrapped_lines(text)
