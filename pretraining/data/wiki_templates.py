"""What a template of a wiki says in running text: its words, nothing, or words that are not known here.

A dump holds the calls of templates only; what they say is a program of the wiki. The commonest of a large dump are told
here; where another one stands inside of a sentence it leaves HOLE, and the sentence is left out.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pretraining.data.blanks import HOLE

# Notes and marks of authors: readers of the text see a footnote, or nothing.
_SILENT = re.compile(
    r"cit(?:e|ation)\b.*|cn|fact|c?sfn\w*|harv.*|wayback|r|ref\w*|efn\w*|rp|note\w*|dead link.*|clarif.*|or|sic|fix"
    r"|specify|audio|listen|(?:when|who|by whom|whom|which|what|why|how|where|page|examples?)\W*|(?:.+ )?needed(?: .+)?"
    r"|(?:dubious|vague|disputed|verify|better source|original research|pov|weasel|peacock|according to|relevance).*"
    r"|(?:self-published|unreliable|contradict|elucidate|update|more citations|unreferenced|toc|hidden|pp-).*"
    r"|ambiguous|failed verification|anchors?|flag ?icon\w*|flagdeco|coord\w*|use (?:dmy|mdy|\w+ english).*"
    r"|pages? numbers?.*|defaultsort|displaytitle|clear|hsp?|zwn?j|zwsp|shy|wbr"
    r"|(?:référence|réf|ref|sourcen|belege|quelle|источник|нет аи|来源请求|要出典).*"
    r"|cita requerida|citazione necessaria|carece de fontes|bron\?"
)
# Signs that stand for themselves.
_SIGNS = {
    **dict.fromkeys(("·", "dot", "middot"), " · "),
    **dict.fromkeys(("•", "bullet"), " • "),
    **dict.fromkeys(("nbsp", "spaces", "space", "sp", "thinsp"), " "),
    **dict.fromkeys(("ndash", "snd", "spaced ndash", "snds", "spnd", "en dash", "–"), " – "),
    **dict.fromkeys(("mdash", "mdashb", "em dash", "—", "spaced mdash"), " — "),
    **{"'": "'", "apostrophe": "'", "'s": "'s", "`": "`", "=": "=", "!": "|", '-"': '"', '"-': '"', "eqm": "⇌"},
    **{"pi": "π", "sharp": "♯", "flat": "♭", "ier": "Ier", "1er": "1er"},
}
# Templates that show one of their arguments, by its number.
_SHOWN_ARGUMENT = dict.fromkeys(
    "nowrap nobr nobreak nobold noitalic normal small smaller smalldiv big bigger large larger sub sup em strong bold"
    " italic mono code samp var kbd key keypress sc smallcaps vanchor abbr tooltip typo ill flag flagu flagcountry"
    " flaglink nts ntsh center unicode polytonic hebrew ipa math mvar overline underline tt nihongo2 linktext ruby ルビ"
    " lien emphase petit w nombre num fmtn chem2 visible_anchor as_written proper_name interlanguage_link"
    " mot_étranger allow_wrap".split(),
    1,
) | dict.fromkeys("lang langue script wikt-lang resize color font_color fontcolor sort".split(), 2)
_SHOWN_ARGUMENT = {name.replace("_", " "): number for name, number in _SHOWN_ARGUMENT.items()}
_QUOTATIONS = ("quote", "quotation", "blockquote", "cquote", "bquote", "zitat", "citation bloc", "cita")
_CURRENCIES = {
    "usd": "US$",
    "us$": "US$",
    "gbp": "£",
    "£": "£",
    "eur": "€",
    "€": "€",
    "inr": "₹",
    "jpy": "¥",
    "cny": "CN¥",
    "aud": "A$",
    "a$": "A$",
}
_MONTHS = "January February March April May June July August September October November December".split()
# Unit in English: its codes, sign, name, and name in the plural where that is not with an s.
_UNIT_TABLE = """
mi|mi|mile   km|km|kilometre   m|m|metre   ft|ft|foot|feet   in|in|inch|inches   cm|cm|centimetre   mm|mm|millimetre
yd|yd|yard   nmi|nmi|nautical mile   km2,sqkm|km²|square kilometre   sqmi,mi2|sq mi|square mile   m2|m²|square metre
sqft|sq ft|square foot|square feet   ha|ha|hectare   acre|acre|acre   m3|m³|cubic metre   km3|km³|cubic kilometre
kg|kg|kilogram   g|g|gram   lb|lb|pound   oz|oz|ounce   t|t|tonne   l,L|L|litre   USgal|US gal|US gallon
hp|hp|horsepower|horsepower
km/h,kmh|km/h|kilometre per hour|kilometres per hour   mph|mph|mile per hour|miles per hour   kn,knot|kn|knot
C,°C|°C|°C|°C   F,°F|°F|°F|°F   K|K|K|K   impgal|imp gal|imperial gallon   kW|kW|kilowatt   ly|ly|light-year
oilbbl|bbl|barrel of oil|barrels of oil   oilbbl/d|bbl/d|barrel of oil per day|barrels of oil per day
carat|carat|carat   ft/s|ft/s|foot per second|feet per second   LT|long ton|long ton   MT|t|tonne
ST|short ton|short ton
C-change|°C|°C|°C   F-change|°F|°F|°F   ft3,cuft|cu ft|cubic foot|cubic feet   acre.ft|acre⋅ft|acre-foot|acre-feet
PD/sqkm|/km²|inhabitant per square kilometre|inhabitants per square kilometre
PD/sqmi|/sq mi|inhabitant per square mile|inhabitants per square mile
"""
_UNITS = {
    code: (sign, one, many[0] if many else f"{one}s")
    for codes, sign, one, *many in (row.split("|") for row in re.split(r"\s{3,}|\n", _UNIT_TABLE.strip()))
    for code in codes.split(",")
}
# A million acres is e6acre, a million barrels Moilbbl; units of science are their own sign.
_MULTIPLES = {
    "e3": "thousand",
    "e6": "million",
    "e9": "billion",
    "k": "thousand",
    "M": "million",
    "G": "billion",
    "T": "trillion",
}
_MULTIPLE = re.compile(r"(e[369]|[kMGT](?=oilbbl|cuft|USgal))(.+)")
_SCIENTIFIC_UNIT = re.compile(r"[kMGTcmµn]?(?:W|Wh|V|A|Hz|J|Pa|N|eV|B|b|s|L|l|t|bar|cal)|psi|AU|pc|min|h|d|rpm|°")
_RANGES = {
    "to": " to ",
    "-": "–",
    "–": "–",
    "to(-)": " to ",
    "and": " and ",
    "and(-)": " and ",
    "or": " or ",
    "x": " by ",
    "by": " by ",
    "+/-": " ± ",
    "±": " ± ",
}

_BAR = re.compile(r"\|(?![^\[\]|]*\]\])(?![^\[\]]*\]\])")
_NAMED = re.compile(r"\s*([\w-]+)\s*=(.*)", re.DOTALL)
_NUMBER = re.compile(r"[-−+]?[\d,]*\.?\d+(?:/\d+)?")


@dataclass(frozen=True)
class Arguments:
    """Of one call: those by number, from 1, and those by name."""

    numbered: dict[int, str]
    named: dict[str, str]

    def __getitem__(self, number: int) -> str:
        return self.numbered.get(number, "")

    def all(self) -> list[str]:
        return [self.numbered[number] for number in sorted(self.numbered) if self.numbered[number]]


def template_words(call: str, language: str) -> str | None:
    """What the call (without its braces) says in a sentence, HOLE where words are lost; None when it is not known."""
    written, *parts = _BAR.split(call)
    written = " ".join(written.replace("_", " ").split())
    name = written.lower()
    function, colon, value = name.partition(":")
    if function == "formatnum" and colon:
        return _grouped(value.strip().partition("|")[0], language)
    if colon and function in ("defaultsort", "displaytitle", "#tag", "anchor"):
        return ""
    arguments = _arguments(parts)
    if re.fullmatch(r"[ivxlc]+(?:er|e)(?: siècle)?|[ivx]+(?:er|e)", name):
        return written
    if name in _SIGNS:
        return _SIGNS[name]
    if name in _SAYS:
        return _SAYS[name](arguments, language)
    if name in _SHOWN_ARGUMENT:
        return arguments[_SHOWN_ARGUMENT[name]]
    if name.startswith(("lang-", "langx")):
        return arguments[2 if name == "langx" else 1]
    if name.startswith("ipa-"):
        return f"[{arguments[1]}]" if arguments[1] else ""
    if _SILENT.fullmatch(name):
        return ""
    return None


def _arguments(parts: list[str]) -> Arguments:
    numbered, named = {}, {}
    place = 0
    for part in parts:
        match = _NAMED.fullmatch(part)
        if match and match[1].isdigit() and len(match[1]) < 3:
            numbered[int(match[1])] = match[2].strip()
        elif match:
            named[match[1].lower()] = match[2].strip()
        else:
            place += 1
            numbered[place] = part.strip()
    return Arguments(numbered, named)


def _grouped(number: str, language: str) -> str:
    """1300 as 1,300 in English; as it is in others, whose signs differ."""
    if language != "en" or not re.fullmatch(r"[-−+]?\d{4,}(?:\.\d+)?", number):
        return number
    whole, point, rest = number.partition(".")
    sign, digits = (whole[0], whole[1:]) if not whole[0].isdigit() else ("", whole)
    return f"{sign}{int(digits):,}{point}{rest}"


def _convert(arguments: Arguments, language: str) -> str:
    """Value and unit as they are told; the same in another unit is left out."""
    words = [arguments.numbered[number] for number in sorted(arguments.numbered)]
    if not words or not _NUMBER.fullmatch(words[0]):
        return HOLE
    values = _grouped(words[0].replace(",", ""), language)
    place, last = 1, words[0]
    while place + 1 < len(words) and words[place] in _RANGES and _NUMBER.fullmatch(words[place + 1]):
        values += _RANGES[words[place]] + _grouped(words[place + 1].replace(",", ""), language)
        last, place = words[place + 1], place + 2
    unit = _unit(words[place]) if place < len(words) else None
    if unit is None:
        return HOLE
    sign, one, many = unit
    abbreviated = arguments.named.get("abbr") in ("on", "in", "y", "yes", "values")
    if arguments.named.get("adj") in ("on", "mid", "pre") and not abbreviated:
        return f"{values}-{one.replace(' ', '-')}"
    said = f"{values} {sign if abbreviated or language != 'en' else one if last.strip() == '1' else many}"
    rest = _unit(words[place + 2]) if len(words) > place + 2 and _NUMBER.fullmatch(words[place + 1]) else None
    if rest:  # feet and inches
        said += f" {words[place + 1]} {rest[0] if abbreviated else rest[1] if words[place + 1] == '1' else rest[2]}"
    return said.replace(" /", "/")


def _unit(code: str) -> tuple[str, str, str] | None:
    """(sign, name, name in the plural) of a unit."""
    if code in _UNITS:
        return _UNITS[code]
    multiple = _MULTIPLE.fullmatch(code)
    unit = _UNITS.get(multiple[2]) if multiple else None
    if multiple and unit:
        times = _MULTIPLES[multiple[1]]
        return f"{times} {unit[0]}", f"{times} {unit[1]}", f"{times} {unit[2]}"
    return (code, code, code) if _SCIENTIFIC_UNIT.fullmatch(code) else None


def _date(arguments: Arguments, language: str) -> str:
    words = arguments.all()
    iso = re.fullmatch(r"(\d{4})-(\d{1,2})-(\d{1,2})", words[0]) if words else None
    numbers = list(iso.groups()) if iso else words[:3]
    if numbers and all(word.isdigit() for word in numbers) and (iso or len(numbers[0]) == 4):
        if len(numbers) == 1:
            return numbers[0]
        if language != "en" or not 1 <= int(numbers[1]) <= 12:
            return HOLE
        month = _MONTHS[int(numbers[1]) - 1]
        if len(numbers) == 2:
            return f"{month} {numbers[0]}"
        day_first = iso or arguments.named.get("df", "").startswith("y")
        return f"{int(numbers[2])} {month} {numbers[0]}" if day_first else f"{month} {int(numbers[2])}, {numbers[0]}"
    return " ".join(words[:3]) or HOLE


def _joined(arguments: Arguments, language: str, between: str = "") -> str:
    return between.join(arguments.all())


def _quotation(arguments: Arguments, language: str) -> str:
    """A paragraph of its own."""
    said = arguments.named.get("text") or arguments.named.get("quote") or arguments[1]
    return f"\n\n{said}\n\n"


def _fraction(arguments: Arguments, language: str) -> str:
    words = arguments.all()
    if len(words) == 3:
        return f"{words[0]} {words[1]}⁄{words[2]}"
    return "⁄".join(words if len(words) == 2 else ["1", *words]) if words else "⁄"


def _as_of(arguments: Arguments, language: str) -> str:
    words = arguments.all()
    if any(not word.isdigit() for word in words) or not words:
        date = " ".join(words) or HOLE
    else:
        date = _date(Arguments({**arguments.numbered}, {"df": arguments.named.get("df", "y")}), language)
    start = "since" if arguments.named.get("since") else "as of"
    bare = arguments.named.get("bare")
    return date if bare else f"{start if arguments.named.get('lc') else start.capitalize()} {date}"


def _pronunciation(arguments: Arguments, language: str) -> str:
    sounds = [
        word
        for word in arguments.all()
        if not re.fullmatch(r"lang|pron|us|uk|.*\.(?:ogg|wav|oga)|also|local", word, re.I)
    ]
    return f"/{''.join(sounds).replace('_', ' ')}/" if sounds else ""


def _respelling(arguments: Arguments, language: str) -> str:
    return _joined(arguments, language, "-").replace("-_-", " ")


def _verse(arguments: Arguments, language: str) -> str:
    return " ".join(arguments.all()[:2])


def _nihongo(arguments: Arguments, language: str) -> str:
    original = ", ".join(filter(None, (arguments[2], arguments[3])))
    shown = arguments[1] or arguments[3]
    return f"{shown} ({original})" if original and shown != original else shown


def _circa(arguments: Arguments, language: str) -> str:
    return " – ".join(f"c. {word}" for word in arguments.all()) or "c."


def _with_unit(arguments: Arguments, language: str) -> str:
    number = _grouped(arguments[1], language)
    return " ".join(filter(None, (number, arguments.named.get("u") or arguments.named.get("ul") or arguments[2])))


def _measured(arguments: Arguments, language: str) -> str:
    """French and Spanish: a number and its unit."""
    return " ".join(arguments.all()[:2]) if arguments[1] else HOLE


def _money(sign: str, arguments: Arguments, language: str) -> str:
    return f"{sign}{_grouped(arguments[1], language)}" if arguments[1] else sign


def _ship(kind: str, arguments: Arguments, language: str) -> str:
    name = " ".join(filter(None, (kind, arguments[1])))
    return f"{name} ({arguments[2]})" if arguments[2] and not arguments[3] else name


def _last(arguments: Arguments, language: str) -> str:
    return (arguments.all() or [""])[-1]


_SAYS: dict[str, Callable[[Arguments, str], str]] = {
    **dict.fromkeys(("convert", "cvt"), _convert),
    **dict.fromkeys(
        ("date", "date-", "start date", "end date", "birth date", "death date", "dts", "fecha", "data", "дата"),
        _date,
    ),
    **dict.fromkeys(_QUOTATIONS, _quotation),
    **dict.fromkeys(("frac", "fraction", "sfrac"), _fraction),
    **dict.fromkeys(("chem", "gaps", "gapnum", "sic?", "simplenuclide", "simplenuclide2", "not a typo"), _joined),
    **dict.fromkeys(("unité", "unidad", "unidade", "nobr unité", "nombre unité"), _measured),
    **dict.fromkeys(("transl", "transliteration", "romanize"), _last),
    **dict.fromkeys(("circa", "c.", "ca."), _circa),
    **dict.fromkeys(("nihongo", "nihongo foot"), _nihongo),
    **{name: partial(_money, sign) for name, sign in _CURRENCIES.items()},
    **{kind.lower(): partial(_ship, kind) for kind in ("USS", "HMS", "SS", "HMAS", "RMS", "HMCS")},
    "citation": lambda arguments, language: f"« {arguments[1]} »" if arguments[1] and language == "fr" else "",
    **dict.fromkeys(("bibleref", "bibleref2", "bibleverse", "bibleverse-nb"), _verse),
    "as of": _as_of,
    "ipac-en": _pronunciation,
    "respell": _respelling,
    "val": _with_unit,
    "angbr": lambda arguments, language: f"⟨{arguments[1]}⟩",
    "bracket": lambda arguments, language: f"[{arguments[1]}]",
    '"': lambda arguments, language: f"„{arguments[1]}“",
    "s": lambda arguments, language: f"{arguments[1]}{arguments[2] or 'e'} siècle" if language == "fr" else HOLE,
    "s-": lambda arguments, language: f"{arguments[1]}{arguments[2] or 'e'}" if language == "fr" else HOLE,
    "読み仮名": lambda arguments, language: f"{arguments[1]}（{arguments[2]}）",
}  # fmt: skip
