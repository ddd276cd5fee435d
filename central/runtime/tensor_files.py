"""Files of tensors that every mode and device writes and reads alike.

On a Gaudi the lazy mode has a `torch.save` of its own, whose files the reader of every other mode refuses, and a reader
of its own, which refuses classes that others allow (tests/hpu_emulator/README.md). So a file is written as torch
itself writes it, and read by an unpickler of ours, of any pickle protocol. It runs no code that a file names: it knows
tensors, arrays and plain containers, and nothing else.
"""

import collections
import importlib
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch

from central.errors import BadRequest
from central.files import json_object

Wrapped = TypeVar("Wrapped", bound=Callable)

NUMPY_CORE: Any = importlib.import_module("numpy._core")  # what its pickles name is not in its stubs
PROTOCOL = 2  # the only one that torch's weights-only reader takes in full
SQUARES = "exp_avg_sq"  # the moment that has no negative values
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


def save(content: object, path: Path) -> None:
    """Write content, its tensors on the host, by torch's own `torch.save`; raises what that raises.

    An OSError is its context where the system refused: given a path, torch would not tell why.
    """
    with path.open("wb") as file:
        stock(torch.save)(content, file, pickle_protocol=PROTOCOL)


def stock(function: Wrapped) -> Wrapped:
    """What stood in a function's place before the Gaudi plugin wrapped it; the function itself elsewhere."""
    return getattr(function, "__wrapped__", function)


def load(path: Path, foreign: type | None = None) -> Any:
    """Content of a file of `torch.save` in any pickle protocol, its tensors on the host.

    A class that is not known is replaced by `foreign`; without it the file is refused. Raises ValueError for a file
    that is not of torch's zip format, UnpicklingError for a class that is not known, and RuntimeError, OSError or
    others of pickle's for a file cut short.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("not in torch's zip format; save it again with torch 1.6 or later")
    reader: Any = torch._C.PyTorchFileReader(str(path))  # its stub knows no storages
    storages: dict[str, torch.storage.TypedStorage] = {}

    def storage_of(key: str, dtype: torch.dtype, count: int) -> torch.storage.TypedStorage:
        if key not in storages:
            size = count * torch._utils._element_size(dtype)
            untyped = reader.get_storage_from_record(f"data/{key}", size, torch.UntypedStorage)._typed_storage()
            storages[key] = torch.storage.TypedStorage(
                wrap_storage=untyped._untyped_storage, dtype=dtype, _internal=True
            )
        return storages[key]

    return _RestrictedUnpickler(io.BytesIO(reader.get_record("data.pkl")), storage_of, foreign).load()


def indexed_files(index: Path) -> list[Path]:
    """The files that an index of weights names. Raises BadRequest for what is no index, or names no file beside it."""
    try:
        content = json_object(index)
        named, metadata = content.get("weight_map"), content.get("metadata", {})
        if not named or not isinstance(named, dict) or not isinstance(metadata, dict):
            raise ValueError("no weight_map in it")
    except ValueError as error:
        raise BadRequest(f"{index}: cannot be read as an index of weights ({error}): copy it again") from None
    names = sorted({str(name) for name in named.values()})
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise BadRequest(f"{index}: names {name}, which is no file beside it: copy the model again")
    return [index.parent / name for name in names]


def moment_fault(name: str, moment: object, shape: torch.Size) -> str:
    """What an optimizer's moment, by torch's name for it, is that no training writes for a weight of this shape."""
    if not isinstance(moment, torch.Tensor) or moment.shape != shape:
        found = list(moment.shape) if isinstance(moment, torch.Tensor) else "no tensor"
        return f"is {found}, where {list(shape)} is due"
    if not moment.is_floating_point() or not moment.isfinite().all():
        return "has values that are no finite numbers"
    return "has negative values, and squares have none" if name == SQUARES and moment.lt(0).any() else ""


class _Storage:
    """A storage type's name in a pickle, as the element type it stands for."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype


def _bytes_of(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 spells bytes in protocol 2: `_codecs.encode`, which would load any codec by its name."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


HARMLESS = {
    ("_codecs", "encode"): _bytes_of,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy._core.multiarray", "_reconstruct"): NUMPY_CORE.multiarray._reconstruct,
    ("numpy.core.multiarray", "_reconstruct"): NUMPY_CORE.multiarray._reconstruct,
    ("numpy._core.numeric", "_frombuffer"): NUMPY_CORE.numeric._frombuffer,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
}


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(
        self,
        stream: IO[bytes],
        storage_of: Callable[[str, torch.dtype, int], torch.storage.TypedStorage],
        foreign: type | None,
    ):
        super().__init__(stream)
        self._storage_of, self._foreign = storage_of, foreign

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in STORAGES:
            return _Storage(STORAGES[name])
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        found = HARMLESS.get((module, name), self._foreign)
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither a tensor nor a plain value")
        return found

    def persistent_load(self, pid: Any) -> torch.storage.TypedStorage:
        _, kind, key, _, count = pid[:5]
        dtype = kind.dtype if isinstance(kind, _Storage) else torch.uint8
        return self._storage_of(key, dtype, count)
