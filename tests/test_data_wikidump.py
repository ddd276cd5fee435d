"""MediaWiki dumps: what becomes of markup, of a real dump, of damaged ones, and a fuzz run."""

import bz2
import html
import random
import re
from collections import Counter

import mwparserfromhell
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.data import wikitext as reader
from pretraining.data.blanks import HOLE
from pretraining.data.documents import TextSettings, canonical_text
from pretraining.data.formats import DUMP, FormSettings
from pretraining.data.sources import Batch, Notes, Piece, batches, find_sources
from pretraining.data.wiki_names import site_info
from pretraining.data.wikidump import articles
from pretraining.data.wikitext import plain_text

HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">\n<siteinfo></siteinfo>\n'
PAGE = (
    "<page>\n<title>{title}</title>\n<ns>{ns}</ns>\n<id>1</id>{redirect}\n<revision>\n"
    '<text xml:space="preserve">{text}</text>\n</revision>\n</page>\n'
)


def page(text: str, title: str = "T", ns: int = 0, redirect: str = "") -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return PAGE.format(title=title, ns=ns, redirect=redirect, text=escaped)


def read(xml: str) -> tuple[list[str], list[str]]:
    notes = Notes()
    return list(articles(Piece("d.xml", DUMP, 1, xml.encode()), notes)), notes


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("'''Bold''' and ''italic'' [[link]] and [[Target|shown]].", "Bold and italic link and shown."),
        ("A fact{{template|with {{inner}} one}}.<ref name=x>Ref {{cite}}</ref> More.<ref name=x />", "A fact. More."),
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
    xml = bz2.decompress(dump.read_bytes()).decode()
    texts = map(html.unescape, re.findall(r"<text[^>]*>(.*?)</text>", xml, re.DOTALL))
    return [text for text in texts if not text.startswith("#")]


def test_a_real_dump(dump):
    found = find_sources([str(dump)], FormSettings())
    assert found[0].kind == DUMP
    text, notes = "", []
    for batch in batches(found, None):
        canonical = canonical_text(batch, TextSettings())
        text, notes = text + canonical.text, [*notes, *canonical.notes]
    documents = [document for document in text.split("\n\n") if document]
    assert 100 <= len(documents) <= 106  # a page of lists has no text
    assert notes and all(re.search(r": \d\d? of \d+ sentences left out: a template or formula", note) for note in notes)
    assert HOLE not in text and "Category:" not in text
    assert documents[0].startswith("Anarchism is a political philosophy that advocates self-governed societies")
    words = text.split()
    marks = sum(any(mark in word for mark in ("[[", "]]", "{{", "}}", "'''", "<ref", "|")) for word in words)
    assert len(words) > 400_000 and marks < 100


def test_cutting_first_changes_few_words(wikitexts, monkeypatch):
    """The words left equal those of a parse of the whole markup, 99 in 100."""
    chosen = wikitexts[::9]
    fast = Counter(word for text in chosen for word in plain_text(text).split())
    monkeypatch.setattr(reader, "_cut", lambda text, language: text)
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
    for batch in batches(find_sources([str(tmp_path)], FormSettings()), None):
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
    notes = Notes()
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


def wiki_dump(names: dict[int, str], *wikitexts: str, language: str = "en") -> str:
    rows = "".join(f'<namespace key="{key}" case="first-letter">{name}</namespace>\n' for key, name in names.items())
    head = HEAD.replace("<siteinfo>", f"<siteinfo><namespaces>\n{rows}</namespaces>")
    return (
        head.replace("<mediawiki ", f'<mediawiki xml:lang="{language}" ')
        + "".join(map(page, wikitexts))
        + "</mediawiki>"
    )


def read_file(tmp_path, xml: str | bytes, **told) -> tuple[list[list[str]], list[str]]:
    """(documents as lists of sentences, notes) by the way of any file."""
    (tmp_path / "any.name").write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    text, notes = "", []
    for batch in batches(find_sources([str(tmp_path)], FormSettings()), None):
        canonical = canonical_text(batch, TextSettings(**told))
        text, notes = text + canonical.text, [*notes, *canonical.notes]
    return [document.split("\n") for document in text.split("\n\n") if document], notes


def names(extra: dict[int, str]) -> dict[int, str]:
    return {-2: "Media", 0: "", 6: "File", 14: "Category", **extra}


@pytest.mark.parametrize(
    ("file", "category"),
    [("Fil", "Kategori"), ("Αρχείο", "Κατηγορία"), ("Fitxer", "Categoria"), ("파일", "분류"), ("Tiedosto", "Luokka")],
)
def test_names_of_name_spaces_are_the_dumps_own(tmp_path, file, category):
    wikitext = f"One is. [[Page: Two|Two]] was.\n[[{file}:A B|mini|Caption]]\n\n[[{category.upper()}:X]] [[category:Y]]"
    found, notes = read_file(tmp_path, wiki_dump(names({6: file, 14: category}), wikitext))
    assert (found, notes) == ([["One is.", "Two was."]], [])


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("He starred in [[CSI: Miami]] and [[Ys: The Oath]].", "He starred in CSI: Miami and Ys: The Oath."),
        ("A word [[wikt:foo|foo]], in [[:de:Berlin|Berlin]].", "A word foo, in Berlin."),
        ("Text.[[zh-min-nan:X]] [[be-tarask:Y]] [[simple:Z]][[SV:Q]]", "Text."),
        ("[[Wikipedia:About|Us]] and [[Portal: Arts]].", "Us and Portal: Arts."),
    ],
)
def test_links_whose_title_has_a_colon(wikitext, expected):
    assert plain_text(wikitext, site_info(wiki_dump(names({}), "").encode())) == expected


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("At {{convert|1300|mi|km}}, it is long.", "At 1,300 miles, it is long."),
        ("From {{convert|1|to|2.5|km|mi|abbr=on}} of {{Convert|3|by|4|m}}.", "From 1 to 2.5 km of 3 by 4 metres."),
        ("A {{convert|6|ft|adj=on}} wall, {{convert|5|ft|10|in|cm}}.", "A 6-foot wall, 5 feet 10 inches."),
        ("{{convert|22|e6acre|km2}}, {{cvt|2|Moilbbl/d}}", "22 million acres, 2 million barrels of oil per day"),
        ("It is {{formatnum:10118}} and {{formatnum:-3.5}}&nbsp;°C.", "It is 10,118 and -3.5 °C."),
        ("Latin {{lang|la|aqua}}, {{lang-ru|вода}}, {{transl|ru|ISO|voda}}.", "Latin aqua, вода, voda."),
        ("Of {{nowrap|80 kg}}{{nbsp}}{{small|net}} {{as of|2009|lc=y}}.", "Of 80 kg net as of 2009."),
        ("Born {{date|1973-10-17}}, {{birth date|1932|4|4}}.", "Born 17 October 1973, April 4, 1932."),
        ("The {{nihongo|castle|城|shiro}} of {{circa|1900}}.", "The castle (城, shiro) of c. 1900."),
        ("Half {{frac|1|2}}, {{chem|H|2|O}}, {{US$|1300}}.", "Half 1⁄2, H2O, US$1,300."),
        ("He said:\n{{quote|To be. {{lang|fr|Oui}}!|Author}}\nSo.", "He said:\nTo be. Oui!\nSo."),
        ("Fact.{{cn|date=May}} It{{sfn|A|2001|p=3}} is {{citation needed|reason=[[a|b]]}} so.", "Fact. It is so."),
        ("Bold {{lang|fr|[[Paris|la ville]]}} and {{ill|Name|de|X}}.", "Bold la ville and Name."),
        ("Named {{lang|2=mot|1=fr}} {{flag|Kuwait}}.", "Named mot Kuwait."),
        ("The {{unknown|{{lang|fr|x}}}} is.", f"The {HOLE} is."),
        ("Unknown{{footnote like|x}}, then. {{Box\n|a=b}}\n{{line}}\nEnd.{{x}} Next.", "Unknown, then.\nEnd. Next."),
        ("Name (from {{unknown|x}}, a word) is {{convert|x|mi}}.", f"Name is {HOLE}."),
        (r"Value <math>x</math> of <math>\frac{a}{b}</math>.", f"Value x of {HOLE}."),
        ("The <code>if</code> of <syntaxhighlight lang=c inline>a;</syntaxhighlight>.", "The if of a;."),
        ("<pre>\nx = 1\n</pre>\nA.", "A."),
        ("<table><tr><td>cell</td><th>head</th></tr></table>A.", "A."),
        ("A.\n<tr><td>cell</td></tr>\nB.", "A.\nB."),
    ],
)
def test_templates_keep_their_words_or_leave_a_hole(wikitext, expected):
    assert plain_text(wikitext) == expected


def test_sentences_with_a_hole_are_left_out_and_counted(tmp_path):
    wikitext = "It has an area of {{unknown|1}} and is green. It is old. So {{foo|x}} says. End."
    found, notes = read_file(tmp_path, wiki_dump(names({}), wikitext))
    assert found == [["It is old.", "End."]]
    assert len(notes) == 1 and "any.name:1: 2 of 4 sentences left out: a template" in notes[0]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "''Eagle'''s stage and the ''Britannica'''s, '''b''', '''''c'''''.",
            "Eagle's stage and the Britannica's, b, c.",
        ),
        ("L'''Aurore'' et l'''Humanité'' et d'''Ormesson''.", "L'Aurore et l'Humanité et d'Ormesson."),
        ("'''a ''b'' c''' and ''d '''e''' f''.", "a b c and d e f."),
        ("un'''believ'''able, '''''x''y''' z", "unbelievable, xy z"),
        ("''''quoted'''' and ''''''six''''''", "'quoted' and 'six'"),
        ("The dogs' and ''the cats'' 'it'.", "The dogs' and the cats 'it'."),
        ("Odd '' one.", "Odd one."),
    ],
)
def test_apostrophes(line, expected):
    assert plain_text(line) == expected


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        (None, "是美国的计划，由布什。"),
        ("zh-hant", "是美國的計劃，由布什。"),
        ("zh-tw", "是臺灣的計劃，由布什。"),
        ("zh-sg", "是美国的计划，由布什。"),
    ],
)
def test_one_variant_of_a_language(tmp_path, variant, expected):
    wikitext = "-{H|zh-cn:a;zh-tw:b}-是-{zh-hans:美国; zh-hant:美國;zh-tw:臺灣;}-的"
    wikitext += "-{A|zh-hans:计划;zh-hant:計劃}-，由-{布什}-。-{T|zh:标题}-"
    found, _ = read_file(tmp_path, wiki_dump(names({}), wikitext, language="zh"), variant=variant)
    assert found == [[expected]]


def test_the_newest_revision_of_a_page(tmp_path):
    def revision(day: int, text: str) -> str:
        return f"<revision><timestamp>2021-05-{day:02}T04:33:27Z</timestamp><text>{text}</text></revision>"

    xml = HEAD + "<page><title>T</title><ns>0</ns>" + revision(2, "Old.") + revision(9, "New.") + revision(3, "Older.")
    assert read_file(tmp_path, xml + "</page>\n</mediawiki>")[0] == [["New."]]


def test_pages_without_the_number_of_their_name_space_and_foreign_redirects(tmp_path):
    pages = page("Talk is here.", title="Diskussion:T") + page("#WEITERLEITUNG [[Y]]") + page("One.")
    xml = wiki_dump({1: "Diskussion", 6: "Datei"}).replace("</mediawiki>", pages.replace("<ns>0</ns>\n", ""))
    assert read_file(tmp_path, xml)[0] == [["One."]]


def test_streams_of_a_dump(tmp_path):
    head, pages = wiki_dump(names({})).removesuffix("</mediawiki>"), [page(f"Page {n} is here.") for n in range(6)]
    parts = [head, pages[0] + pages[1], pages[2] + pages[3], pages[4] + pages[5], "</mediawiki>"]
    whole = b"".join(bz2.compress(part.encode()) for part in parts)
    expected = [[f"Page {n} is here."] for n in range(6)]
    assert read_file(tmp_path, whole) == (expected, [])
    found, notes = read_file(tmp_path, bz2.compress(parts[2].encode()))
    assert found == expected[2:4] and "does not name its name spaces" in notes[0]


def test_a_hole_is_no_mark_of_a_sentence(tmp_path):
    """Beside Greek, whose question mark a sign stands for meanwhile, and before a capital."""
    wikitext = "It operates a {{unknown|1}} gauge. By {{unknown|1}} Railways. Τι κάνεις; Καλά."
    found, notes = read_file(tmp_path, wiki_dump(names({}), wikitext))
    assert found == [["Τι κάνεις;", "Καλά."]] and "2 of 4 sentences left out" in notes[0]
