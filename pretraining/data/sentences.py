"""Sentence boundaries without anything to download: rules, one sentence a line as given, or pysbd where installed."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from central.runtime.exits import BadRequest

SPLITTERS = ("rules", "line", "pysbd")

# Abbreviations that are followed by more of the same sentence, without the period, lower-cased.
ABBREVIATIONS = {
    "en": "mr mrs ms dr prof rev fr sr st mt gen col lt capt sgt cmdr adm maj hon gov sen rep pres messrs mme mlle vs "
    "cf viz ca approx eds trans est dept univ assn bros ft",
    "de": "dr prof hr fr bd st str ca bzw vgl ggf inkl jh jhd geb gest abs aufl hrsg evtl sog ing dipl max min zzgl "
    "mio mrd univ",
    "fr": "mm mme mlle dr pr prof st ste av bd cf ex chap éd env",
    "es": "sr sra srta dr dra dña prof ud uds av avda cap aprox ej",
    "it": "sig sigg dott prof ing avv on cap es ecc",
    "pt": "sr sra dr dra prof av cap ex",
    "nl": "dhr mevr dr prof ir drs st bijv ca",
    "ru": "им ул др руб коп тыс млн млрд см рис стр гл акад проф доц св гг вв напр",
    "hi": "डॉ प्रो श्री सं पं",
}
# Of these the next word tells: a sentence may end with them.
SENTENCE_ENDING = {
    "en": "etc jr sr inc ltd co corp al",
    "de": "usw etc ff jr",
    "fr": "etc",
    "es": "etc",
    "it": "ecc etc",
    "pt": "etc",
    "nl": "enz etc",
}
# Of these only before a number: "No. 5", but "The answer is no."
BEFORE_NUMBERS = (
    "no nos art arts vol vols fig figs sec sect ch chap p pp ed nr abs abb núm n° pág págs pag pagg blz bl jan feb mar "
    "apr jun jul aug sep sept oct okt nov dec dez fév févr avr juil janv déc mär tab op lib ca § ziff kap стр рис гл"
)
STREET = "str"  # the end of a German street's name, "Hauptstr. 5"
# Words that begin sentences and hardly a name.
STARTERS = {
    "en": "the a an he she it they we i you his her its their our my this that these those there here then when while "
    "after before but and or so in on at as if for from with by to not no yes what who why how where however once "
    "nobody everyone some many most all one two another soon later now is was are did do can",
    "de": "der die das den dem des ein eine einen einem er sie es wir ich ihr sein seine ihre dies diese dieser dieses "
    "dort hier dann da als wenn während nach vor aber und oder so in im am an auf bei mit von zu zur zum nicht nein "
    "ja was wer warum wie wo doch auch man nur noch für aus seit durch",
    "fr": "le la les l un une des il elle ils elles nous vous je on ce cet cette ces son sa ses mais et ou donc dans "
    "en à au aux pour par avec sur après avant puis alors quand comme si ainsi",
    "es": "el la los las un una él ella ellos ellas en de con por para pero y o este esta estos estas cuando después "
    "luego así como si su sus",
    "it": "il lo la i gli le un una egli lei loro in nel nella di del con per ma e o questo questa quando dopo poi "
    "così come se",
    "pt": "o a os as um uma ele ela eles elas em no na de do da com por para mas e ou este esta quando depois assim se",
    "nl": "de het een hij zij ze wij we ik in op aan bij met van voor maar en of dit dat deze die toen daar hier als "
    "na",
    "ru": "он она они оно мы я вы это этот эта эти в на по при после но и а или когда затем потом как если с из для",
}
ORDINAL_LANGUAGES = ("cs", "da", "de", "fi", "hu", "nb", "no", "sk", "sl", "tr")  # "am 5. Mai"
NO_MARKS = {"th": "Thai", "lo": "Lao"}  # sentences end with a blank, as other things do

# Marks that end a sentence where a blank follows: "3.5" and "example.com" go on.
_SPACED = ".!?…‼‽⁇⁈⁉"
# Unicode's Sentence_Terminal but for the Burmese comma, and the Tibetan shad; no blank is needed.
_ALONE = "։؝-؟۔܀-܂߹࠷࠹࠽࠾।॥།༎။።፧፨᙮᜵᜶។៕᠃᠉᥄᥅᪨-᪫᭎᭏᭚᭛᭞᭟᭽-᭿᰻᰼᱾᱿⳹-⳻⸮⸼⹓⹔⹠⹡。꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝-꩟꫰꫱꯫︒︕︖﹒﹖﹗！．？｡"
# The same beyond the first 65,536 characters; apart, as sets with them are searched slowly.
_ALONE_RARE = (
    "\U00010a56\U00010a57\U00010f55-\U00010f59\U00010f86-\U00010f89\U00011047\U00011048\U000110be-\U000110c1"
    "\U00011141-\U00011143\U000111c5\U000111c6\U000111cd\U000111de\U000111df\U00011238\U00011239\U0001123b\U0001123c"
    "\U000112a9\U000113d4\U000113d5\U0001144b\U0001144c\U000115c2\U000115c3\U000115c9-\U000115d7\U00011641\U00011642"
    "\U0001173c-\U0001173e\U00011944\U00011946\U00011a42\U00011a43\U00011a9b\U00011a9c\U00011c41\U00011c42\U00011ef7"
    "\U00011ef8\U00011f43\U00011f44\U00016a6e\U00016a6f\U00016af5\U00016b37\U00016b38\U00016b44\U00016d6e\U00016d6f"
    "\U00016e98\U0001bc9f\U0001da88"
)
# Kinds of marks: where they stand inside of a sentence whatever comes, and those that what follows decides of.
GOES_ON, ALONE, PERIOD, ELLIPSIS, QUOTATION, OTHER_MARK = "goes on", "alone", "period", "ellipsis", "quotation", "mark"
_CLOSERS = "\"'”’“‘»«›‹」』）)\\]】〉》〕}"
_BLANK = r"[^\S\n]"


def _end_pattern(marks: str) -> re.Pattern[str]:
    """Marks with what closes a quotation, as French does behind a blank, and the white space after all that.

    It matches at any mark and takes all marks that follow: a million periods must not take hours.
    """
    return re.compile(rf"(?:{marks}[{_CLOSERS}]*+(?:{_BLANK}»(?={_BLANK}))?+{_BLANK}*+)++")


# Marks that are Greek's question mark, or the full stop of Armenian and Ethiopic, after a letter of that script alone:
# (what they look like; what stands for them while the text is split, no character of any text; what they are).
_OWN_MARKS = (
    (re.compile(r"[;\u037e](?<=[\u0370-\u03ff\u1f00-\u1fff].)(?=\s)"), "\ufdd0", ";"),
    (re.compile(r":(?<=[\u0531-\u0587]:)(?=\s)"), "\ufdd1", ":"),
    (re.compile(r"፡፡(?=\s)"), "\ufdd2", "፡፡"),
    (re.compile(r"::(?<=[\u1200-\u135a]::)(?=\s)"), "\ufdd3", "::"),
)
_END = _end_pattern(f"[{_SPACED}{_ALONE}\ufdd0-\ufdd3]++")
_RARE_SCRIPT = re.compile("[\U00010a00-\U0001dfff]")
_END_IN_RARE_SCRIPT = _end_pattern(f"[{_SPACED}{_ALONE}{_ALONE_RARE}\ufdd0-\ufdd3]++")
_IS_ALONE = re.compile(f"[{_ALONE}{_ALONE_RARE}\ufdd1-\ufdd3]")
_WORD = re.compile(r"\w")
_LAST_WORD = re.compile(r"""[^\s("'“‘„‚«»‹›\[/—–]*$""")
_OPENING = "\"'“‘„‚«‹»›([¿¡-–— "
_NUMBER = re.compile(r"[0-9]|[IVXLCDM]+\b")
_DOTTED = re.compile(r"\w(?:\.-?\w{1,2})+")  # "p.m", "z.B", "Ph.D", "J.-J"
SMALL_WORDS = ("i", "я")  # letters that end sentences as words; others are initials where there are no capitals
# What goes on after a Japanese quotation: particles, but not the words that begin with one and may begin a sentence.
LEAST_WRAPPED_LINES = 8  # from which lines are told to be wrapped; fewer tell nothing
WRAPPED_WIDTHS = range(30, 161)  # characters
_LONGEST_FIRST_WORD = 12  # characters; in writing without blanks a whole line looks like one word
_ENDS_SENTENCE = re.compile(f"[{_SPACED}{_ALONE}{_ALONE_RARE}][{_CLOSERS}_*]*$")
_QUOTATION_GOES_ON = re.compile(
    r"って|など|と(?!ころ|ても|にかく|うとう|りあえず|もあれ|もかく)|を|が(?!ん)|の(?!ち)|は(?!い|じ|っ)|に(?!わ|こ|や)"
    r"|だ(?!が|か|っ)|か(?=[、。」と])|へ(?!え)|も(?!う|し|ち|っ|の)|で(?!も|は)"
)
# "“Go!” he said." in Chinese: at most eight characters up to a verb of speaking that a sign follows.
_SPEAKER_FOLLOWS = re.compile("[\u4e00-\u9fff]{1,8}?[说說道问問喊叫答嚷][。，：！？,:]")
_CAPITAL = re.compile("[A-ZÀ-ÖØ-ÞΆ-ΏΑ-ΫЀ-ЯԱ-Ֆ]")
_AFTER_MARK = re.compile(r"[.!?] +(\w)")
SMALL_STARTS = 5  # sentences with a small letter, from which they tell more than names with capitals
CASE_SAMPLE = 8192  # characters of a document that tell whether it has capitals
CAPITAL_SHARE = 0.002  # of characters; the longest sentences of a text with capitals still have one in 400


@dataclass(frozen=True)
class Rules:
    """What is known of a language."""

    abbreviations: frozenset[str] = frozenset()
    sentence_ending: frozenset[str] = frozenset()
    starters: frozenset[str] = frozenset()
    before_numbers: frozenset[str] = field(default=frozenset(BEFORE_NUMBERS.split()))
    ordinals: bool = False

    @classmethod
    def of(cls, language: str) -> "Rules":
        abbreviations, ending, starters = (
            frozenset(words.get(language, "").split()) for words in (ABBREVIATIONS, SENTENCE_ENDING, STARTERS)
        )
        return cls(abbreviations, ending, starters, ordinals=language in ORDINAL_LANGUAGES)


def sentence_splitter(name: str, language: str) -> Callable[[str], str]:
    """A function that puts each sentence of a text on a line of its own and leaves blank lines alone.

    BadRequest where pysbd is not installed or does not know the language; the rules serve any, see `language_note`.
    """
    if name == "line":
        return lambda text: text
    if name == "rules":
        return partial(_split_by_rules, rules=Rules.of(language))
    if name == "pysbd":
        return _pysbd(language)
    raise BadRequest(f"--sentences {name}: one of {', '.join(SPLITTERS)}")


def has_wrapped_lines(text: str) -> bool:
    """Whether the lines of a text were broken at a width, amid sentences, as those of Project Gutenberg are.

    Such lines are nearly all about as long as the longest, the next word would mostly not have fitted, and few end
    or begin sentences. What no line follows (the last of a paragraph, headings, unwrapped paragraphs) tells nothing.
    """
    lines = [line.strip() for line in text.split("\n")]
    broken = [(line, following) for line, following in zip(lines, lines[1:]) if line and following]
    if len(broken) < LEAST_WRAPPED_LINES:
        return False
    lengths = sorted(len(line) for line, _ in broken)
    width = lengths[int(0.95 * len(lengths))]
    if width not in WRAPPED_WIDTHS:
        return False
    long = sum(length >= 0.75 * width for length in lengths)
    full = sum(
        len(line) + 1 + min(len(following.split(" ", 1)[0]), _LONGEST_FIRST_WORD) > width for line, following in broken
    )
    ends = sum(_ENDS_SENTENCE.search(line) is not None for line, _ in broken)
    capitals = sum(following[0].isupper() for _, following in broken)
    few, most = 0.3 * len(broken), 0.8 * len(broken)
    return long >= most and full >= len(broken) / 2 and ends <= few and capitals <= len(broken) / 2


def language_note(name: str, language: str) -> str | None:
    """What a user should know of a language whose sentences are found less well."""
    if name != "rules":
        return None
    if language in NO_MARKS:
        return (
            f"--language {language}: {NO_MARKS[language]} has no mark that ends a sentence, so each line is one;"
            " part them beforehand and give --sentences line"
        )
    if language in ABBREVIATIONS:
        return None
    known = ", ".join(ABBREVIATIONS)
    return (
        f"--language {language}: no abbreviations known for it (known: {known}); each is taken for a sentence's end"
        " where a capital follows, but for single letters and such as p.m."
    )


def _split_by_rules(text: str, rules: Rules) -> str:
    own = [(mark, stand_in) for look, stand_in, mark in _OWN_MARKS if mark in text and look.search(text)]
    for look, stand_in, _ in _OWN_MARKS if own else ():
        text = look.sub(stand_in, text)
    case = _Case(text)
    kinds: dict[str, str] = {}
    pieces, start = [], 0
    for match in (_END_IN_RARE_SCRIPT if _RARE_SCRIPT.search(text) else _END).finditer(text):
        found = match[0]
        kind = kinds.get(found)
        if kind is None:
            kind = kinds[found] = _kind(found)
        if kind == GOES_ON or not _WORD.search(text, start, match.start()):
            continue
        end = match.end()
        if kind == ALONE and found[-1] in "“‘":  # they close in German only; here they open what follows
            found = found.rstrip("“‘")
            end = match.start() + len(found)
        if _ends_sentence(text, match.start(), end, found, kind, rules, case):
            pieces.append(text[start:end].rstrip())
            start = end
    pieces.append(text[start:])
    split = "\n".join(pieces)
    for mark, stand_in in own:
        split = split.replace(stand_in, mark)
    return split


def _kind(found: str) -> str:
    """What marks with all that follows them tell of themselves."""
    if _IS_ALONE.search(found):
        return ALONE
    if not found[-1].isspace():
        return GOES_ON
    marks = found.rstrip()
    if ".." in marks or ". ." in marks or "…" in marks:
        return ELLIPSIS
    return PERIOD if marks[0] == "." else QUOTATION if marks[-1] in _CLOSERS else OTHER_MARK


class _Case:
    """Whether a document of the text is written without capitals, as transcripts are: looked at when it matters."""

    def __init__(self, text: str):
        self.text, self.end, self.without_capitals = text, -1, False

    def is_without_capitals(self, place: int) -> bool:
        if place >= self.end:
            start = self.text.rfind("\n\n", 0, place) + 1
            end = self.text.find("\n\n", place)
            self.end = end if end >= 0 else len(self.text)
            sample = self.text[start : min(self.end, start + CASE_SAMPLE)]
            after = "".join(_AFTER_MARK.findall(sample))
            small, capital = sum(map(str.islower, after)), sum(map(str.isupper, after))
            few = len(_CAPITAL.findall(sample)) < CAPITAL_SHARE * len(sample)
            self.without_capitals = few or small > max(SMALL_STARTS, 4 * capital)
        return self.without_capitals


def _ends_sentence(text: str, start: int, end: int, found: str, kind: str, rules: Rules, case: _Case) -> bool:
    """Not before a small letter, unless there are no capitals; a period not after what is an abbreviation."""
    first = text[end : end + 1]
    if first == "\n" or not first:
        return False
    if kind == ALONE:
        if found == "．" and first.isdigit():
            return False
        is_quotation = found[-1] in "」』）”’"
        return not (is_quotation and (_QUOTATION_GOES_ON.match(text, end) or _SPEAKER_FOLLOWS.match(text, end)))
    following = text[end : end + 24]
    if first in _OPENING:
        following = following.lstrip(_OPENING)
        first = following[:1]
    small = first.islower()
    if small and not case.is_without_capitals(start):
        return False
    if kind == PERIOD:
        return not _is_abbreviation(text, start, following, small, rules)
    return not small or kind == OTHER_MARK  # "Stop!" she cried


def _is_abbreviation(text: str, end: int, following: str, small: bool, rules: Rules) -> bool:
    """Whether the word that ends at `end`, before a period, is one that more of the sentence follows.

    `small`: what follows is in small letters, in a text without capitals.
    """
    last = _LAST_WORD.search(text, max(0, end - 24), end)
    word = last[0] if last else ""
    lower = word.lower()
    if word.isdigit():
        return rules.ordinals and len(word) <= 2
    is_before_number = lower in rules.before_numbers and len(lower) > 1 or lower.endswith(STREET)
    if is_before_number and lower not in rules.abbreviations:
        return bool(_NUMBER.match(following))
    if lower in rules.abbreviations:
        return True
    is_initial = len(word) <= 3 and sum(map(str.isalpha, word)) == 1
    if is_initial and small:
        return lower not in SMALL_WORDS
    if is_initial or lower in rules.sentence_ending or _DOTTED.fullmatch(word):
        return small or not _starts_sentence(following, rules)
    return False


def _starts_sentence(following: str, rules: Rules) -> bool:
    word = re.match(r"\w+", following)
    return bool(word and word[0].lower() in rules.starters and following[word.end() : word.end() + 1] != ".")


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
