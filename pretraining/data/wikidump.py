"""Articles of a MediaWiki XML dump as plain paragraphs."""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from pretraining.data.sources import Notes, Piece
from pretraining.data.wiki_names import NO_WIKI, Wiki
from pretraining.data.wikitext import plain_text

_REDIRECT = re.compile(r"\s*#[^\W\d_]+\s*:?\s*\[\[")  # in any language


def articles(piece: Piece, notes: Notes, variant: str | None = None) -> Iterator[str]:
    """Text of each article, a paragraph a line; redirects, other name spaces and damaged pages are left out."""
    line, wiki = piece.first_line, piece.wiki or NO_WIKI
    chunks = piece.data.split(b"</page>")
    for number, chunk in enumerate(chunks):
        start = chunk.find(b"<page>")
        at = line + chunk.count(b"\n", 0, max(start, 0))
        line += chunk.count(b"\n")
        if start < 0:
            continue  # the head or the tail of the dump
        if number == len(chunks) - 1:
            notes.leave_out(1, f"{piece.source}:{at}: the last page is cut off; left out")
            continue
        try:
            page = ElementTree.fromstring(chunk[start:] + b"</page>")
        except ElementTree.ParseError as error:
            notes.leave_out(1, f"{piece.source}:{at}: a page that is not well-formed XML ({error}); left out")
            continue
        text = _article(page, wiki)
        try:
            plain = plain_text(text, wiki, variant) if text else ""
        except ValueError as error:
            notes.leave_out(1, f"{piece.source}:{at}: {error}; page left out")
            continue
        if plain:
            yield plain


def _article(page: ElementTree.Element, wiki: Wiki) -> str:
    """The markup of the newest revision; none of a redirect, of another name space, of what is no wiki markup."""
    is_article = (
        page.findtext("ns") == "0" if page.find("ns") is not None else wiki.is_article(page.findtext("title", ""))
    )
    if not is_article or page.find("redirect") is not None:
        return ""
    revisions = page.findall("revision")
    newest = max(revisions, key=lambda revision: revision.findtext("timestamp", ""), default=None)
    if newest is None or newest.findtext("model", "wikitext") != "wikitext":
        return ""
    text = newest.findtext("text") or ""
    return "" if _REDIRECT.match(text) else text
