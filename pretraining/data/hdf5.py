"""Writing rows to HDF5 that any h5py reads: the same bytes for the same rows, complete under its name or absent.

Chunks are compressed here and handed over ready-made. They are the library's own shuffle + gzip format, but the deflate
stream is made byte plane by byte plane: of a 4-byte id two planes are zero and the lowest is noise to any compressor,
so it is stored as it is. That is several times faster than zlib over all of it, and no larger.
"""

import zlib
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from central.files import whole_or_absent

# Data sets of a pre-training file, as BERT, NVIDIA and Habana name them.
KEYS = (
    "input_ids",
    "input_mask",
    "segment_ids",
    "masked_lm_positions",
    "masked_lm_ids",
    "next_sentence_labels",
)
CHUNK_VALUES = 1 << 17  # values in a chunk: 512 KiB of int32, half of HDF5's default chunk cache
MOSTLY_USED = 0.8  # share of bytes other than 0 from which a lowest byte plane is stored as it is


def write_rows(
    path: Path,
    num_rows: int,
    chunk_rows: int,
    blocks: Iterable[dict[str, np.ndarray]],
    attributes: dict[str, object],
    counted: dict[str, str] | None = None,
) -> None:
    """Write `blocks` of equally named arrays, `num_rows` rows in all; an error leaves nothing behind.

    Every block but the last has a multiple of `chunk_rows` rows. `counted` names attributes and the array whose values
    other than 0 each of them counts.
    """
    with whole_or_absent(path) as unfinished, h5py.File(unfinished, "w", locking=False) as file:
        counted, start = counted or {}, 0
        counts = dict.fromkeys(counted, 0)
        datasets: dict[str, h5py.Dataset] = {}  # kept open: to find one by its name again costs time
        for block in blocks:
            for name, rows in block.items():
                if name not in datasets:
                    datasets[name] = _create_dataset(file, name, (num_rows, *rows.shape[1:]), rows.dtype, chunk_rows)
                _write_chunks(datasets[name], start, rows)
            for attribute in counts:
                counts[attribute] += int(np.count_nonzero(block[counted[attribute]]))
            start += len(rows)
        assert start == num_rows, (start, num_rows)
        file.attrs.update(attributes | counts)


def attribute(file: h5py.File, name: str) -> str | int | float | None:
    """An attribute that is one number or one text; None for any other, which is none of ours."""
    try:
        value = file.attrs[name]
        value = value.item() if isinstance(value, np.generic) else value
        value = value.decode() if isinstance(value, bytes) else value
    except (OSError, TypeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, str | int | float) else None


def member(file: h5py.File, name: str) -> h5py.Dataset | h5py.Group | None:
    """A member of a file; None for a link that leads nowhere, and for data that lie in another file.

    That one might be a pipe or a device, is not copied with this one, and changes unseen.
    """
    try:
        found = None if isinstance(file.get(name, getlink=True), h5py.ExternalLink) else file[name]
    except (KeyError, OSError, RuntimeError):
        return None
    lies_elsewhere = isinstance(found, h5py.Dataset) and (found.is_virtual or found.external)
    return None if lies_elsewhere else found


def outside(values: np.ndarray, stop: int) -> int | None:
    """The worst of integers that are not from 0 to `stop` - 1, as they are stored; None where all are."""
    if not values.size or values.min() >= 0 and values.max() < stop:
        return None
    return int(values.max()) if values.max() >= stop else int(values.min())


def rows_per_chunk(seq_len: int) -> int:
    """Rows of one chunk, the same for all datasets of a file."""
    return max(1, CHUNK_VALUES // seq_len)


def _create_dataset(
    file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype, chunk_rows: int
) -> h5py.Dataset:
    return file.create_dataset(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(min(chunk_rows, shape[0]), *shape[1:]),
        compression="gzip",
        compression_opts=1,
        shuffle=True,
        track_times=False,
    )


def _write_chunks(dataset: h5py.Dataset, start: int, rows: np.ndarray) -> None:
    chunk_rows = dataset.chunks[0]
    for first in range(0, len(rows), chunk_rows):
        chunk = rows[first : first + chunk_rows]
        if len(chunk) < chunk_rows:  # a chunk is whole in the file
            chunk = np.concatenate([chunk, np.zeros((chunk_rows - len(chunk), *rows.shape[1:]), rows.dtype)])
        offset = (start + first, *(0 for _ in rows.shape[1:]))
        dataset.id.write_direct_chunk(offset, deflate_planes(chunk))


def deflate_planes(chunk: np.ndarray) -> bytes:
    """The bytes that HDF5's shuffle and gzip filters would accept for this chunk."""
    planes = np.ascontiguousarray(chunk.reshape(-1).view(np.uint8).reshape(-1, chunk.itemsize).T)
    stream = [b"\x78\x01"]  # a zlib header (RFC 1950)
    for number, plane in enumerate(planes):
        is_noise = number == 0 and len(planes) > 1 and np.count_nonzero(plane) > MOSTLY_USED * plane.size
        level = 0 if is_noise else 1
        deflate = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
        stream.append(deflate.compress(plane))
        stream.append(deflate.flush(zlib.Z_FINISH if number == len(planes) - 1 else zlib.Z_FULL_FLUSH))
    stream.append(zlib.adler32(planes.data).to_bytes(4, "big"))
    return b"".join(stream)
