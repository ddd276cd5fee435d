"""Sentence boundaries without anything to download: rules, one sentence a line as given, or pysbd where installed."""

import re
from collections.abc import Callable
from functools import partial

from central.runtime.exits import BadRequest

SPLITTERS = ("rules", "line", "pysbd")

# Abbreviations that are followed by more of the same sentence, without the period, lower-cased.
ABBREVIATIONS = {
    "en": "b c d fl r mr mrs ms dr prof rev fr sr jr st mt gen col lt capt sgt cmdr adm maj hon gov sen rep "
    "pres messrs mme mlle vs etc cf al e.g i.e viz ca approx no nos vol vols fig figs sec ch pp p art ed "
    "eds trans est dept univ assn bros jan feb mar apr jun jul aug sep sept oct nov dec a.m p.m u.s u.k "
    "u.n d.c b.c a.d ph.d inc ltd co corp",
    "de": "dr prof hr fr nr bd st str ca bzw usw z.b d.h u.a s.o s.u vgl ggf inkl jh jhd geb gest abs art aufl "
    "hrsg evtl jan feb mär apr jun jul aug sep okt nov dez o.ä v.a u.u i.d.r sog",
    "fr": "m mm mme mlle dr pr st ste av bd cf ex p pp vol no env etc art chap fig ch éd janv févr avr juil "
    "sept oct nov déc",
    "es": "sr sra srta dr dra d dña prof ud uds av avda c pág págs vol núm art cap fig etc ee.uu p.ej ej aprox",
    "it": "sig dott prof ing avv on s ss pag pagg vol art cap fig ecc es a.c d.c",
    "pt": "sr sra dr dra prof av pág págs vol núm art cap fig etc ex séc",
    "nl": "dhr mevr dr prof ir drs st nr blz vol art bijv enz d.w.z o.a m.b.t t.o.v ca",
}

ORDINAL_LANGUAGES = ("cs", "da", "de", "fi", "hu", "nb", "no", "sk", "sl", "tr")  # "am 5. Mai"

# The end of a sentence: marks with what closes a quotation, then white space (not needed after full-width marks).
# It is looked for at the first of several marks only, and marks stay together: a million periods must not take hours.
_BOUNDARY = re.compile(
    r"""(?<![.!?…؟۔।])[.!?…؟۔।]++["'”’»)\]]*+[ \t]++(?=\S)|(?<![。！？｡])[。！？｡]++["'”’»」』）)]*+[ \t]*+(?=\S)"""
)
_LAST_WORD = re.compile(r"""[^\s("'“‘«\[]*$""")
_OPENING = "\"'“‘«([¿¡-–— "


def sentence_splitter(name: str, language: str) -> Callable[[str], str]:
    """A function that puts each sentence of a text on a line of its own and leaves blank lines alone.

    BadRequest where pysbd is not installed or does not know the language; the rules serve any, see `language_note`.
    """
    if name == "line":
        return lambda text: text
    if name == "rules":
        words = ABBREVIATIONS.get(language, "")
        return partial(_split_by_rules, abbreviations=frozenset(words.split()), ordinals=language in ORDINAL_LANGUAGES)
    if name == "pysbd":
        return _pysbd(language)
    raise BadRequest(f"--sentences {name}: one of {', '.join(SPLITTERS)}")


def language_note(name: str, language: str) -> str | None:
    """What a user should know of a language whose abbreviations are not known."""
    if name != "rules" or language in ABBREVIATIONS:
        return None
    known = ", ".join(ABBREVIATIONS)
    return f"--language {language}: no abbreviations known for it (known: {known}); each is taken for a sentence's end"


def _split_by_rules(text: str, abbreviations: frozenset[str], ordinals: bool) -> str:
    pieces, start = [], 0
    for match in _BOUNDARY.finditer(text):
        if _ends_sentence(text, match, abbreviations, ordinals):
            pieces.append(text[start : match.end()].rstrip(" \t"))
            start = match.end()
    pieces.append(text[start:])
    return "\n".join(pieces)


def _ends_sentence(text: str, match: re.Match[str], abbreviations: frozenset[str], ordinals: bool) -> bool:
    """Not before a small letter; a period not after an abbreviation, an initial, or an ordinal number."""
    following = text[match.end() : match.end() + 8].lstrip(_OPENING)[:1]
    if following.islower():
        return False
    if text[match.start()] != "." or text.startswith("..", match.start()):
        return True
    word = _LAST_WORD.search(text, max(0, match.start() - 24), match.start())[0]
    if word.isdigit() and len(word) <= 2 and ordinals:
        return False
    return not (len(word) == 1 and word.isupper() or word.lower() in abbreviations)


def _pysbd(language: str) -> Callable[[str], str]:
    try:
        import pysbd
    except ImportError as error:
        raise BadRequest("--sentences pysbd: pip install pysbd, or use --sentences rules") from error
    try:
        segmenter = pysbd.Segmenter(language=language, clean=False)
    except ValueError as error:
        raise BadRequest(f"--language {language}: {error}") from error
    return lambda text: "\n".join(
        "\n".join(sentence.strip() for sentence in segmenter.segment(line)) if line.strip() else ""
        for line in text.split("\n")
    )
