"""MediaWiki dumps: what becomes of markup, of a real dump, of damaged ones, and a fuzz run."""

import bz2
import random
from collections import Counter

import mwparserfromhell
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.data import wikidump
from pretraining.data.documents import TextSettings, canonical_text
from pretraining.data.sources import DUMP, Batch, Piece, batches, find_sources
from pretraining.data.wikidump import articles, plain_text

HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">\n<siteinfo></siteinfo>\n'
PAGE = (
    "<page>\n<title>{title}</title>\n<ns>{ns}</ns>\n<id>1</id>{redirect}\n<revision>\n"
    '<text xml:space="preserve">{text}</text>\n</revision>\n</page>\n'
)


def page(text: str, title: str = "T", ns: int = 0, redirect: str = "") -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return PAGE.format(title=title, ns=ns, redirect=redirect, text=escaped)


def read(xml: str) -> tuple[list[str], list[str]]:
    notes = []
    return list(articles(Piece("d.xml", DUMP, 1, xml.encode()), notes)), notes


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("'''Bold''' and ''italic'' [[link]] and [[Target|shown]].", "Bold and italic link and shown."),
        ("A {{template|with {{inner}} one}}fact.<ref name=x>Ref {{cite}}</ref> More.<ref name=x />", "A fact. More."),
        ("[[File:A.jpg|thumb|A [[linked]] caption]]Text.", "Text."),
        ("[[Datei:A.jpg|mini|Bild]]Text.[[Kategorie:X]] [[de:Name]]", "Text."),
        ("[[:Category:Shown]] and [[Star Trek: Voyager]].", "Category:Shown and Star Trek: Voyager."),
        ("{| class=x\n| cell\n|}\nAfter.", "After."),
        ("== Heading ==\nText.\n* item\n# item\n: indent", "Text."),
        ("[http://x.org shown] and [http://x.org] end.", "shown and end."),
        ("a &amp; b &ndash; c<br/>d<!-- hidden -->.", "a & b – c d."),
        ("<math>x^2</math>Name ({{lang|x}}; 1900) was.", "Name (1900) was."),
        ("Name ({{lang|x}}, {{y}}) was.__NOTOC__", "Name was."),
        ("<div class=x>kept <b>text</b></div><gallery>\nA.jpg\n</gallery>", "kept text"),
        ("<ref>never closed. Text <ref name=x>closed</ref>goes on.", "<ref>never closed. Text goes on."),
        ("", ""),
        ("{{only}}", ""),
    ],
)
def test_markup(wikitext, expected):
    assert plain_text(wikitext) == expected


def test_only_articles():
    xml = HEAD + page("One.") + page("Talk.", ns=1) + page("x", redirect='<redirect title="Y" />')
    xml += page("#redirect [[Y]]") + page("{{x}}") + page("Two.\n\nThree.") + "</mediawiki>\n"
    assert read(xml) == (["One.", "Two.\nThree."], [])


def test_a_damaged_page_costs_that_page_only():
    xml = HEAD + page("One.") + "<page><title>x</page>\n" + page("Two.") + "</mediawiki>"
    found, notes = read(xml)
    assert found == ["One.", "Two."]
    line = xml[: xml.index("<page><title>x")].count("\n") + 1
    assert len(notes) == 1 and notes[0].startswith(f"d.xml:{line}: a page that is not well-formed")


def test_a_cut_off_page_is_named():
    found, notes = read(HEAD + page("One.") + page("Two.")[:80])
    assert found == ["One."] and "the last page is cut off" in notes[0]


@pytest.fixture(scope="module")
def dump(shared_data):
    (path,) = (shared_data / "wiki").glob("*.bz2")
    return path


@pytest.fixture(scope="module")
def wikitexts(dump) -> list[str]:
    import html
    import re

    xml = bz2.decompress(dump.read_bytes()).decode()
    texts = map(html.unescape, re.findall(r"<text[^>]*>(.*?)</text>", xml, re.DOTALL))
    return [text for text in texts if not text.startswith("#")]


def test_a_real_dump(dump):
    found = find_sources([str(dump)], False)
    assert found[0].kind == DUMP
    text, notes = "", []
    for batch in batches(found, None):
        canonical = canonical_text(batch, TextSettings())
        text, notes = text + canonical.text, [*notes, *canonical.notes]
    documents = [document for document in text.split("\n\n") if document]
    assert 100 <= len(documents) <= 106 and notes == []  # a page of lists has no text
    assert documents[0].startswith("Anarchism is a political philosophy that advocates self-governed societies")
    words = text.split()
    marks = sum(any(mark in word for mark in ("[[", "]]", "{{", "}}", "'''", "<ref", "|")) for word in words)
    assert len(words) > 400_000 and marks < 100


def test_cutting_first_changes_few_words(wikitexts, monkeypatch):
    """The words left equal those of a parse of the whole markup, 99 in 100."""
    chosen = wikitexts[::9]
    fast = Counter(word for text in chosen for word in plain_text(text).split())
    monkeypatch.setattr(wikidump, "_cut", lambda text: text)
    whole = Counter(word for text in chosen for word in plain_text(text).split())
    assert sum((fast & whole).values()) >= 0.99 * max(sum(fast.values()), sum(whole.values()))


def test_words_are_among_those_the_parser_shows(wikitexts):
    """An independent way: everything mwparserfromhell shows of the page."""
    text = wikitexts[3]
    shown = Counter(mwparserfromhell.parse(text).strip_code().replace("'", "").split())
    ours = Counter(plain_text(text).replace("'", "").split())
    assert sum((ours & shown).values()) >= 0.98 * sum(ours.values())


def test_a_dump_cut_off_in_the_middle(dump, tmp_path):
    packed = dump.read_bytes()
    (tmp_path / "dump.xml.bz2").write_bytes(packed[: len(packed) // 2])
    text, notes = "", []
    for batch in batches(find_sources([str(tmp_path)], False), None):
        canonical = canonical_text(batch, TextSettings())
        text, notes = text + canonical.text, [*notes, *canonical.notes]
    assert 20 < text.count("\n\n") < 106
    assert any("dump.xml.bz2: damaged after" in note for note in notes)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("[]{}|='<>/!-# \nabréf:*&;"), max_size=120))
def test_any_markup_gives_lines_of_text(wikitext):
    for line in plain_text(wikitext).split("\n"):
        assert line == " ".join(line.split())


@pytest.mark.parametrize("seed", range(40))
def test_fuzzed_dumps_never_stop_the_run(seed):
    """Bytes changed, cut and doubled anywhere: pages that are still whole are read, the rest is named."""
    rng = random.Random(seed)
    pages = [page(f"Sentence number {n}.", title=str(n)) for n in range(30)]
    data = bytearray((HEAD + "".join(pages) + "</mediawiki>").encode())
    for _ in range(rng.randint(1, 6)):
        at, length = rng.randrange(len(data)), rng.randint(1, 40)
        change = rng.choice(("cut", "noise", "double"))
        if change == "cut":
            del data[at : at + length]
        elif change == "noise":
            data[at : at + length] = rng.randbytes(length)
        else:
            data[at:at] = data[at : at + length]
    notes = []
    found = list(articles(Piece("d.xml", DUMP, 1, bytes(data)), notes))
    whole = sum(part.encode() in data for part in pages)
    assert len(found) >= whole - 6  # a page that lost its closing tag takes the next with it
    assert all(note.startswith("d.xml:") for note in notes)


@pytest.mark.parametrize(
    "markup", ["{{{a|", "{{a|", "[http://a ", "[[a|", "<a b=", "{|\na\n", "<div>", "<ref>a", "<!--a"]
)
def test_brackets_that_nothing_closes_cost_their_page(markup):
    """The parser would take hours over some of these."""
    found, notes = read(HEAD + page("One.") + page(markup * 20_000) + page("Two."))
    assert found == ["One.", "Two."] and len(notes) == 1
    assert notes[0].startswith("d.xml:11: ") and notes[0].endswith(" that nothing closes; page left out")


def test_breaks_need_no_closing():
    assert plain_text("line<br>" * 3000) == " ".join(["line"] * 3000)


def test_deep_markup_does_not_overflow():
    found, notes = read(HEAD + page("{{a" * 3000 + "}}" * 3000 + "\nTwo.") + page("<i>" * 3000 + "x" + "</i>" * 3000))
    assert "Two." in found and len(found) + len(notes) == 2


def test_half_a_character_spelled_in_a_dump():
    piece = Piece("d.xml", DUMP, 1, (HEAD + page("half a character: &#xD83D;.")).encode())
    assert canonical_text(Batch(0, (piece,), 0), TextSettings()).text == "half a character: .\n\n"
