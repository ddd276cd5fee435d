"""Articles of a MediaWiki XML dump as plain paragraphs; the markup is parsed by mwparserfromhell.

What the parser would throw away anyway (comments, references, templates) is cut out first: parsing costs a second a
megabyte, cutting a hundredth of that. Headings, lists and tables are left out: they hold no running sentences.
"""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

import mwparserfromhell
from mwparserfromhell import nodes

from pretraining.data.sources import Piece

# A comment or reference ends at its mark; a search for one left open stops at the next: pages are strangers' text.
_COMMENT = re.compile(r"<!--(?:(?!<!--|-->).)*-->", re.DOTALL)
_REFERENCE = re.compile(r"<ref\b[^<>]*?/>|<ref\b[^<>]*>(?:(?!</?ref\b).)*</ref\s*>", re.DOTALL | re.IGNORECASE)
_INNERMOST_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
DEEPEST_TEMPLATE = 40
# Brackets of a kind, or tags: the parser's time grows with their square, and a page with more is damaged.
MOST_UNCLOSED = 1000
_OPENING_TAG = re.compile(r"<(?!br\b|hr\b)[a-z][^<>]*(?<!/)>", re.IGNORECASE)
# Elements whose content is no text of the article.
_DROPPED_TAGS = frozenset(
    "table ref references gallery math chem ce timeline imagemap score source syntaxhighlight graph hiero templatedata"
    " inputbox categorytree pre code hr".split()
)
_LIST_TAGS = frozenset(("li", "dd", "dt"))
# Links that are pictures, categories or other projects, in the larger languages; [[de:Name]] is another language.
_DROPPED_LINK = re.compile(
    r"\s*(?:File|Image|Media|Category|Datei|Bild|Kategorie|Fichier|Catégorie|Archivo|Imagen|Categoría|Immagine|Categoria"
    r"|Ficheiro|Bestand|Afbeelding|Categorie|Plik|Grafika|Kategoria|Файл|Изображение|Категория|ファイル|画像|文件|Wikt"
    r"|Wiktionary|Commons|[a-z]{2,3}|[a-z]{2}-[a-z]+|simple)\s*:.*",
    re.DOTALL | re.IGNORECASE,
)
_FILE_NAME = re.compile(r".*\.(?:jpe?g|png|gif|svg|tiff?|ogg|ogv|webm|webp|djvu|pdf)\s*", re.DOTALL | re.IGNORECASE)
_QUOTE_MARKS = re.compile(r"'{2,}")
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_EMPTY_BRACKETS = re.compile(r" ?\(\s*(?:[,;:–-]\s*)*\)")
_AFTER_BRACKET = re.compile(r"\(\s*(?:[,;]\s*)+")
_NO_SENTENCE = ("*", "#", ":", ";", "|", "!", "{", "}", "=")


def articles(piece: Piece, notes: list[str]) -> Iterator[str]:
    """Text of each article, a paragraph a line; redirects, other name spaces and damaged pages are left out."""
    line = piece.first_line
    chunks = piece.data.split(b"</page>")
    for number, chunk in enumerate(chunks):
        start = chunk.find(b"<page>")
        at = line + chunk.count(b"\n", 0, max(start, 0))
        line += chunk.count(b"\n")
        if start < 0:
            continue  # the head or the tail of the dump
        if number == len(chunks) - 1:
            notes.append(f"{piece.source}:{at}: the last page is cut off; left out")
            continue
        try:
            page = ElementTree.fromstring(chunk[start:] + b"</page>")
        except ElementTree.ParseError as error:
            notes.append(f"{piece.source}:{at}: a page that is not well-formed XML ({error}); left out")
            continue
        text = page.findtext("revision/text") or ""
        if (
            page.findtext("ns", "0") != "0"
            or page.find("redirect") is not None
            or text.lstrip()[:9].upper() == "#REDIRECT"
        ):
            continue
        try:
            plain = plain_text(text)
        except ValueError as error:
            notes.append(f"{piece.source}:{at}: {error}; page left out")
            continue
        if plain:
            yield plain


def plain_text(wikitext: str) -> str:
    """The paragraphs of an article, one a line; ValueError when its markup cannot be parsed."""
    markup = _cut(wikitext)
    unclosed = {f"brackets {a}": markup.count(a) - markup.count(b) for a, b in ("{}", "[]", "<>")}
    unclosed["tags"] = len(_OPENING_TAG.findall(markup)) - markup.count("</")
    what, count = max(unclosed.items(), key=lambda item: item[1])
    if count > MOST_UNCLOSED:
        raise ValueError(f"{count} {what} that nothing closes")
    try:
        text = _text_of(mwparserfromhell.parse(markup, skip_style_tags=True))
    except (mwparserfromhell.parser.ParserError, RecursionError) as error:
        raise ValueError(f"markup too deep ({type(error).__name__})") from error
    paragraphs = (_tidy(line) for line in text.split("\n") if not line.startswith(_NO_SENTENCE))
    return "\n".join(paragraph for paragraph in paragraphs if any(map(str.isalpha, paragraph)))


def _cut(wikitext: str) -> str:
    """Without comments, references and templates, innermost first."""
    text = _REFERENCE.sub("", _COMMENT.sub("", wikitext))
    for _ in range(DEEPEST_TEMPLATE):
        text, count = _INNERMOST_TEMPLATE.subn("", text)
        if not count:
            break
    return text


def _text_of(code: mwparserfromhell.wikicode.Wikicode) -> str:
    return "".join(_text_of_node(node) for node in code.nodes)


def _text_of_node(node: nodes.Node) -> str:
    if isinstance(node, nodes.Text):
        return node.value
    if isinstance(node, nodes.Wikilink):
        return _link_text(node)
    if isinstance(node, nodes.ExternalLink):
        return _text_of(node.title) if node.title is not None else ""
    if isinstance(node, nodes.HTMLEntity):
        return node.normalize()
    if isinstance(node, nodes.Tag):
        name = str(node.tag).strip().lower()
        if name == "br":
            return " "
        if name in _LIST_TAGS and node.wiki_markup:
            return str(node.wiki_markup)  # the mark stays, so that the line is known to be a list's
        return "" if name in _DROPPED_TAGS or node.contents is None else _text_of(node.contents)
    return "\n" if isinstance(node, nodes.Heading) else ""  # templates, arguments and comments say nothing


def _link_text(link: nodes.Wikilink) -> str:
    title = str(link.title)
    if _DROPPED_LINK.fullmatch(title) or _FILE_NAME.fullmatch(title):
        return ""
    return _text_of(link.text) if link.text is not None else title.lstrip(":")


def _tidy(paragraph: str) -> str:
    """Without quote marks for bold, and without the brackets that templates have left empty."""
    text = _MAGIC_WORD.sub("", _QUOTE_MARKS.sub("", paragraph))
    return " ".join(_AFTER_BRACKET.sub("(", _EMPTY_BRACKETS.sub("", text)).split())
