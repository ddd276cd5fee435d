"""Chunks made by hand: any reader gets back what was written, and a failure leaves nothing under a final name."""

import subprocess
import sys
import zlib

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pretraining.data.hdf5 import deflate_planes, rows_per_chunk, write_rows

ARRAYS = st.sampled_from([np.int32, np.int8, np.uint16]).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=1, max_dims=2, max_side=40))
)


@settings(max_examples=150, deadline=None)
@given(ARRAYS)
def test_the_stream_is_zlibs_of_shuffled_bytes(array):
    shuffled = array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize).T
    assert zlib.decompress(deflate_planes(array)) == shuffled.tobytes()


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), chunk_rows=st.integers(1, 12), chunks=st.integers(1, 3), seed=st.integers(0, 99))
def test_what_is_written_is_read(tmp_path_factory, rows, chunk_rows, chunks, seed):
    rng = np.random.default_rng(seed)
    arrays = {
        "ids": rng.integers(0, 30_000, (rows, 7)).astype(np.int32),
        "mask": rng.integers(0, 2, (rows, 7)).astype(np.int8),
        "labels": rng.integers(0, 2, rows).astype(np.int8),
    }
    step = chunk_rows * chunks
    blocks = ({name: array[start : start + step] for name, array in arrays.items()} for start in range(0, rows, step))
    path = tmp_path_factory.mktemp("h") / "x.hdf5"
    write_rows(path, rows, chunk_rows, blocks, {"seed": seed, "text": "é"})
    with h5py.File(path) as file:
        assert file.attrs["seed"] == seed and file.attrs["text"] == "é"
        for name, array in arrays.items():
            assert file[name].dtype == array.dtype and (file[name][:] == array).all()
            assert file[name].compression == "gzip" and file[name].shuffle


def test_same_rows_same_bytes_at_another_time(tmp_path):
    code = (
        "import sys, numpy as np; from pathlib import Path; from pretraining.data.hdf5 import write_rows;"
        "a = np.arange(3000, dtype=np.int32).reshape(100, 30);"
        "write_rows(Path(sys.argv[1]), 100, 16, iter([{'ids': a}]), {'name': 'x', 'value': 0.15})"
    )
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", code, tmp_path / name], check=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_error_in_the_middle_leaves_nothing(tmp_path):
    def blocks():
        yield {"ids": np.zeros((16, 4), np.int32)}
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_rows(tmp_path / "x.hdf5", 32, 16, blocks(), {})
    assert list(tmp_path.iterdir()) == []


def test_noise_is_no_larger_than_its_entropy(tmp_path):
    """Ids below 2**15 in 4 bytes: a byte of noise, one that compresses, two of zeros."""
    ids = np.random.default_rng(0).integers(0, 30_522, (1024, 128)).astype(np.int32)
    assert len(deflate_planes(ids)) < ids.size * 2


def test_chunks_fit_the_readers_cache():
    assert rows_per_chunk(128) * 128 * 4 <= 1 << 20 and rows_per_chunk(1 << 20) == 1
