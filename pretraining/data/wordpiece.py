"""WordPiece with the ids of Hugging Face's BERT tokenizer, fast: a cache from word to ids in front of the exact code.

Every step of it looks at one white-space separated word at a time, so the ids of a word never depend on its neighbours
and can be remembered. Text is Zipfian: after a few megabytes nearly every word is a dictionary hit.
Google's own tokenizer (tokenization.py) differs in capital sigma at the end of a word and in private-use characters.
"""

import re
import unicodedata
from array import array
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from central.runtime.exits import BadRequest
from pretraining.vocabulary import fingerprint, tokens_of, vocabulary_text

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_WORD = 200  # characters; a longer word is [UNK], as in the reference
LONGEST_CACHED_WORD = 64  # characters; longer ones are links and noise that would fill the cache
CACHE_WORDS = 500_000  # about 150 MB; the cache starts anew beyond it
BLOCK_CHARACTERS = 1 << 18  # text handled at once: the list of its words stays small
BLOCKS_COUNTED = 64  # their words are counted together

OTHER = "Other"  # script of words without a letter
LATIN = 1  # its number
USAGE = ("words", "tokens", "unknown", "words_that_lose_marks", "lost_marks")  # numbers of a script's words

_ASCII_WORD = re.compile("[A-Za-z0-9]+|[^A-Za-z0-9]")

DELETED = ("Cc", "Cf", "Co")  # control, format and, as Hugging Face has it, private use
_ASCII_LETTER = re.compile("[A-Za-z]")
LINE_END = "\0"  # stands for a line's end among the words; the reference deletes this character from text
# White space to Python's str.split(), but control characters that the reference deletes.
DELETED_BY_REFERENCE = "\0\x0b\x0c\x1c\x1d\x1e\x1f\x85"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens in order of their ids, and whether text is lower-cased and stripped of accents first."""

    tokens: tuple[str, ...]
    do_lower_case: bool = True
    strip_accents: bool | None = None  # None: where text is lower-cased, as Hugging Face has it

    @property
    def strips_accents(self) -> bool:
        return self.do_lower_case if self.strip_accents is None else self.strip_accents

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def normaliser(self) -> "Normaliser":
        return Normaliser(self.do_lower_case, self.strips_accents)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    @cached_property
    def continuation(self) -> np.ndarray:
        """bool[vocab_size]: the token continues a word."""
        return np.array([token.startswith("##") for token in self.tokens])

    @cached_property
    def sha256(self) -> str:
        return fingerprint(self.tokens)

    @property
    def id_type(self) -> type[np.unsignedinteger]:
        """Smallest type that holds every id."""
        return np.uint16 if len(self.tokens) <= 1 << 16 else np.uint32


@dataclass(frozen=True)
class VocabularyFile:
    """Where a vocabulary is, and how text is normalised for it."""

    path: Path
    do_lower_case: bool = True
    strip_accents: bool | None = None

    def read(self) -> Vocabulary:
        return read_vocabulary(self.path, self.do_lower_case, self.strip_accents)


@lru_cache(maxsize=2)
def read_vocabulary(path: Path, do_lower_case: bool, strip_accents: bool | None = None) -> Vocabulary:
    """Read a vocabulary, one token a line; BadRequest names every fault in it."""
    try:
        tokens = tokens_of(vocabulary_text(Path(path)))
    except BadRequest as error:
        raise BadRequest([f"--vocab_file {problem}" for problem in error.problems]) from error
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    problems = [
        f"--vocab_file {path}: {token!r} is on {count} lines; a token has one id"
        for token, count in Counter(tokens).items()
        if count > 1 and token
    ]
    if missing:
        said = f"no {', '.join(missing)} in it; every BERT vocabulary has {' '.join(SPECIAL_TOKENS)}, one token a line"
        problems.insert(0, f"--vocab_file {path}: {said}")
    if not problems and tokens[0] != "[PAD]":
        problems.append(f"--vocab_file {path}: line 1 is {tokens[0]!r}; padding is id 0, so it must be [PAD]")
    if problems:
        raise BadRequest(problems)
    return Vocabulary(tokens, do_lower_case, strip_accents)


def is_cjk(character: str) -> bool:
    """Whether the reference makes this ideograph a word of its own (kana and hangul are not)."""
    code = ord(character)
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0xF900 <= code <= 0xFAFF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2CEAF
        or 0x2F800 <= code <= 0x2FA1F
    )


def is_punctuation(character: str) -> bool:
    """Unicode punctuation, and every ASCII sign that is neither letter nor digit nor white space ("$", "^")."""
    if character.isascii():
        return "!" <= character <= "~" and not character.isalnum()
    return unicodedata.category(character).startswith("P")


def split_punctuation(word: str) -> list[str]:
    """The parts of a word; each punctuation character is one of its own."""
    return "".join(f" {character} " if is_punctuation(character) else character for character in word).split()


def _is_deleted(character: str) -> bool:
    return character == "\ufffd" or (unicodedata.category(character) in DELETED and character not in "\t\n\r")


@dataclass(frozen=True)
class Normaliser:
    """What becomes of a word of text before it is cut into pieces: the same for data, vocabulary and checkpoint."""

    do_lower_case: bool = True
    strip_accents: bool = True

    def parts(self, word: str) -> list[str]:
        """The parts between which no piece goes on: without control characters, at punctuation and ideographs."""
        if word.isascii() and word.isprintable():
            return _ASCII_WORD.findall(word.lower() if self.do_lower_case else word)
        kept = (character for character in word if not _is_deleted(character))
        spaced = "".join(f" {character} " if is_cjk(character) else character for character in kept)
        return [part for word in spaced.split() for part in split_punctuation(self._normalise(word))]

    def lost_marks(self, word: str) -> int:
        """How many combining marks it takes away."""
        if not self.strip_accents or word.isascii():
            return 0
        return sum(map(_is_mark, unicodedata.normalize("NFD", word)))

    def _normalise(self, word: str) -> str:
        """Without accents, then each letter in lower case by itself: a final sigma is not known to Hugging Face's."""
        if self.strip_accents:
            word = "".join(c for c in unicodedata.normalize("NFD", word) if not _is_mark(c))
        return word.replace("Σ", "σ").lower() if self.do_lower_case else word


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) == "Mn"


def script_of(word: str) -> str:
    """The script of the first letter in a word, by the first word of its name in Unicode; "Other" without a letter.

    Letters that only modify others have none: the stress in "ˈfɪlə", the long vowel in "カー".
    """
    letter = next((c for c in word if c.isalpha() and unicodedata.category(c) != "Lm"), None)
    if letter is None:
        return OTHER
    if letter.isascii():
        return "Latin"
    words = [*unicodedata.name(letter, OTHER).split(), OTHER]
    name = words[1] if words[0] in ("FULLWIDTH", "HALFWIDTH") else words[0]
    return "Han" if name == "CJK" else name.capitalize()


class Encoded(NamedTuple):
    """Ids of some lines of text, end to end."""

    ids: np.ndarray  # [tokens], Vocabulary.id_type
    line_tokens: np.ndarray  # int64[lines]: ids in each line
    blank: np.ndarray  # bool[lines]: the line has nothing but white space (it ends a document)


@dataclass(frozen=True)
class Usage:
    """What the vocabulary made of some text."""

    scripts: dict[str, np.ndarray]  # int64[len(USAGE)] of the words of each script
    unknown_characters: Counter[str]  # behind the [UNK]: not in the vocabulary where they stand in their words

    @classmethod
    def none(cls) -> "Usage":
        return cls({}, Counter())

    def __add__(self, other: "Usage") -> "Usage":
        scripts = dict(self.scripts)
        for name, numbers in other.scripts.items():
            scripts[name] = scripts.get(name, 0) + numbers
        return Usage(scripts, self.unknown_characters + other.unknown_characters)


class Tokenizer:
    """Turns lines of text into ids."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self._usage = Usage.none()
        self._used: list[np.ndarray] = []
        self._forget()

    def take_usage(self) -> Usage:
        """What was encoded since the last call."""
        usage = self._usage + self._rows.usage(self._used)
        self._usage, self._used = Usage.none(), []
        return usage

    def encode(self, text: str) -> Encoded:
        """Ids of whole lines; a line not closed by a line end counts as one."""
        if len(self._rows) > CACHE_WORDS or len(self._rows.ids) > 8 * CACHE_WORDS:
            self._usage = self.take_usage()
            self._forget()
        if len(self._used) >= BLOCKS_COUNTED:
            self._usage = self.take_usage()
        for character in DELETED_BY_REFERENCE:
            if character in text:
                text = text.replace(character, "")
        if not text.endswith("\n"):
            text += "\n"
        words = text.replace("\n", f" {LINE_END} ").split()
        rows = np.fromiter(map(self._rows.__getitem__, words), np.int32, len(words))
        table = self._rows
        self._used.append(rows)
        ends = np.frombuffer(table.ends, np.int64)
        starts, counts = ends[rows], ends[rows + 1] - ends[rows]
        token_ends = np.cumsum(counts)
        # Where in the table each output token is: its word's start, plus its number within the word.
        index = np.arange(token_ends[-1]) + np.repeat(starts - token_ends + counts, counts)
        ids = np.frombuffer(table.ids, np.uint32)[index] if len(index) else np.empty(0, np.uint32)
        line_ends = np.flatnonzero(rows == 0)
        line_tokens = np.diff(token_ends[line_ends], prepend=0)
        blank = np.diff(line_ends, prepend=-1) == 1
        return Encoded(ids.astype(self.vocabulary.id_type), line_tokens, blank)

    def tokens(self, text: str) -> list[str]:
        """The word pieces of one text, for eyes and tests."""
        return [self.vocabulary.tokens[number] for number in self.encode(text).ids]

    def _forget(self) -> None:
        self._rows = _WordTable(self.vocabulary)


class _WordTable(dict):
    """Word -> row; row r of the table is ids[ends[r]:ends[r + 1]]. Row 0 is the line end, which has no ids."""

    def __init__(self, vocabulary: Vocabulary):
        super().__init__({LINE_END: 0})
        self.vocabulary = vocabulary
        self.unknown_id = vocabulary.ids["[UNK]"]
        self.normaliser = vocabulary.normaliser
        self.parts, self.lower = self.normaliser.parts, self.normaliser.do_lower_case
        self.pieces: dict[str, list[int]] = {}  # of the parts between punctuation: fewer than words
        self.ids = array("I")
        self.ends = array("q", (0, 0))
        self.script_numbers = {OTHER: 0, "Latin": LATIN}
        self.facts = array("I", (0,))  # of each word, see `_facts`
        self.unknown_characters: dict[int, str] = {}  # of the rows that have some

    def __missing__(self, word: str) -> int:
        ids, known, unknown_id = self.ids, self.pieces, self.unknown_id
        unknown = None
        is_ascii = word.isascii()
        is_plain = is_ascii and word.isalpha()  # as most words are: one part, found without a pattern
        for part in (word.lower() if self.lower else word,) if is_plain else self.parts(word):
            pieces = known.get(part)
            if pieces is None:
                pieces = known[part] = self._pieces(part)
            ids.extend(pieces)
            if pieces[0] == unknown_id:
                unknown = [*(unknown or ()), part]
        ends, facts = self.ends, self.facts
        row = len(facts)
        ends.append(len(ids))
        if unknown is None and is_ascii:
            facts.append(LATIN if is_plain or _ASCII_LETTER.search(word) else 0)
        else:
            facts.append(self._facts(word, row, unknown or []))
        if len(word) <= LONGEST_CACHED_WORD:
            self[word] = row
        return row

    def _facts(self, word: str, row: int, unknown: list[str]) -> int:
        """Lost marks, [UNK] and number of the script, in 8, 8 and 16 bits."""
        number = self.script_numbers.setdefault(script_of(word), len(self.script_numbers))
        missing = "".join(self._missing(part) for part in unknown)
        if missing:
            self.unknown_characters[row] = missing
        lost = self.normaliser.lost_marks(word)
        return min(lost, 0xFF) << 24 | min(len(unknown), 0xFF) << 16 | number

    def usage(self, used: list[np.ndarray]) -> Usage:
        """Numbers of the words in `used`, arrays of rows."""
        if not used:
            return Usage.none()
        words = np.bincount(np.concatenate(used))
        words[0] = 0  # line ends
        rows = np.flatnonzero(words)  # far fewer than those of all text before
        words, facts, ends = words[rows], np.frombuffer(self.facts, np.uint32)[rows], np.frombuffer(self.ends, np.int64)
        lost, unknown, scripts = facts >> 24, facts >> 16 & 0xFF, facts & 0xFFFF
        columns = (
            words,
            words * (ends[rows + 1] - ends[rows]),
            words * unknown,
            words * (lost > 0),
            words * lost,
        )
        table = np.stack([np.bincount(scripts, column, len(self.script_numbers)) for column in columns], axis=1)
        characters: Counter[str] = Counter()
        for place in np.flatnonzero(unknown).tolist():
            for character in self.unknown_characters.get(int(rows[place]), ""):
                characters[character] += int(words[place])
        by_script = {name: table[number].astype(np.int64) for name, number in self.script_numbers.items()}
        return Usage({name: numbers for name, numbers in by_script.items() if numbers[0]}, characters)

    def _missing(self, part: str) -> str:
        """The characters that are no piece where they stand."""
        ids = self.vocabulary.ids
        return "".join(c for place, c in enumerate(part) if (f"##{c}" if place else c) not in ids)

    def _pieces(self, word: str) -> list[int]:
        """Greedy longest match first; one [UNK] for a word that cannot be made of pieces."""
        vocabulary = self.vocabulary.ids
        unknown = [vocabulary["[UNK]"]]
        if len(word) > LONGEST_WORD:
            return unknown
        pieces = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                number = vocabulary.get(prefix + word[start:end])
                if number is not None:
                    break
            else:
                return unknown
            pieces.append(number)
            start = end
        return pieces
