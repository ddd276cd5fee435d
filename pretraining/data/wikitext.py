"""Wiki markup to plain paragraphs; the markup is parsed by mwparserfromhell.

Comments, references and templates are read before: parsing costs a second a megabyte, cutting a hundredth of that.
Headings, lists and tables are left out: they hold no running sentences. Where words are lost (a formula, a template
that is not known) HOLE stands, and `documents.py` leaves the sentence out.
"""

import re
from functools import partial

import mwparserfromhell
from mwparserfromhell import nodes

from pretraining.data.blanks import HOLE
from pretraining.data.wiki_names import NO_WIKI, Wiki
from pretraining.data.wiki_templates import template_words

# A comment or reference ends at its mark; a search for one left open stops at the next: pages are strangers' text.
_COMMENT = re.compile(r"<!--(?:(?!<!--|-->).)*-->", re.DOTALL)
_REFERENCE = re.compile(r"<ref\b[^<>]*?/>|<ref\b[^<>]*>(?:(?!</?ref\b).)*</ref\s*>", re.DOTALL | re.IGNORECASE)
_FORMULA = re.compile(r"<(math|chem|ce)\b[^<>]*>((?:(?!</?\1\b).)*)</\1\s*>", re.DOTALL | re.IGNORECASE)
_PLAIN_FORMULA = re.compile(r"[A-Za-z0-9 .,+=()<>/-]{1,60}")
_INNERMOST_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
DEEPEST_TEMPLATE = 40
# Brackets of a kind, or tags: the parser's time grows with their square, and a page with more is damaged.
MOST_UNCLOSED = 1000
_OPENING_TAG = re.compile(r"<(?!br\b|hr\b)[a-z][^<>]*(?<!/)>", re.IGNORECASE)
# Elements whose content is no text of the article, and those that leave a hole in a sentence.
_DROPPED_TAGS = frozenset(
    "table tr td th caption tbody thead tfoot ref references gallery timeline imagemap score graph templatedata"
    " inputbox categorytree pre hr style script indicator templatestyles mapframe".split()
)
_LOST_TAGS = frozenset(("math", "chem", "ce", "hiero"))
_CODE_BLOCKS = frozenset(("source", "syntaxhighlight"))
_LIST_TAGS = frozenset(("li", "dd", "dt"))
_FILE_NAME = re.compile(r".*\.(?:jpe?g|png|gif|svg|tiff?|ogg|ogv|webm|webp|djvu|pdf)\s*", re.DOTALL | re.IGNORECASE)
_MAGIC_WORD = re.compile(r"__[^\W\d_]+__")
_EMPTY_BRACKETS = re.compile(r" ?\(\s*(?:[,;:–-]\s*)*\)")
_AFTER_BRACKET = re.compile(r"\(\s*(?:[,;]\s*)+")
_LOST_BRACKETS = re.compile(rf" ?\([^()]*{HOLE}[^()]*\)")
_NO_SENTENCE = ("*", "#", ":", ";", "|", "!", "{", "}", "=")
_VARIANTS = re.compile(r"-\{((?:(?!-\{|\}-).)*)\}-", re.DOTALL)
# Which rule of a -{zh-hans:...; zh-hant:...}- serves whom, the nearest first.
_NEAR_VARIANTS = (("zh-hans", "zh-cn", "zh-sg", "zh-my"), ("zh-hant", "zh-tw", "zh-hk", "zh-mo"))
_QUOTES = re.compile(r"('{2,})")


def plain_text(wikitext: str, wiki: Wiki = NO_WIKI, variant: str | None = None) -> str:
    """The paragraphs of an article, one a line; ValueError when its markup cannot be parsed."""
    markup = _cut(_one_variant(wikitext, variant) if "-{" in wikitext else wikitext, wiki.language)
    unclosed = {f"brackets {a}": markup.count(a) - markup.count(b) for a, b in ("{}", "[]", "<>")}
    unclosed["tags"] = len(_OPENING_TAG.findall(markup)) - markup.count("</")
    what, count = max(unclosed.items(), key=lambda item: item[1])
    if count > MOST_UNCLOSED:
        raise ValueError(f"{count} {what} that nothing closes")
    try:
        text = _text_of(mwparserfromhell.parse(markup, skip_style_tags=True), wiki)
    except (mwparserfromhell.parser.ParserError, RecursionError) as error:
        raise ValueError(f"markup too deep ({type(error).__name__})") from error
    paragraphs = (_tidy(line) for line in text.split("\n") if not line.startswith(_NO_SENTENCE))
    return "\n".join(paragraph for paragraph in paragraphs if any(map(str.isalpha, paragraph)))


def _cut(wikitext: str, language: str) -> str:
    """Without comments and references, with the words of templates, innermost first."""
    text = _REFERENCE.sub("", _COMMENT.sub("", wikitext))
    text = _FORMULA.sub(lambda formula: formula[2] if _PLAIN_FORMULA.fullmatch(formula[2]) else formula[0], text)
    words = partial(_words_of_template, language=language)
    for _ in range(DEEPEST_TEMPLATE):
        text, count = _INNERMOST_TEMPLATE.subn(words, text)
        if not count:
            break
    return text


def _words_of_template(match: re.Match[str], language: str) -> str:
    said = template_words(match[0][2:-2], language)
    if said is not None:
        return said
    return "" if _is_beside_the_text(match) else HOLE


def _is_beside_the_text(match: re.Match[str]) -> bool:
    """Whether an unknown template stands where a sentence misses nothing: a box, a line of its own, a footnote."""
    text, start, end = match.string, match.start(), match.end()
    before, after = text[start - 1] if start else "\n", text[end] if end < len(text) else "\n"
    if "\n" in match[0] or before == "\n":
        return "\n" in match[0] or after != " "
    if before in " \t\xa0":  # a note at the end of a paragraph, or words
        return after == "\n" and text[:start].rstrip()[-1:] in (".", "!", "?")
    is_attached = not (before in "([|=\"'“„«–—-/" or before > "\u2e80" and before.isalpha())
    return is_attached and (after in " \n\t.,;:)]!?\"'”»<{")


def _one_variant(wikitext: str, variant: str | None) -> str:
    """Markup of language variants as one of them reads; -{zh-hans:...; zh-hant:...}- is such."""
    for _ in range(DEEPEST_TEMPLATE):
        wikitext, count = _VARIANTS.subn(partial(_variant_words, variant=variant), wikitext)
        if not count:
            break
    return wikitext


def _variant_words(match: re.Match[str], variant: str | None) -> str:
    flags, bar, words = match[1].partition("|")
    if not bar:
        flags, words = "", match[1]
    if {flag.strip() for flag in flags.split(";")} & {"H", "T", "-"}:  # rules for the rest of the page, its title
        return ""
    rules = {}
    for rule in re.split(r";(?=\s*(?:[a-z]{2,3}(?:-[a-z]+)*\s*:|$))", words):
        name, colon, said = rule.rpartition("=>")[2].partition(":")
        if colon and re.fullmatch(r"\s*[a-z]{2,3}(?:-[a-z]+)*\s*", name):
            rules[name.strip()] = said.strip()
    if not rules:
        return words
    chosen = variant or "zh-hans"
    family = next((family for family in _NEAR_VARIANTS if chosen in family), ())
    return next((rules[name] for name in (chosen, *family) if name in rules), next(iter(rules.values())))


def _text_of(code: mwparserfromhell.wikicode.Wikicode, wiki: Wiki) -> str:
    return "".join([_text_of_node(node, wiki) for node in code.nodes])


def _text_of_node(node: nodes.Node, wiki: Wiki) -> str:
    if isinstance(node, nodes.Text):
        return node.value
    if isinstance(node, nodes.Wikilink):
        return _link_text(node, wiki)
    if isinstance(node, nodes.ExternalLink):
        return _text_of(node.title, wiki) if node.title is not None else "" if node.brackets else str(node.url)
    if isinstance(node, nodes.HTMLEntity):
        return node.normalize()
    if isinstance(node, nodes.Tag):
        return _text_of_tag(node, wiki)
    return "\n" if isinstance(node, nodes.Heading) else ""  # templates, arguments and comments say nothing


def _text_of_tag(tag: nodes.Tag, wiki: Wiki) -> str:
    name = str(tag.tag).strip().lower()
    if name == "br":
        return " "
    if name in _LIST_TAGS and tag.wiki_markup:
        return str(tag.wiki_markup)  # the mark stays, so that the line is known to be a list's
    if name in _LOST_TAGS:
        return HOLE
    if name in _CODE_BLOCKS and not tag.has("inline"):
        return ""
    return "" if name in _DROPPED_TAGS or tag.contents is None else _text_of(tag.contents, wiki)


def _link_text(link: nodes.Wikilink, wiki: Wiki) -> str:
    title = str(link.title).strip()
    if wiki.hides(title) or _FILE_NAME.fullmatch(title) and ":" in title and not title.startswith(":"):
        return ""
    return _text_of(link.text, wiki) if link.text is not None else title.removeprefix(":")


def _tidy(paragraph: str) -> str:
    """Without marks of bold and italics, without brackets that templates have left empty or with words lost."""
    text = _MAGIC_WORD.sub("", _without_quotes(paragraph) if "''" in paragraph else paragraph)
    if HOLE in text:
        text = _LOST_BRACKETS.sub("", text)
        if text[1:2].isalpha():
            text = text.removeprefix(HOLE)  # a sign in front of a paragraph
    return " ".join(_AFTER_BRACKET.sub("(", _EMPTY_BRACKETS.sub("", text)).split())


def _without_quotes(line: str) -> str:
    """A line without '' and '''; apostrophes that belong to none stay, as MediaWiki reads them.

    Where a line has an odd number of both, MediaWiki takes one ''' for an apostrophe before ''. It looks at whole
    lines; here an apostrophe inside of a word (''Eagle'''s, l'''Aurore'') is told first.
    """
    parts = _QUOTES.split(line)  # text at even places, marks at odd ones
    sizes = []
    for place in range(1, len(parts), 2):
        size = len(parts[place])
        if size == 4 or size > 5:  # apostrophes, then bold (and italics)
            parts[place - 1] += "'" * (size - (3 if size == 4 else 5))
            size = 3 if size == 4 else 5
        sizes.append(size)
    italic = bold = False
    for number, size in enumerate(sizes):
        before, after = parts[2 * number][-1:], parts[2 * number + 2][:1]
        following = sizes[number + 1] if number + 1 < len(sizes) else 0
        inside_word = size == 3 and before.isalpha() and after.isalpha()
        if inside_word and not bold and (italic or following == 2):
            sizes[number] = size = 2
            parts[2 * number] += "'"
        italic ^= size in (2, 5)
        bold ^= size in (3, 5)
    if italic and bold:
        odd = _apostrophe(parts, sizes)
        if odd is not None:
            parts[2 * odd] += "'"
    return "".join(parts[::2])


def _apostrophe(parts: list[str], sizes: list[int]) -> int | None:
    """Which ''' is an apostrophe and '': after a word of one letter, else after a longer one, else after a blank."""
    ranks: dict[int, int] = {}
    for number, size in enumerate(sizes):
        if size == 3:
            before = parts[2 * number]
            rank = 2 if before.endswith(" ") else 0 if before[-2:-1] in ("", " ") else 1
            ranks.setdefault(rank, number)
    return ranks[min(ranks)] if ranks else None
