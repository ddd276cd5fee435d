"""Test double of the reader that Habana's lazy mode puts in the place of torch's weights-only unpickler.

It reads every pickle protocol, and has a list of classes of its own: `torch.serialization.safe_globals` adds nothing.
"""

import collections
import functools
import pickle

import torch


@functools.lru_cache(maxsize=1)
def _get_allowed_globals() -> dict[str, object]:
    rebuild = (
        "parameter tensor tensor_v2 tensor_v3 sparse_tensor meta_tensor_no_storage nested_tensor"  # of torch._utils
    )
    widths = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "complex64", "complex128")
    allowed = {
        "collections.OrderedDict": collections.OrderedDict,
        "torch.nn.parameter.Parameter": torch.nn.Parameter,
        "torch.serialization._get_layout": torch.serialization._get_layout,
        "torch.Size": torch.Size,
        "torch.Tensor": torch.Tensor,
        "torch._tensor._rebuild_from_type_v2": torch._tensor._rebuild_from_type_v2,
    }
    allowed |= {f"torch.{name}": getattr(torch, name) for name in widths}
    allowed |= {f"torch._utils._rebuild_{name}": getattr(torch._utils, f"_rebuild_{name}") for name in rebuild.split()}
    for storage in torch._storage_classes:
        old = storage not in (torch.storage.TypedStorage, torch.storage.UntypedStorage)
        kind = torch.serialization.StorageType(storage.__name__) if old else storage
        allowed[f"{storage.__module__}.{storage.__name__}"] = kind
    return allowed


class Unpickler(pickle.Unpickler):
    def __init__(self, file, *, encoding: str = "bytes"):
        super().__init__(file, encoding=encoding)

    def find_class(self, module: str, name: str):
        path = f"{module}.{name}"
        if path not in _get_allowed_globals():
            raise RuntimeError(f"Unsupported class {path}")
        return _get_allowed_globals()[path]


def load(file, *, encoding: str = "ASCII"):
    return Unpickler(file, encoding=encoding).load()
