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


def find_vocabulary(vocab_file: Path | None, input_dir: Path) -> Vocabulary | None:
    """`vocab_file`, else the vocab.txt beside the shards, else None."""
    path = vocab_file or input_dir / "vocab.txt"
    if not path.is_file():
        return None
    tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise BadRequest(f"{path}: no {', '.join(missing)} in it: give BERT's vocab.txt, one token a line")
    settings = path.parent / "tokenizer_config.json"
    if settings.is_file():
        return Vocabulary(tuple(tokens), json.loads(settings.read_text(encoding="utf-8")))
    lower = not any(token.isupper() for token in tokens if token not in SPECIAL_TOKENS)
    return Vocabulary(tuple(tokens), {"tokenizer_class": "BertTokenizer", "do_lower_case": lower})
