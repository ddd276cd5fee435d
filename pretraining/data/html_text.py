"""HTML to text: one decision a document, whether it is HTML; inline tags vanish, block tags end a line."""

import html
import re
from dataclasses import dataclass

_BLOCK = (
    "address article aside blockquote body br center dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5"
    " h6 head header hr html iframe li main nav noscript ol option p pre section select table tbody tfoot thead title"
    " tr ul"
).split()
_INLINE = (
    "a abbr acronym b bdi bdo big button cite code del dfn em font i img input ins kbd label link mark meta q ruby s"
    " samp small span strike strong sub sup td th time tt u var wbr"
).split()
TAGS = frozenset((*_BLOCK, *_INLINE, "script", "style", "template"))
_CELLS = ("td", "th", "img", "button", "option", "label", "input")  # words on both sides stay apart
_SWITCHES = (
    "async|defer|checked|disabled|nowrap|compact|noshade|hidden|selected|readonly|multiple|required|reversed|open"
)
_ATTRIBUTES = (
    rf"""(?:\s+(?:[\w:.-]+\s*=\s*(?:"[^"]{{0,2000}}"|'[^']{{0,2000}}'|[^\s"'<>]{{1,500}})|(?:{_SWITCHES})\b))*+"""
)
# A comment, what is not shown with its content, a tag. What is left open stops at the next of its kind: cheap.
_MARKUP = re.compile(
    r"<!--(?:(?!<!--|-->).)*-->|<!doctype\b[^<>]{0,200}>|<(script|style|template|rt|rp)\b[^<>]*>(?:(?!</?\1\b).)*</\1\s*>"
    rf"|<(/?)({'|'.join(sorted(_BLOCK + _INLINE, key=len, reverse=True))}|script|style){_ATTRIBUTES}\s*/?>",
    re.IGNORECASE | re.DOTALL,
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_BARE = re.compile(r"<(a|b|i|p|q|s|u)>", re.IGNORECASE)  # as List<A> and Map<I> have them too
_WHITE_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class PlainText:
    """Text without markup, how many tags it had, and the first of them."""

    text: str
    tags: int = 0
    first_tag: str = ""


def without_html(text: str, is_html: bool = False) -> PlainText:
    """Text without tags and with its entities decoded, should it have any; angle brackets that are no tag stay."""
    if "<" not in text and "&" not in text:
        return PlainText(text)
    match = _MARKUP.search(text) if "<" in text else None
    while match and _is_type_parameter(match, text):
        match = _MARKUP.search(text, match.end())
    if match is None:
        decoded = _decoded(text)
        if text.lstrip().startswith("&lt;") and text.rstrip().endswith("&gt;") and _MARKUP.match(decoded.lstrip()):
            return without_html(decoded, is_html)  # as feeds have it: HTML, escaped as a whole
        return PlainText(decoded)
    if is_html or text.lstrip().startswith("<") and text.rstrip().endswith(">"):
        text = _WHITE_SPACE.sub(" ", text)  # all of it is markup, where a line end is a blank
    count = 0

    def replacement(tag: re.Match[str]) -> str:
        nonlocal count
        if _is_type_parameter(tag, tag.string):
            return tag[0]
        count += 1
        name = (tag[3] or "").lower()
        return "\n" if name in _BLOCK else " " if name in _CELLS else ""

    return PlainText(_decoded(_MARKUP.sub(replacement, text)), count, match[0][:80])


def _is_type_parameter(tag: re.Match[str], text: str) -> bool:
    """Whether <A> or <b> is no tag: behind a word, or with nothing to close it."""
    if not _BARE.fullmatch(tag[0]):
        return False
    name = tag[3].lower()
    closed = f"</{name}>" in text or f"</{name.upper()}>" in text
    if name == "p":
        return text[tag.start() - 1 : tag.start()].isalnum() and not closed
    return not closed


def _decoded(text: str) -> str:
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text) if "&" in text else text
