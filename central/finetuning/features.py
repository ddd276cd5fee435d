"""Tokenised examples in flat arrays, and the cache they are kept in.

Ragged columns (token ids) are stored one after another with the offsets of each example, so that a cached file is a
few arrays and opens in milliseconds. The cache's key is a hash of data, tokenizer and settings.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

FORMAT = 2  # changes when the meaning of a stored column changes


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: row i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray  # int64[rows + 1]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], dtype=np.int32) -> "Ragged":
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
        self.lengths = np.diff(inputs["input_ids"].offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return {name: column[row] for name, column in self.inputs.items()}

    def save(self, path: Path) -> None:
        """Written beside and renamed: a cached file is complete or absent."""
        arrays = {}
        for part, columns in (("inputs", self.inputs), ("extras", self.extras)):
            for name, column in columns.items():
                if isinstance(column, Ragged):
                    arrays[f"{part}.{name}.values"], arrays[f"{part}.{name}.offsets"] = column.values, column.offsets
                else:
                    arrays[f"{part}.{name}"] = column
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial.npz")
        np.savez(partial, **arrays)
        partial.rename(path)

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


def cache_file(cache_dir: str | None, **key) -> Path:
    """Where the features of this data, tokenizer and settings lie: `key` holds all that decides them."""
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True)
    if cache_dir is None:
        from huggingface_hub.constants import HF_HOME

        cache_dir = HF_HOME
    return Path(cache_dir) / "bert_features" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def tokenizer_key(tokenizer) -> str:
    """Hash of everything a tokenizer does to a text."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for passing in ("truncation", "padding"):  # set anew by every call
        backend.pop(passing, None)
    text = json.dumps([type(tokenizer).__name__, tokenizer.model_input_names, backend], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


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
