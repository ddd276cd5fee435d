"""The vocabulary of a run: its size, its fingerprint, and the files a checkpoint carries for Hugging Face."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from central.runtime.exits import BadRequest

SPECIAL_TOKENS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}  # ids in BERT's own vocabulary


@dataclass(frozen=True)
class Vocabulary:
    tokens: tuple[str, ...]
    tokenizer_config: dict

    @property
    def sha256(self) -> str:
        return hashlib.sha256("\n".join(self.tokens).encode()).hexdigest()

    def files(self) -> dict[str, str]:
        """Names and contents of what `AutoTokenizer` needs."""
        return {
            "vocab.txt": "".join(f"{token}\n" for token in self.tokens),
            "tokenizer_config.json": json.dumps(self.tokenizer_config, indent=2) + "\n",
        }

    def special_ids(self) -> dict[str, int]:
        return {token: self.tokens.index(token) for token in SPECIAL_TOKENS if token in self.tokens}


def find_vocabulary(vocab_file: Path | None, folder: Path) -> Vocabulary | None:
    """`vocab_file`, else the vocab.txt in `folder`, else None; BadRequest where a file is there but is none."""
    path = vocab_file or folder / "vocab.txt"
    if vocab_file is None and not path.is_file():
        return None
    tokens = tuple(_read(path).removesuffix("\n").split("\n"))
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise BadRequest(f"{path}: no {', '.join(missing)} in it: give BERT's vocab.txt, one token a line")
    beside = path.parent / "tokenizer_config.json"
    if beside.is_file():
        return Vocabulary(tokens, _read_settings(beside))
    lower = not any(token.isupper() for token in tokens if token not in SPECIAL_TOKENS)
    return Vocabulary(tokens, {"tokenizer_class": "BertTokenizer", "do_lower_case": lower})


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
        ids = json.loads(text)["model"]["vocab"]
        return Vocabulary(tuple(sorted(ids, key=ids.get)), {}).sha256
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # a tokenizer of another kind: nothing to compare


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: cannot be read as UTF-8 text ({error}): make or copy it again") from error


def _read_settings(path: Path) -> dict:
    try:
        settings = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise BadRequest(f"{path}: not JSON ({error}): copy it again, or delete it") from error
    if not isinstance(settings, dict):
        raise BadRequest(f"{path}: holds no settings of a tokenizer: copy it again, or delete it")
    return settings
