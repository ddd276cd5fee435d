"""Packing: every sequence once, nothing lost of it, well filled; compared with the best possible on small cases."""

import functools
import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from central.runtime.exits import BadRequest
from pretraining.data import pack
from pretraining.data.pack import metadata_file, pack_folder
from pretraining.data.verify import verify_file, verify_folder
from pretraining.data.workers import Workers
from pretraining.packing import pack_lengths, pack_rows, predictions_needed

ALONE = Workers(None, 1)


def fewest_packs(lengths: tuple[int, ...], seq_len: int) -> int:
    """Brute force: the first sequence goes with every possible pair of the others."""

    @functools.cache
    def best(left: tuple[int, ...]) -> int:
        if not left:
            return 0
        head, rest = left[0], left[1:]
        found = best(rest)
        for i in range(len(rest)):
            if head + rest[i] <= seq_len:
                without = rest[:i] + rest[i + 1 :]
                found = min(found, best(without))
                for j in range(i, len(without)):
                    if head + rest[i] + without[j] <= seq_len:
                        found = min(found, best(without[:j] + without[j + 1 :]))
        return found + 1

    return best(tuple(sorted(lengths, reverse=True)))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=120))
def test_every_sequence_once_and_none_too_long(lengths):
    lengths = np.array(lengths)
    packs = pack_lengths(lengths, 64)
    assert sorted(packs[packs >= 0]) == list(range(len(lengths)))
    assert (np.where(packs >= 0, lengths[packs], 0).sum(axis=1) <= 64).all()
    assert (packs[:, 0] >= 0).all() and ((packs[:, 1] >= 0) | (packs[:, 2] < 0)).all()  # no gap between


@settings(max_examples=120, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=9))
def test_near_the_best_possible(lengths):
    best = fewest_packs(tuple(lengths), 16)
    assert best <= len(pack_lengths(np.array(lengths), 16)) <= best + 1


@pytest.mark.parametrize("seed", range(3))
def test_fill_on_lengths_like_wikipedia(seed):
    rng = np.random.default_rng(seed)
    documents = np.clip(np.exp(rng.normal(5.6, 1.1, 60_000)), 5, 20_000).astype(int)
    full, rest = documents // 509, documents % 509
    lengths = np.concatenate([np.full(full.sum(), 512), rest[rest > 2] + 3])
    packs = pack_lengths(lengths, 512)
    assert lengths.sum() / (len(packs) * 512) >= 0.99


def sequences(count: int, seq_len: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows like prepare.py's, of random lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, seq_len + 1, count)
    real = np.arange(seq_len) < lengths[:, None]
    positions = np.zeros((count, 20), np.int32)
    for row, length in enumerate(lengths):
        chosen = np.sort(rng.choice(np.arange(1, length - 1), max(1, round(length * 0.15)), replace=False))[:20]
        positions[row, : len(chosen)] = chosen
    return {
        "input_ids": (rng.integers(5, 1000, (count, seq_len)) * real).astype(np.int32),
        "input_mask": real.astype(np.int8),
        "segment_ids": (rng.integers(0, 2, (count, seq_len)) * real).astype(np.int8),
        "masked_lm_positions": positions,
        "masked_lm_ids": (rng.integers(5, 1000, positions.shape) * (positions > 0)).astype(np.int32),
        "next_sentence_labels": rng.integers(0, 2, count).astype(np.int8),
    }


def unpack(packed: dict[str, np.ndarray], row: int) -> list[tuple]:
    """The sequences of a packed row, read by its bookkeeping alone."""
    found = []
    for slot in np.flatnonzero(packed["next_sentence_weights"][row]):
        places = np.flatnonzero(packed["input_mask"][row] == slot + 1)
        start = packed["next_sentence_positions"][row][slot]
        assert places[0] == start and (np.diff(places) == 1).all()
        assert packed["positions"][row][places].tolist() == list(range(len(places)))
        masked = packed["masked_lm_positions"][row]
        inside = (masked > 0) & (masked >= start) & (masked < start + len(places))
        found.append(
            (
                packed["input_ids"][row][places].tolist(),
                packed["segment_ids"][row][places].tolist(),
                (masked[inside] - start).tolist(),
                packed["masked_lm_ids"][row][inside].tolist(),
                int(packed["next_sentence_labels"][row][slot]),
            )
        )
    return found


def plain(rows: dict[str, np.ndarray], row: int) -> tuple:
    length = int(rows["input_mask"][row].sum())
    used = rows["masked_lm_positions"][row] > 0
    return (
        rows["input_ids"][row][:length].tolist(),
        rows["segment_ids"][row][:length].tolist(),
        rows["masked_lm_positions"][row][used].tolist(),
        rows["masked_lm_ids"][row][used].tolist(),
        int(rows["next_sentence_labels"][row]),
    )


def test_unpacking_gives_the_sequences_back():
    rows = sequences(200, 128)
    packs = pack_lengths(rows["input_mask"].sum(axis=1, dtype=int), 128)
    packed = pack_rows(rows, packs, 23)
    for number, members in enumerate(packs):
        assert unpack(packed, number) == [plain(rows, member) for member in members[members >= 0]]
    padding = packed["input_mask"] == 0
    assert not packed["input_ids"][padding].any() and not packed["positions"][padding].any()


def test_sequences_of_one_length_go_out_in_their_order():
    """On every machine: numpy's sort that is not stable depends on the processor."""
    lengths = np.random.default_rng(0).integers(5, 9, 500)
    order = [number for number in pack_lengths(lengths, 20).ravel().tolist() if number >= 0]
    for length in range(5, 9):
        numbers = [number for number in order if lengths[number] == length]
        assert numbers == sorted(numbers)


def test_slots_that_the_fullest_pack_needs():
    packs = np.array([[0, 1, -1], [2, -1, -1]])
    assert predictions_needed(np.array([3, 4, 5]), packs) == 7


def write_folder(folder: Path, files: int = 2) -> Path:
    folder.mkdir()
    for number in range(files):
        with h5py.File(folder / f"c_training_{number}.hdf5", "w") as file:
            for name, array in sequences(120, 128, seed=number).items():
                file[name] = array
    (folder / "vocab.txt").write_text("[PAD]\n")
    return folder


def test_the_step_packs_a_folder(tmp_path):
    source = write_folder(tmp_path / "plain")
    pack_folder(source, tmp_path / "packed", 1, ALONE)
    metadata = json.loads((tmp_path / "packed_metadata.json").read_text())
    assert metadata["sequences"] == 240 and metadata["avg_seq_per_sample"] == 240 / metadata["samples"]
    expected, found, filled = [], [], []
    for number in range(2):
        with h5py.File(tmp_path / "packed" / f"c_training_{number}.hdf5") as file:
            packed = {name: file[name][:] for name in file}
            assert file.attrs["sequences"] == 120 and file.attrs["packed"] == 1
        filled += (packed["input_mask"] != 0).tolist()
        assert packed["masked_lm_positions"].shape[1] == 23 and packed["next_sentence_labels"].shape[1] == 3
        found += [sequence for row in range(len(packed["input_ids"])) for sequence in unpack(packed, row)]
        expected += [plain(sequences(120, 128, seed=number), row) for row in range(120)]
        assert not verify_file(tmp_path / "packed" / f"c_training_{number}.hdf5").faults
    assert sorted(found) == sorted(expected)
    assert metadata["samples"] == len(filled) and metadata["fill"] == pytest.approx(np.mean(filled))
    assert (tmp_path / "packed" / "vocab.txt").exists()


def test_what_a_file_says_of_itself_goes_with_it_into_a_new_folder(tmp_path):
    source = write_folder(tmp_path / "plain", files=1)
    with h5py.File(source / "c_training_0.hdf5", "a") as file:
        file.attrs.update({"vocab_sha256": "ab" * 32, "random_seed": 12345})
    pack_folder(source, tmp_path / "new" / "folder", 1, ALONE)
    with h5py.File(tmp_path / "new" / "folder" / "c_training_0.hdf5") as file:
        assert file.attrs["vocab_sha256"] == "ab" * 32 and file.attrs["random_seed"] == 12345


def test_a_file_larger_than_the_memory_is_packed_in_pieces(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "plain", files=1)
    monkeypatch.setattr(pack, "WINDOW_POSITIONS", 50 * 128)
    monkeypatch.setattr(pack, "rows_per_chunk", lambda seq_len: 7)
    pack_folder(source, tmp_path / "packed", 1, ALONE)
    with h5py.File(tmp_path / "packed" / "c_training_0.hdf5") as file:
        packed = {name: file[name][:] for name in file}
        assert file["input_ids"].chunks[0] == 7
    found = [unpack(packed, row) for row in range(len(packed["input_ids"]))]
    rows = sequences(120, 128)
    expected = [plain(rows, row) for row in range(120)]
    assert sorted(sequence for members in found for sequence in members) == sorted(expected)
    place = {json.dumps(sequence): number for number, sequence in enumerate(expected)}
    windows = [{place[json.dumps(sequence)] // 50 for sequence in members} for members in found]
    assert all(len(window) == 1 for window in windows) and set.union(*windows) == {0, 1, 2}


def test_a_disk_too_small_is_refused_before_packing(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "plain", files=1)
    monkeypatch.setattr(pack, "BYTES_PER_POSITION", 1e12)
    with pytest.raises(BadRequest, match="packed files need about"):
        pack_folder(source, tmp_path / "packed", 1, ALONE)
    assert not list((tmp_path / "packed").iterdir()) and not (tmp_path / "packed_metadata.json").exists()


def test_same_bytes_again_and_nothing_redone(tmp_path):
    source = write_folder(tmp_path / "plain", files=1)
    for name in ("one", "two"):
        pack_folder(source, tmp_path / name, 1, ALONE)
    file = tmp_path / "one" / "c_training_0.hdf5"
    assert file.read_bytes() == (tmp_path / "two" / "c_training_0.hdf5").read_bytes()
    before = file.stat().st_mtime_ns
    (left_by_a_kill := tmp_path / "one" / "c_training_1.hdf5.123.tmp").touch()
    pack_folder(source, tmp_path / "one", 1, ALONE)
    assert file.stat().st_mtime_ns == before and not left_by_a_kill.exists()
    with pytest.raises(BadRequest, match="pack_seed"):
        pack_folder(source, tmp_path / "one", 2, ALONE)


@pytest.mark.parametrize(
    ("key", "value"),
    [("input_ids", 2**32 + 7), ("masked_lm_ids", -1), ("masked_lm_positions", 2**32 + 3), ("segment_ids", 256)]
    + [("input_mask", 257), ("next_sentence_labels", 257)],
)
def test_values_that_packing_would_wrap_are_refused(tmp_path, key, value):
    source = write_folder(tmp_path / "plain", files=1)
    path = source / "c_training_0.hdf5"
    with h5py.File(path, "a") as file:
        rows = file[key][:].astype(np.int64)
        rows.reshape(-1)[1] = value
        del file[key]
        file[key] = rows
    with pytest.raises(BadRequest, match=f"{path}: {key} has values outside of 0 to .* \\({value}\\)"):
        pack_folder(source, tmp_path / "packed", 1, ALONE)
    assert not list((tmp_path / "packed").glob("*.hdf5"))


def test_what_is_no_file_or_leads_nowhere_is_named(tmp_path):
    source = write_folder(tmp_path / "plain", files=1)
    os.mkfifo(source / "c_training_1.hdf5")
    for step in (lambda: pack_folder(source, tmp_path / "packed", 1, ALONE), lambda: verify_folder(source, ALONE)):
        with pytest.raises(BadRequest, match="c_training_1.hdf5: a pipe, socket or device where a file is due"):
            step()
    (source / "c_training_1.hdf5").unlink()
    with h5py.File(source / "c_training_0.hdf5", "a") as file:
        file.attrs["note"] = np.bytes_(b"caf\xe9")
        file.attrs["numbers"] = [1, 2]
        del file["segment_ids"]
        file["segment_ids"] = h5py.SoftLink("/nowhere")
    with pytest.raises(BadRequest, match="c_training_0.hdf5: no segment_ids in it"):
        pack_folder(source, tmp_path / "packed", 1, ALONE)
    assert verify_file(source / "c_training_0.hdf5").faults == (
        f"{source / 'c_training_0.hdf5'}: no segment_ids in it",
    )


def test_what_cannot_be_packed(tmp_path):
    source = write_folder(tmp_path / "plain", files=1)
    with pytest.raises(BadRequest, match="no \\*training"):
        pack_folder(tmp_path, tmp_path / "out", 1, ALONE)
    with pytest.raises(BadRequest, match="choose another"):
        pack_folder(source, source, 1, ALONE)
    pack_folder(source, tmp_path / "packed", 1, ALONE)
    with pytest.raises(BadRequest, match="packed already"):
        pack_folder(tmp_path / "packed", tmp_path / "again", 1, ALONE)
    damaged = source / "c_training_0.hdf5"
    with h5py.File(damaged) as file:
        name, rows = "segment_ids", file["segment_ids"][:]
    with h5py.File(damaged, "a") as file:
        del file[name]
        at = (
            file.create_dataset(name, data=rows, chunks=rows.shape, compression="gzip").id.get_chunk_info(0).byte_offset
        )
    data = bytearray(damaged.read_bytes())
    data[at + 10 : at + 90] = bytes(80)
    damaged.write_bytes(data)
    with pytest.raises(BadRequest, match="c_training_0.hdf5: damaged"):
        pack_folder(source, tmp_path / "other", 1, ALONE)
    damaged.write_bytes(b"no HDF5")
    with pytest.raises(BadRequest, match="c_training_0.hdf5: damaged"):
        pack_folder(source, tmp_path / "other", 1, ALONE)
    assert metadata_file(tmp_path / "x").name == "x_metadata.json"
