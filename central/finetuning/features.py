"""Tokenised examples in flat arrays, and the cache they are kept in.

Ragged columns (token ids) are stored one after another with the offsets of each example, so that a cached file is a
few arrays and opens in milliseconds. The cache's key is a hash of data, tokenizer and settings.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from central import files
from central.runtime.exits import BadRequest

FORMAT = 3  # changes when the meaning of a stored column changes
PLACE = re.compile(r"name_or_path$|_files?$|_dir$|^token$")  # settings that say where a tokenizer was found
FEW_TOKENS = 8  # a sequence length below is said to leave almost nothing
CHARACTERS_A_TOKEN = 64  # far more than ordinary text has: what is longer is worth a look
MARGIN = 256  # tokens: a word that a cut divides has fewer, and changes none further away


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: row i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray  # int64[rows + 1]

    @classmethod
    def of(cls, rows: Sequence[Any], dtype: type[np.generic] = np.int32) -> "Ragged":
        """Rows may be lists of integers, or of pairs of integers."""
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        flat = [np.asarray(row, dtype) for row in rows if len(row)]
        return cls(np.concatenate(flat) if flat else np.zeros(0, dtype), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]


class Features(torch.utils.data.Dataset):
    """What the model reads (`inputs`, by name) and what only evaluation reads (`extras`)."""

    def __init__(self, inputs: dict[str, Ragged | np.ndarray], extras: dict[str, Ragged | np.ndarray] | None = None):
        self.inputs = inputs
        self.extras = extras or {}
        ids = inputs["input_ids"]
        assert isinstance(ids, Ragged)
        self.lengths = np.diff(ids.offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return {name: column[row] for name, column in self.inputs.items()}

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {}
        for part, columns in (("inputs", self.inputs), ("extras", self.extras)):
            for name, column in columns.items():
                if isinstance(column, Ragged):
                    arrays[f"{part}.{name}.values"], arrays[f"{part}.{name}.offsets"] = column.values, column.offsets
                else:
                    arrays[f"{part}.{name}"] = column
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.whole_or_absent(path) as unfinished, open(unfinished, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Features":
        parts: dict[str, dict] = {"inputs": {}, "extras": {}}
        with np.load(path, allow_pickle=False) as stored:
            for key in stored.files:
                part, name, *kind = key.split(".")
                if not kind:
                    parts[part][name] = stored[key]
                elif kind == ["values"]:
                    parts[part][name] = Ragged(stored[key], stored[f"{part}.{name}.offsets"])
        return cls(parts["inputs"], parts["extras"])


def cache_file(cache_dir: str | None, **key: Any) -> Path:
    """Where the features of this data, tokenizer and settings lie: `key` holds all that decides them."""
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True)
    if cache_dir is None:
        from huggingface_hub.constants import HF_HOME

        cache_dir = HF_HOME
    return Path(cache_dir) / "bert_features" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of everything a tokenizer does to a text: its settings, however they were made, but not where it lies."""
    backend = json.loads(cast(Any, tokenizer).backend_tokenizer.to_str())
    for passing in ("truncation", "padding"):  # set anew by every call
        backend.pop(passing, None)
    given = {name: value for name, value in tokenizer.init_kwargs.items() if not PLACE.search(name)}
    sides = [tokenizer.truncation_side, tokenizer.padding_side, tokenizer.model_max_length]
    settings = [given, sides, tokenizer.special_tokens_map, tokenizer.split_special_tokens]
    parts = [type(tokenizer).__name__, tokenizer.model_input_names, backend, settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def room_for_text(tokenizer: PreTrainedTokenizerBase, max_length: int, is_pair: bool) -> list[str]:
    """What to say of a sequence length that leaves hardly any text; raises BadRequest where it leaves none."""
    marks = tokenizer.num_special_tokens_to_add(pair=is_pair)
    least = marks + 1 + is_pair
    if max_length < least:
        raise BadRequest(
            f"--max_seq_length {max_length}: {marks} tokens are marks of the model, so that no text fits: at least "
            f"{least}, and 64 or more for most texts"
        )
    if max_length >= FEW_TOKENS:
        return []
    return [f"warning: --max_seq_length {max_length}: only {max_length - marks} tokens of a text fit, the rest is cut"]


def cut_to_fit(tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[str]], max_length: int) -> list[list[str]]:
    """Texts (one list, or two of pairs) without what can never fit into `max_length` tokens, for speed alone.

    Truncation gives the same tokens as of the whole texts. Of a pair the longer text keeps the odd token, so the longer
    one stays the longer. For a pair of long texts the tokenizer itself would make every pair of their windows: 14 GB
    for two of 96 kB.
    """
    from_left = tokenizer.truncation_side == "left"
    cut = [[shortened(tokenizer, text, max_length, from_left) for text in column] for column in texts]
    if len(cut) == 1:
        return cut
    for row, (whole, parts) in enumerate(zip(zip(*texts), zip(*cut))):
        if parts != whole:
            cut[0][row], cut[1][row] = _in_order(tokenizer, parts, whole, from_left)
    return cut


def _in_order(
    tokenizer: PreTrainedTokenizerBase, parts: tuple[str, ...], whole: tuple[str, ...], from_left: bool
) -> tuple[str, str]:
    """The parts of a pair, one of them made longer where the first has more tokens than the second in parts or whole,
    and not in both."""
    first, second = parts
    counts, of_whole = ([_count(tokenizer, text) for text in pair] for pair in (parts, whole))
    first_is_longer = of_whole[0] > of_whole[1]
    if (counts[0] > counts[1]) != first_is_longer:
        if first_is_longer:
            first = shortened(tokenizer, whole[0], counts[1] // 2, from_left)
        else:
            second = shortened(tokenizer, whole[1], counts[0] // 2, from_left)
    return first, second


def shortened(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int, from_left: bool = False) -> str:
    """A part of a text with the same first `tokens` tokens, or last ones where the left of it is cut."""
    size = tokens * CHARACTERS_A_TOKEN
    while size < len(text):
        if from_left:
            part = text[-size:]
            blank = min((at for at in map(part.find, " \n\t") if at >= 0), default=0)
            part = part[blank:]
        else:
            part = text[:size]
            blank = max(map(part.rfind, " \n\t"))
            part = part[:blank] if blank > 0 else part
        if _count(tokenizer, part) > 2 * tokens + MARGIN:
            return part
        size *= 4
    return text


def _count(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"])


def cached(path: Path, make: Callable[[], Features], overwrite: bool) -> Features:
    """Features from their file, else made and stored there. A cache that cannot be used costs time, never the run."""
    if path.exists() and not overwrite:
        try:
            return Features.load(path)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            print(f"cached features {path} are damaged: made anew", flush=True)
    features = make()
    try:
        features.save(path)
    except OSError as error:
        print(f"features are not cached: {error}", flush=True)
    return features
