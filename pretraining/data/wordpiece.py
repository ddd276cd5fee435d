"""WordPiece exactly as in Google's BERT (tokenization.py), fast: a cache from word to ids in front of the exact code.

Every step of the reference looks at one white-space separated word at a time, so the ids of a word never depend on its
neighbours and can be remembered. Text is Zipfian: after a few megabytes nearly every word is a dictionary hit.
"""

import hashlib
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

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_WORD = 200  # characters; a longer word is [UNK], as in the reference
LONGEST_CACHED_WORD = 64  # characters; longer ones are links and noise that would fill the cache
CACHE_WORDS = 500_000  # about 150 MB; the cache starts anew beyond it
BLOCK_CHARACTERS = 1 << 18  # text handled at once: the list of its words stays small

_ASCII_WORD = re.compile("[A-Za-z0-9]+|[^A-Za-z0-9]")

LINE_END = "\0"  # stands for a line's end among the words; the reference deletes this character from text
# White space to Python's str.split(), but control characters that the reference deletes.
DELETED_BY_REFERENCE = "\0\x0b\x0c\x1c\x1d\x1e\x1f\x85"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens in order of their ids, and whether text is lower-cased and stripped of accents first."""

    tokens: tuple[str, ...]
    do_lower_case: bool = True

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    @cached_property
    def continuation(self) -> np.ndarray:
        """bool[vocab_size]: the token continues a word."""
        return np.array([token.startswith("##") for token in self.tokens])

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256("\n".join(self.tokens).encode()).hexdigest()

    @property
    def id_type(self) -> type[np.unsignedinteger]:
        """Smallest type that holds every id."""
        return np.uint16 if len(self.tokens) <= 1 << 16 else np.uint32


@lru_cache(maxsize=2)
def read_vocabulary(path: Path, do_lower_case: bool) -> Vocabulary:
    """Read a vocabulary, one token a line; BadRequest names every fault in it."""
    try:
        lines = Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"--vocab_file {path}: cannot be read ({error})") from error
    tokens = tuple(line.strip() for line in lines)
    problems = [
        f"--vocab_file {path}: no {token} in it; every BERT vocabulary has {' '.join(SPECIAL_TOKENS)}"
        for token in SPECIAL_TOKENS
        if token not in tokens
    ]
    problems += [
        f"--vocab_file {path}: {token!r} is on {count} lines; a token has one id"
        for token, count in Counter(tokens).items()
        if count > 1
    ]
    if not problems and tokens[0] != "[PAD]":
        problems.append(f"--vocab_file {path}: line 1 is {tokens[0]!r}; padding is id 0, so it must be [PAD]")
    if problems:
        raise BadRequest(problems)
    return Vocabulary(tokens, do_lower_case)


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
    return character == "\ufffd" or (unicodedata.category(character) in ("Cc", "Cf") and character not in "\t\n\r")


class Encoded(NamedTuple):
    """Ids of some lines of text, end to end."""

    ids: np.ndarray  # [tokens], Vocabulary.id_type
    line_tokens: np.ndarray  # int64[lines]: ids in each line
    blank: np.ndarray  # bool[lines]: the line has nothing but white space (it ends a document)


class Tokenizer:
    """Turns lines of text into ids identical to the reference's."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self._forget()

    def encode(self, text: str) -> Encoded:
        """Ids of whole lines; a line not closed by a line end counts as one."""
        if len(self._rows) > CACHE_WORDS or len(self._rows.ids) > 8 * CACHE_WORDS:
            self._forget()
        for character in DELETED_BY_REFERENCE:
            if character in text:
                text = text.replace(character, "")
        if not text.endswith("\n"):
            text += "\n"
        words = text.replace("\n", f" {LINE_END} ").split()
        rows = np.fromiter(map(self._rows.__getitem__, words), np.int32, len(words))
        table = self._rows
        ends = np.frombuffer(table.ends, np.int64)
        starts, counts = ends[rows], np.diff(ends)[rows]
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
        self.pieces: dict[str, list[int]] = {}  # of the parts between punctuation: fewer than words
        self.ids = array("I")
        self.ends = array("q", (0, 0))

    def __missing__(self, word: str) -> int:
        for part in self._words(word):
            pieces = self.pieces.get(part)
            if pieces is None:
                pieces = self.pieces[part] = self._pieces(part)
            self.ids.extend(pieces)
        self.ends.append(len(self.ids))
        row = len(self.ends) - 2
        if len(word) <= LONGEST_CACHED_WORD:
            self[word] = row
        return row

    def _words(self, text: str) -> list[str]:
        """The reference's basic tokenisation of one white-space separated word."""
        if text.isascii() and text.isprintable():
            return _ASCII_WORD.findall(text.lower() if self.vocabulary.do_lower_case else text)
        kept = (character for character in text if not _is_deleted(character))
        spaced = "".join(f" {character} " if is_cjk(character) else character for character in kept)
        return [part for word in spaced.split() for part in split_punctuation(self._normalise(word))]

    def _normalise(self, word: str) -> str:
        """Lower case in the context of the whole word (a Greek sigma at its end), then without accents."""
        if not self.vocabulary.do_lower_case:
            return word
        decomposed = unicodedata.normalize("NFD", word.lower())
        return "".join(character for character in decomposed if unicodedata.category(character) != "Mn")

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
