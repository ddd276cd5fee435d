"""Vocabularies: their one reader, their fingerprint, and the files a checkpoint carries for Hugging Face."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from central.files import is_special, parse_json
from central.runtime.exits import BadRequest

SPECIAL_TOKENS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}  # ids in BERT's own vocabulary


@dataclass(frozen=True)
class Vocabulary:
    tokens: tuple[str, ...]
    tokenizer_config: dict[str, Any]
    text: str  # of the file, as it is

    @property
    def sha256(self) -> str:
        return fingerprint(self.tokens)

    def files(self) -> dict[str, str]:
        """Names and contents of what `AutoTokenizer` needs."""
        return {
            "vocab.txt": self.text,
            "tokenizer_config.json": json.dumps(self.tokenizer_config, indent=2) + "\n",
        }

    def special_ids(self) -> dict[str, int]:
        return {token: self.tokens.index(token) for token in SPECIAL_TOKENS if token in self.tokens}


def fingerprint(tokens: Sequence[str]) -> str:
    """sha256 of the tokens in the order of their ids; empty ones at the end, which no text has, do not count."""
    return hashlib.sha256("\n".join(tokens).rstrip("\n").encode()).hexdigest()


def vocabulary_text(path: Path) -> str:
    """The text of a vocabulary file, without a byte-order mark; BadRequest where it is empty or no text."""
    text = _read(path).removeprefix("\ufeff")
    if not text.strip():
        raise BadRequest(f"{path}: is empty: give BERT's vocab.txt, one token a line")
    if "\0" in text:
        raise BadRequest(f"{path}: not a text file: give BERT's vocab.txt, one token a line")
    return text


def tokens_of(text: str) -> tuple[str, ...]:
    """The tokens of a vocabulary file in the order of their ids, which are those of Hugging Face's reader.

    Only "\\n" ends a line, and blanks at its end are not the token's: U+2028 in Google's Chinese file is a line of its
    own, whose token is empty and never matches. Empty lines at the end have no id.
    """
    return tuple(line.rstrip() for line in text.replace("\r\n", "\n").rstrip("\n").split("\n"))


def find_vocabulary(vocab_file: Path | None, folder: Path) -> Vocabulary | None:
    """`vocab_file`, else the vocab.txt in `folder`, else None; BadRequest where a file is there but is none."""
    path = vocab_file or folder / "vocab.txt"
    if vocab_file is None and not os.path.lexists(path):
        return None
    text = vocabulary_text(path)
    tokens = tokens_of(text)
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise BadRequest(f"{path}: no {', '.join(missing)} in it: give BERT's vocab.txt, one token a line")
    beside = path.parent / "tokenizer_config.json"
    if os.path.lexists(beside):
        return Vocabulary(tokens, _read_settings(beside), text)
    lower = not any(token.isupper() for token in tokens if token not in SPECIAL_TOKENS)
    return Vocabulary(tokens, {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}, text)


def fingerprint_of(folder: Path) -> str | None:
    """sha256 of a model folder's vocabulary, from vocab.txt or tokenizer.json (all that transformers 5 writes)."""
    beside = find_vocabulary(None, folder)
    if beside is not None:
        return beside.sha256
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    text = _read(path)
    try:
        ids = parse_json(text)["model"]["vocab"]
        tokens = [""] * (max(ids.values()) + 1)  # an id without a token is that of one which cannot be written there
        for token, number in ids.items():
            tokens[number] = token
        return fingerprint(tokens)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None  # a tokenizer of another kind: nothing to compare


def _read(path: Path) -> str:
    if is_special(path):
        raise BadRequest(f"{path}: not a regular file, so it might never end: give BERT's vocab.txt")
    try:
        return path.read_bytes().decode()  # bytes: line ends stay what they are
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: cannot be read as UTF-8 text ({error}): make or copy it again") from error


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = parse_json(_read(path))
    except BadRequest:
        raise
    except ValueError as error:
        raise BadRequest(f"{path}: not JSON ({error}): copy it again, or delete it") from error
    if not isinstance(settings, dict):
        raise BadRequest(f"{path}: holds no settings of a tokenizer: copy it again, or delete it")
    return settings
