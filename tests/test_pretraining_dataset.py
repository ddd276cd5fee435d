"""Order, reading ahead, layouts and damaged files of the HDF5 shards."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from pretraining_helpers import VOCAB_SIZE, make_columns, make_corpus, write_shard

from central.files import shards_of
from central.runtime.exits import BadRequest
from pretraining import dataset
from pretraining.batches import Masking, flat_micro_batch, static_micro_batch
from pretraining.dataset import (
    BatchShape,
    Limits,
    Prefetch,
    ShardReader,
    average_sequences_per_row,
    find_shards,
    open_shards,
    ranges,
    read_shard,
    steps,
)
from pretraining.evaluation import count_tokens, load_held_out, stored_counts
from pretraining.objective import OBJECTIVES, nsp_majority, unigram_loss

MLM_NSP = OBJECTIVES["mlm_nsp"]
LIMITS = Limits(VOCAB_SIZE, 32, 64, 5)


def reader_of(folder, seed=3):
    return ShardReader(open_shards(folder, "training", LIMITS), seed, LIMITS)


def key(rows):
    return [tuple(row) for row in rows.input_ids.tolist()]


def test_an_epoch_holds_every_row_once(tmp_path):
    corpus = make_corpus(tmp_path / "c", shards=3, rows=10)
    reader = reader_of(corpus)
    everything = sorted(row for shard in reader.shards for row in key(read_shard(shard, LIMITS)))
    first, second = key(reader.read(0, 30)), key(reader.read(30, 60))
    assert sorted(first) == sorted(second) == everything
    assert first != second


def test_order_is_a_function_of_seed_and_place(tmp_path):
    corpus = make_corpus(tmp_path / "c", shards=3, rows=10)
    whole = key(reader_of(corpus).read(0, 75))
    jumping = reader_of(corpus)
    assert [key(jumping.read(place, place + 1))[0] for place in (74, 3, 31, 0)] == [whole[i] for i in (74, 3, 31, 0)]
    assert key(reader_of(corpus, seed=4).read(0, 30)) != whole[:30]
    epoch, shard, row = jumping.locate(31)
    assert epoch == 1 and key(read_shard(jumping.shards[shard], LIMITS))[row] == whole[31]


def test_rows_are_named_so_that_they_can_be_found(tmp_path):
    """Every place of a stretch over shards and epochs, one at a time, against the names of the whole stretch."""
    reader = reader_of(make_corpus(tmp_path / "c", shards=3, rows=10))
    wanted = {}
    for place in range(7, 47):
        _, shard, row = reader.locate(place)
        wanted.setdefault(f"c_training_{shard}.hdf5", set()).add(row)
    named = {}
    for part in reader.describe(7, 47).split("; "):
        name, numbers = part.split(" rows ")
        for run in numbers.split(", "):
            first, _, last = run.partition("-")
            named.setdefault(name, set()).update(range(int(first), int(last or first) + 1))
    assert named == wanted
    assert ranges([9, 3, 7, 8, 1]) == "1, 3, 7-9"


class Interrupted(ShardReader):
    """Whenever an order is put away, another thread asks for a place of another epoch before anything else happens."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name in ("_plan", "_row_order") and self.__dict__.get("other_place"):
            place, self.other_place = self.other_place, None
            self.locate(place)
            self.other_place = place


def test_places_asked_for_by_two_threads_do_not_disturb_each_other(tmp_path):
    """The loop asks where a checkpoint stands while the thread that reads ahead is in the next epoch already."""
    corpus = make_corpus(tmp_path / "c", shards=3, rows=10)
    wanted = [reader_of(corpus).locate(place) for place in range(30)]
    found = []
    for place in range(30):
        reader = Interrupted(open_shards(corpus, "training", LIMITS), 3, LIMITS)
        reader.other_place = 47
        found.append(reader.locate(place))
    assert found == wanted


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("shards", [1, 3])
def test_any_number_of_ranks_shares_any_number_of_shards(tmp_path, world_size, shards):
    """The global batch of each step is the same rows in the same order, one shard and eight ranks included."""
    corpus = make_corpus(tmp_path / "c", shards=shards, rows=10)
    whole = reader_of(corpus).read(0, 32)
    shares = [BatchShape(rank, world_size, 8 // world_size, 1) for rank in range(world_size)]
    streams = [steps(reader_of(corpus), share, 0, 0, True, None, MLM_NSP) for share in shares]
    found = []
    for _ in range(4):
        for stream in streams:
            found += next(stream).micro_batches[0].input_ids.view(-1, 16).tolist()
    assert found == whole.input_ids.tolist()


def test_no_more_than_two_shards_stay_in_memory_and_each_is_read_once_an_epoch(tmp_path, monkeypatch):
    """Where the cache has no room: the shard in use and the next one."""
    corpus = make_corpus(tmp_path / "c", shards=5, rows=6)
    wanted = reader_of(corpus).read(0, 90).input_ids
    read = []
    monkeypatch.setattr(dataset, "CACHE_BYTES", 1)
    monkeypatch.setattr(dataset, "read_shard", lambda shard, limits: read.append(shard) or read_shard(shard, limits))
    reader = reader_of(corpus)
    for place in range(0, 90, 3):
        assert np.array_equal(reader.read(place, place + 3).input_ids, wanted[place : place + 3])
        assert len(reader._cache) <= 2
    assert 15 <= len(read) <= 16  # three epochs of five, and perhaps the first of the fourth


def test_steps_resume_at_a_place(tmp_path):
    corpus = make_corpus(tmp_path / "c")
    share = BatchShape(0, 1, 4, 2)
    masking = Masking(VOCAB_SIZE, 4, (0, 2, 3))
    whole = steps(reader_of(corpus), share, 0, 0, False, masking, MLM_NSP)
    wanted = [next(whole) for _ in range(8)]
    resumed = steps(reader_of(corpus), share, 5 * 8, 5, False, masking, MLM_NSP)
    for step in wanted[5:]:
        again = next(resumed)
        assert len(again.micro_batches) == len(step.micro_batches) == 2
        for a, b in zip(again.micro_batches, step.micro_batches):
            assert a.input_ids.equal(b.input_ids) and a.masked_positions.equal(b.masked_positions)
            assert a.lengths == b.lengths and a.masked_labels.equal(b.masked_labels)


def test_masks_drawn_anew_are_of_the_step_and_the_rank(tmp_path):
    """No two steps and no two ranks draw alike, and a run that goes on draws what it would have drawn."""
    corpus = make_corpus(tmp_path / "c")

    def draws(rank, steps_done):
        found = []

        def masking(rows, rng):
            found.append(int(rng.integers(2**60)))
            return rows

        share = BatchShape(rank, 2, 4, 1)
        stream = steps(reader_of(corpus), share, steps_done * 8, steps_done, False, masking, MLM_NSP)
        for _ in range(3):
            next(stream)
        return found

    assert len({*draws(0, 0), *draws(1, 0)}) == 6
    assert draws(0, 0)[1:] == draws(0, 1)[:2]


def test_flat_and_static_hold_the_same(tmp_path):
    rows = read_shard(open_shards(make_corpus(tmp_path / "c"), "training", LIMITS)[0], LIMITS)
    flat, static = flat_micro_batch(rows), static_micro_batch(rows)
    real = static.sequence_ids.view(-1) != 0
    assert flat.input_ids.equal(static.input_ids[real]) and sum(flat.lengths) == int(real.sum()) == rows.num_tokens
    used = static.masked_weights == 1
    assert flat.masked_labels.equal(static.masked_labels[used])
    assert flat.input_ids[flat.masked_positions].equal(static.input_ids[static.masked_positions[used]])
    assert static.masked_positions.shape == (len(rows) * rows.masked_positions.shape[1],)
    assert (flat.input_ids[flat.cls_positions] == 2).all()


def test_dynamic_masking_restores_and_draws_anew(tmp_path):
    rows = read_shard(open_shards(make_corpus(tmp_path / "c", rows=200), "training", LIMITS)[0], LIMITS)
    masked = Masking(VOCAB_SIZE, 4, (0, 2, 3))(rows, np.random.default_rng(1))

    def restored(rows):
        ids = rows.input_ids.copy()
        row, column = np.nonzero(rows.masked_positions)
        ids[row, rows.masked_positions[row, column]] = rows.masked_ids[row, column]
        return ids

    assert np.array_equal(restored(rows), restored(masked))
    assert not np.array_equal(rows.masked_positions, masked.masked_positions)
    row, column = np.nonzero(masked.masked_positions)
    assert not np.isin(masked.masked_ids[row, column], (0, 2, 3)).any()
    replaced = masked.input_ids[row, masked.masked_positions[row, column]] == 4
    assert abs(replaced.mean() - 0.8) < 0.06
    lengths = np.count_nonzero(rows.sequence_ids, axis=1)
    wanted = np.minimum(np.maximum(1, np.rint(0.15 * lengths)), 3)
    assert np.array_equal(np.count_nonzero(masked.masked_positions, axis=1), wanted)


def test_packed_files_are_read_as_they_are(tmp_path):
    columns = make_columns(2, 8, 2)
    mask = np.array([[1, 1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0, 0]], np.int8)
    columns |= {
        "input_mask": mask,
        "positions": np.array([[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 0, 0]], np.int16),
        "masked_lm_positions": np.array([[2, 6, 0, 0, 0], [3, 0, 0, 0, 0]], np.int32),
        "masked_lm_ids": np.array([[9, 8, 0, 0, 0], [7, 0, 0, 0, 0]], np.int32),
        "next_sentence_positions": np.array([[0, 4, 0], [0, 0, 0]], np.int32),
        "next_sentence_labels": np.array([[1, 0, -1], [1, -1, -1]], np.int8),
        "next_sentence_weights": np.array([[1, 1, 0], [1, 0, 0]], np.int8),
    }
    write_shard(tmp_path / "p" / "p_training_0.hdf5", columns)
    shards = open_shards(tmp_path / "p", "training", LIMITS)
    rows = read_shard(shards[0], LIMITS)
    batch = flat_micro_batch(rows)
    assert batch.lengths == (4, 4, 6) and batch.cls_positions.tolist() == [0, 4, 8]
    assert batch.next_sentence_labels.tolist() == [1, 0, 1]
    assert batch.masked_positions.tolist() == [2, 6, 11] and batch.masked_labels.tolist() == [9, 8, 7]
    assert batch.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    assert rows.num_sequences == 3
    assert average_sequences_per_row(tmp_path / "p", shards) == 1.2
    (tmp_path / "p_metadata.json").write_text(json.dumps({"avg_seq_per_sample": 1.5}))
    assert average_sequences_per_row(tmp_path / "p", shards) == 1.5


def write_habanas_folder(folder):
    """What pack_pretraining_data_pytorch.py of Model-References leaves: its names, types, widths and metadata."""
    columns = make_columns(3, 16, 3)
    there = (columns["masked_lm_positions"] != 0).sum(axis=1)
    masked = {name: np.pad(columns[name], ((0, 0), (0, 5))) for name in ("masked_lm_positions", "masked_lm_ids")}
    sequences = np.array([[0, 0, 0]] * 3, np.int32)
    packed = {
        "input_ids": columns["input_ids"],
        "input_mask": columns["input_mask"].astype(np.int32),
        "segment_ids": columns["segment_ids"],
        "positions": (np.arange(16) * columns["input_mask"]).astype(np.int32),
        **masked,
        "next_sentence_positions": sequences,
        "next_sentence_labels": np.array([[1, 0, 0], [0, 0, 0], [1, 0, 0]], np.int8),
        "next_sentence_weights": np.array([[1, 0, 0]] * 3, np.int32),
    }
    for part in (0, 1, 10):
        write_shard(folder / f"mixed_strategies_part_{part}.hdf5", packed)
    (folder.parent / f"{folder.name}_metadata.json").write_text(json.dumps({"avg_seq_per_sample": 1.25}))
    return 3 * int(there.sum())


def test_habanas_packed_folder_is_read_as_it_is(tmp_path, monkeypatch):
    """Names without "training", more slots for masked tokens than --max_predictions_per_seq, metadata beside it."""
    folder = tmp_path / "train_packed_new"
    masked = write_habanas_folder(folder)
    shards = open_shards(folder, "training", LIMITS)
    assert [shard.path.name for shard in shards] == [f"mixed_strategies_part_{part}.hdf5" for part in (0, 1, 10)]
    assert [shard.num_predictions for shard in shards] == [8, 8, 8]
    rows = reader_of(folder).read(0, 9)
    assert rows.masked_positions.shape == (9, 8) and rows.num_masked == masked and rows.num_sequences == 9
    assert average_sequences_per_row(folder, shards) == 1.25
    monkeypatch.chdir(folder)
    assert average_sequences_per_row(Path("."), shards) == 1.25
    assert find_shards(folder, "test") == []


def test_habanas_names_do_not_join_shards_that_are_named_as_training(tmp_path):
    folder = make_corpus(tmp_path / "c", shards=1)
    write_habanas_folder(folder)
    assert [path.name for path in find_shards(folder, "training")] == ["c_training_0.hdf5"]


@pytest.mark.parametrize("corpus", ["latest", "training", "test", "x_training_y", "a.test.b"])
def test_a_corpus_that_is_called_as_a_split_keeps_what_is_held_out(corpus):
    """By either word alone the training would have been on the test shards, or the evaluation on those of training."""
    training, test = [f"{corpus}_training_{n}.hdf5" for n in range(2)], [f"{corpus}_test_{n}.hdf5" for n in range(2)]
    assert (shards_of([*training, *test], "training"), shards_of([*training, *test], "test")) == (training, test)


HUGE = (f'{{"avg_seq_per_sample": 1{"0" * 400}}}', '{"avg_seq_per_sample": ' + "[" * 3000 + "]" * 3000 + "}")


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"avg_seq_per_sample": "x"}', '{"avg_seq_per_sample": NaN}', "{", *HUGE]
)
def test_metadata_without_an_average_is_named(tmp_path, content):
    folder = tmp_path / "packed"
    write_habanas_folder(folder)
    path = tmp_path / "packed_metadata.json"
    path.write_text(content)
    with pytest.raises(BadRequest, match=f"{path}: .*avg_seq_per_sample"):
        average_sequences_per_row(folder, open_shards(folder, "training", LIMITS))


def test_nvidias_types_are_read(tmp_path):
    columns = {name: values.astype(np.int64) for name, values in make_columns(4, 16, 3).items()}
    shard = write_shard(tmp_path / "f" / "books_wiki_en_corpus_training_0.hdf5", columns)
    rows = read_shard(open_shards(shard.parent, "training", LIMITS)[0], LIMITS)
    assert rows.input_ids.dtype == np.int32 and rows.sequence_ids.dtype == np.int8


def spoil(name, change):
    def spoiled(columns):
        columns[name] = change(columns[name])

    return spoiled


def put(value):
    def changed(values):
        values = values.astype(np.uint64 if value >= 2**63 else np.int64)
        values.reshape(-1)[1] = value
        return values

    return changed


@pytest.mark.parametrize(
    ("spoiled", "fault"),
    [
        (lambda columns: columns.pop("segment_ids"), "no dataset segment_ids"),
        (spoil("input_ids", lambda v: v.astype(np.float32)), "input_ids float32"),
        (spoil("input_ids", lambda v: v[:-1]), "wrong shape"),
        (spoil("input_mask", lambda v: v[:, :-1]), "input_mask of the wrong shape"),
        (spoil("masked_lm_ids", lambda v: v[:, :-1]), "masked_lm_ids of the wrong shape"),
        (spoil("next_sentence_labels", lambda v: np.stack([v, v], 1)), "next_sentence_labels of the wrong shape"),
        (
            lambda c: c.update({f"masked_lm_{n}": c[f"masked_lm_{n}"][:, 0] for n in ("ids", "positions")}),
            "wrong shape",
        ),
        (spoil("input_ids", put(VOCAB_SIZE)), f"input_ids has ids outside the vocabulary ({VOCAB_SIZE}"),
        (spoil("input_ids", put(-1)), "ids outside the vocabulary (-1"),
        (spoil("masked_lm_ids", put(5000)), "masked_lm_ids has ids outside the vocabulary (5000"),
        (spoil("masked_lm_positions", put(16)), "masked_lm_positions has positions outside the row (16"),
        (spoil("segment_ids", put(2)), "segments other than"),
        (spoil("next_sentence_labels", put(3)), "labels other than"),
        (spoil("input_mask", lambda v: v * 0), "rows without a token"),
        # Values that a narrower type would wrap into legal ones: 7, 3, 0, 1 and 0.
        (spoil("input_ids", put(2**32 + 7)), f"input_ids has ids outside the vocabulary ({2**32 + 7}"),
        (spoil("input_ids", put(2**63 + 7)), f"input_ids has ids outside the vocabulary ({2**63 + 7}"),
        (spoil("masked_lm_positions", put(2**32 + 3)), f"positions outside the row ({2**32 + 3}"),
        (spoil("masked_lm_ids", put(2**32 + 9)), f"masked_lm_ids has ids outside the vocabulary ({2**32 + 9}"),
        (spoil("segment_ids", put(256)), "segments other than 0 and 1 (256"),
        (spoil("next_sentence_labels", put(257)), "labels other than 0 and 1 (257"),
        (spoil("input_mask", put(257)), "input_mask has no 0 or 1 (257"),
        (spoil("input_mask", put(2)), "input_mask has no 0 or 1 (2"),
        (spoil("masked_lm_positions", lambda v: v * 0), "no token of its 6 rows is masked"),
    ],
)
def test_damaged_shards_are_named(tmp_path, spoiled, fault):
    corpus = make_corpus(tmp_path / "c")
    columns = make_columns(6, 16, 3)
    spoiled(columns)
    bad = write_shard(corpus / "c_training_9.hdf5", columns)
    with pytest.raises(BadRequest) as refused:
        reader_of(corpus).check_first()
    assert len(refused.value.problems) == 1
    assert refused.value.problems[0].startswith(f"{bad}: ") and fault in refused.value.problems[0]


def test_packed_values_that_would_wrap_are_named(tmp_path):
    corpus = make_corpus(tmp_path / "c", shards=0)
    for number, (name, value) in enumerate(
        {"positions": 2**32, "next_sentence_positions": 2**32 + 1, "input_mask": 256 + 1}.items()
    ):
        columns = packed_columns(6)
        columns[name] = put(value)(columns[name])
        write_shard(corpus / f"c_training_{number}.hdf5", columns)
    with pytest.raises(BadRequest) as refused:
        reader_of(corpus).check_first()
    assert len(refused.value.problems) == 3
    for problem, value in zip(refused.value.problems, (2**32, 2**32 + 1, 257)):
        assert f"({value}, limit" in problem


def packed_columns(rows):
    """Rows of one sequence each in the packed layout, with slots for three."""
    columns = make_columns(rows, 16, 3)
    return columns | {
        "positions": np.tile(np.arange(16, dtype=np.int16), (rows, 1)),
        "next_sentence_positions": np.zeros((rows, 3), np.int16),
        "next_sentence_labels": np.stack([columns["next_sentence_labels"], *[np.full(rows, -1)] * 2], 1),
        "next_sentence_weights": np.tile(np.array([1, 0, 0], np.int8), (rows, 1)),
    }


def test_packed_and_plain_shards_side_by_side_are_refused(tmp_path):
    corpus = make_corpus(tmp_path / "c", shards=1)
    write_shard(corpus / "c_training_1.hdf5", packed_columns(6))
    with pytest.raises(BadRequest, match=r"packed shards \(c_training_1\.hdf5\) and plain ones side by side"):
        open_shards(corpus, "training", LIMITS)


def test_a_few_rows_without_a_mask_are_said_and_drawn_masks_do_not_ask(tmp_path):
    corpus = make_corpus(tmp_path / "c", shards=1, rows=6)
    columns = make_columns(6, 16, 3)
    columns["masked_lm_positions"][:2] = 0
    write_shard(corpus / "c_training_0.hdf5", columns)
    assert reader_of(corpus).check_first()[0].startswith("2 rows of the first shards have no masked token")
    columns["masked_lm_positions"][:] = 0
    write_shard(corpus / "c_training_0.hdf5", columns)
    drawn = Limits(VOCAB_SIZE, 32, 64, 5, masks_drawn=True)
    assert ShardReader(open_shards(corpus, "training", drawn), 3, drawn).check_first() == []


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda path: path.symlink_to("/not/mounted/a.hdf5"), "a link to /not/mounted/a.hdf5, which is not there"),
        (lambda path: path.mkdir(), "a folder where a file is due"),
        (lambda path: os.mkfifo(path), "a pipe, socket or device where a file is due"),
        (lambda path: path.symlink_to("/dev/zero"), "a pipe, socket or device where a file is due"),
    ],
    ids=["link", "folder", "pipe", "device"],
)
@pytest.mark.parametrize("split", ["training", "test"])
def test_a_shard_that_is_no_file_is_never_passed_over(tmp_path, make, fault, split):
    corpus = make_corpus(tmp_path / "c")
    make(corpus / f"c_{split}_9.hdf5")
    with pytest.raises(BadRequest, match=f"c_{split}_9.hdf5: {fault}"):
        open_shards(corpus, split, LIMITS)


@pytest.mark.parametrize("rows", [6, 3], ids=["other rows", "fewer rows"])
def test_a_shard_that_changes_during_a_training_is_named(tmp_path, rows):
    corpus = make_corpus(tmp_path / "c", shards=2, rows=6)
    reader = reader_of(corpus)
    for path in corpus.glob("*training*"):
        write_shard(path, make_columns(rows, 16, 3, seed=99))
    with pytest.raises(ValueError, match="was written to since this run began"):
        reader.read(0, 6)


@pytest.mark.parametrize("link", [h5py.SoftLink("/nowhere"), h5py.ExternalLink("missing.hdf5", "/x")])
def test_links_inside_a_file_that_lead_nowhere_are_named(tmp_path, link):
    corpus = make_corpus(tmp_path / "c", shards=1)
    with h5py.File(corpus / "c_training_0.hdf5", "a") as file:
        del file["segment_ids"]
        file["segment_ids"] = link
        file["of no use"] = h5py.SoftLink("/nowhere")
    with pytest.raises(BadRequest, match=r"c_training_0\.hdf5: segment_ids: a link to what is not there"):
        open_shards(corpus, "training", LIMITS)


@pytest.mark.parametrize("how", ["link", "link to a pipe", "raw", "virtual"])
def test_data_that_lie_in_another_file_are_refused(tmp_path, how):
    """A pipe is waited for, what /dev/zero holds was trained on, and a change of the other file is not seen."""
    corpus = make_corpus(tmp_path / "c", shards=1)
    other = tmp_path / "other.h5"
    with h5py.File(corpus / "c_training_0.hdf5", "a") as file:
        segments = file["segment_ids"][:]
        del file["segment_ids"]
        with h5py.File(other, "w") as elsewhere:
            elsewhere["x"] = segments
        if how == "raw":
            size = (str(other), 0, segments.nbytes)
            file.create_dataset("segment_ids", segments.shape, segments.dtype, external=[size])
        elif how == "virtual":
            layout = h5py.VirtualLayout(segments.shape, segments.dtype)
            layout[:] = h5py.VirtualSource(str(other), "x", segments.shape)
            file.create_virtual_dataset("segment_ids", layout)
        else:
            file["segment_ids"] = h5py.ExternalLink(str(other), "/x")
    if how == "link to a pipe":
        other.unlink()
        os.mkfifo(other)
    with pytest.raises(BadRequest, match="segment_ids: a link to what is not there, or to another file"):
        open_shards(corpus, "training", LIMITS)


def test_attributes_that_are_no_text_are_named_where_they_matter(tmp_path):
    corpus = make_corpus(tmp_path / "c", shards=1)
    path = corpus / "c_training_0.hdf5"
    with h5py.File(path, "a") as file:
        file.attrs["somebody's"] = [1, 2]
        file.attrs["note"] = np.bytes_(b"caf\xe9")
    assert open_shards(corpus, "training", LIMITS)[0].attributes == {}
    for value in ([1, 2], np.bytes_(b"caf\xe9"), 7):
        with h5py.File(path, "a") as file:
            file.attrs["vocab_sha256"] = value
        with pytest.raises(BadRequest, match=f"{path}: the attribute vocab_sha256 is no text"):
            open_shards(corpus, "training", LIMITS)


def test_shards_of_other_widths_are_named_and_not_met_in_the_middle_of_a_training(tmp_path):
    corpus = make_corpus(tmp_path / "c", shards=1, max_predictions=3)
    write_shard(corpus / "c_training_1.hdf5", make_columns(6, 16, 4))
    with pytest.raises(BadRequest, match=r"shards with \[3, 4\] slots for masked tokens side by side"):
        open_shards(corpus, "training", LIMITS)


def test_a_shard_one_may_not_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refusing(*_):
        raise PermissionError(13, "Permission denied")

    corpus = make_corpus(tmp_path / "c", shards=1)
    monkeypatch.setattr(h5py, "File", refusing)
    with pytest.raises(BadRequest, match=r"c_training_0\.hdf5: cannot be read \(permission denied\): allow it"):
        open_shards(corpus, "training", LIMITS)


def test_all_damaged_shards_are_named_together(tmp_path):
    corpus = make_corpus(tmp_path / "c", shards=4)
    whole = (corpus / "c_training_1.hdf5").read_bytes()
    (corpus / "c_training_1.hdf5").write_bytes(whole[: len(whole) // 2])
    (corpus / "c_training_2.hdf5").write_bytes(b"")
    write_shard(corpus / "c_training_3.hdf5", {name: values[:0] for name, values in make_columns(2, 16, 3).items()})
    with pytest.raises(BadRequest) as refused:
        open_shards(corpus, "training", LIMITS)
    assert [problem.split(":")[0] for problem in refused.value.problems] == [
        str(corpus / f"c_training_{i}.hdf5") for i in (1, 2, 3)
    ]
    assert "holds no row" in refused.value.problems[2]


def test_folders_without_shards_say_where_there_are_some(tmp_path):
    make_corpus(tmp_path / "inner")
    with pytest.raises(BadRequest, match="there are some in .*inner"):
        open_shards(tmp_path, "training", LIMITS)
    with pytest.raises(BadRequest, match="no such folder"):
        open_shards(tmp_path / "missing", "training", LIMITS)


@pytest.mark.parametrize(
    ("limits", "fault"),
    [
        (Limits(VOCAB_SIZE, 8, 64, 5), "longer than --max_seq_length 8"),
        (Limits(VOCAB_SIZE, 32, 8, 5), "the model has 8 positions"),
    ],
)
def test_rows_too_long_are_refused(tmp_path, limits, fault):
    with pytest.raises(BadRequest, match=fault):
        open_shards(make_corpus(tmp_path / "c", shards=1), "training", limits)


def test_a_damaged_shard_met_late_is_named(tmp_path, monkeypatch):
    """Contents beyond the first check are looked at when a shard is read, in the thread that reads ahead."""
    monkeypatch.setattr("pretraining.dataset.CHECKED_BYTES", 0)
    corpus = make_corpus(tmp_path / "c", shards=2)
    for path in corpus.glob("*training*"):
        with h5py.File(path, "r+") as file:
            file["input_ids"][3, 3] = 9999
    reader = reader_of(corpus)
    reader.check_first()
    batches = Prefetch(steps(reader, BatchShape(0, 1, 4, 1), 0, 0, False, None, MLM_NSP))
    with pytest.raises(BadRequest, match=r"c_training_\d\.hdf5: input_ids has ids outside"):
        for _ in range(12):
            next(batches)
    batches.close()


def test_prefetch_keeps_ahead_and_in_order():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    ahead = Prefetch(items(), depth=2)
    assert next(ahead) == 0
    time.sleep(0.3)
    assert 3 <= len(made) <= 4
    assert [next(ahead) for _ in range(5)] == [1, 2, 3, 4, 5]
    ahead.close()


def test_unigram_baseline_by_hand(tmp_path):
    corpus = make_corpus(tmp_path / "c", shards=1, rows=3)
    shards = open_shards(corpus, "training", LIMITS)
    rows = read_shard(shards[0], LIMITS)
    assert stored_counts(corpus, VOCAB_SIZE) is None
    counts = count_tokens(shards, LIMITS)
    ids = rows.input_ids.copy()
    by_hand = np.zeros(VOCAB_SIZE, int)
    for row in range(3):
        for position, label in zip(rows.masked_positions[row], rows.masked_ids[row]):
            if position:
                ids[row, position] = label
        for column in range(1, 16):
            if rows.sequence_ids[row, column]:
                by_hand[ids[row, column]] += 1
    assert np.array_equal(counts, by_hand)
    stored = np.arange(VOCAB_SIZE)
    np.save(corpus / "token_counts.npy", stored)
    assert np.array_equal(stored_counts(corpus, VOCAB_SIZE), stored)
    for broken in (b"", b"\x93NUMPY\x01\x00", np.arange(3), np.full(VOCAB_SIZE, -1), np.full(VOCAB_SIZE, 0.5)):
        if isinstance(broken, bytes):
            (corpus / "token_counts.npy").write_bytes(broken)
        else:
            np.save(corpus / "token_counts.npy", broken)
        with pytest.raises(BadRequest, match=r"token_counts\.npy: .*delete it"):
            stored_counts(corpus, VOCAB_SIZE)
    labels = [label for p, label in zip(rows.masked_positions.flat, rows.masked_ids.flat) if p]
    wanted = -np.mean([np.log((stored[label] + 1) / (stored.sum() + VOCAB_SIZE)) for label in labels])
    assert unigram_loss(rows, stored) == pytest.approx(wanted)


@pytest.mark.parametrize(("labels", "share"), [((1, 1, 1, 0, 1), 0.8), ((0, 0, 1, 0, 0, 0), 5 / 6), ((1, 0), 0.5)])
def test_next_sentence_majority_by_hand(tmp_path, labels, share):
    """Of all ranks' rows, whichever rank asks."""
    corpus = make_corpus(tmp_path / "c", shards=1, rows=3, test=0)
    columns = make_columns(len(labels), 16, 3) | {"next_sentence_labels": np.array(labels, np.int8)}
    write_shard(corpus / "c_test_0.hdf5", columns)
    shards = open_shards(corpus, "test", LIMITS)
    for rank in range(2):
        held_out = load_held_out(shards, LIMITS, rank, 2, np.ones(VOCAB_SIZE), MLM_NSP)
        assert held_out.baselines["eval_nsp_majority"] == pytest.approx(share)
    rows = read_shard(shards[0], LIMITS)
    filled = replace(rows, next_sentence_weights=np.arange(len(labels))[:, None] < 2)  # the rest holds no sequence
    assert nsp_majority(filled) == max(np.mean(labels[:2]), 1 - np.mean(labels[:2]))
