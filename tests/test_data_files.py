"""Files that are whole or absent, and folders that a later run goes on with or leaves alone."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from central.files import ROOT, whole_or_absent, write_json, write_synced
from central.runtime.exits import BadRequest
from pretraining.data.documents import TextSettings
from pretraining.data.extract import extract
from pretraining.data.files import RECORD, changed_fields, check_space, own_folder
from pretraining.data.formats import FormSettings
from pretraining.data.hdf5 import write_rows
from pretraining.data.sources import describe_sources, find_sources
from pretraining.data.workers import Workers


def test_small_files_are_whole_or_absent(tmp_path):
    write_synced(tmp_path / "x", b"data")
    assert (tmp_path / "x").read_bytes() == b"data" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError):
        write_synced(tmp_path / "none" / "x", b"data")


def test_a_worker_of_a_killed_run_does_no_harm(tmp_path, monkeypatch):
    """It may finish a file that the next run is already writing again."""
    path = tmp_path / "x"
    late = whole_or_absent(path)
    late.__enter__().write_text("whole")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with whole_or_absent(path) as unfinished:
        unfinished.write_text("who")
        late.__exit__(None, None, None)
        assert path.read_text() == "whole"
        unfinished.write_text("whole")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_was_writing_goes_at_the_next_write(tmp_path):
    """A lock ends with the process that holds it, on whatever host that was."""
    killed = "import os, sys; from central.files import whole_or_absent; writing = whole_or_absent(sys.argv[1]); "
    killed += "writing.__enter__().write_text('half'); os.kill(os.getpid(), 9)"
    for name in ("run.json", "x.hdf5"):
        subprocess.run([sys.executable, "-c", killed, tmp_path / name], cwd=ROOT, check=False)
    assert len(left := sorted(tmp_path.iterdir())) == 2
    others = [tmp_path / name for name in ("run.json.1", "run.json.tmp", "run.json.a.tmp", "other.run.json.7.tmp")]
    for other in others:
        other.write_text("a stranger's")
    write_json(tmp_path / "run.json", {"a": 1})
    write_rows(tmp_path / "x.hdf5", 1, 1, [{"a": np.ones((1, 1), np.int32)}], {})
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1} and len(list(tmp_path.iterdir())) == 6


def test_room_is_told_in_a_unit_that_fits(tmp_path, capsys):
    check_space(tmp_path, "files", 23_800.0)
    assert capsys.readouterr().out.startswith("files: about 23 kB to write, ")
    with pytest.raises(BadRequest, match=r"files need about 1000000000\.0 GB, .* are free"):
        check_space(tmp_path, "files", 1e18)


def test_a_folder_goes_on_with_its_own_request_alone(tmp_path):
    folder = tmp_path / "out"
    own_folder(folder, {"seed": 1}, may_empty=False)
    (folder / "x").write_text("half made")
    own_folder(folder, {"seed": 1}, may_empty=False)
    with pytest.raises(BadRequest, match="holds something else"):
        own_folder(folder, {"seed": 2}, may_empty=False)
    assert (folder / "x").read_text() == "half made"
    own_folder(folder, {"seed": 2}, may_empty=True)
    assert [path.name for path in folder.iterdir()] == [RECORD] and json.loads((folder / RECORD).read_text()) == {
        "seed": 2
    }
    (folder / RECORD).unlink()
    (folder / "x").write_text("a stranger's")
    with pytest.raises(BadRequest, match="holds something else"):
        own_folder(folder, {"seed": 2}, may_empty=True)


def test_a_record_says_what_was_asked_for_and_no_more():
    assert changed_fields(None) is None and changed_fields(TextSettings()) == {}
    assert changed_fields(TextSettings(language="de", variant="zh-hant")) == {"language": "de", "variant": "zh-hant"}


def test_an_extraction_begun_before_records_had_a_version_goes_on(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("One sentence. Another one.")
    sources, text, folder = find_sources([str(tmp_path / "a.txt")], FormSettings()), TextSettings(), tmp_path / "out"
    folder.mkdir()
    record = {
        "sources": describe_sources(tuple(sources)),
        "dataset": "None",
        "text": "TextSettings(sentences='rules', language='en', text_column='text', encoding=None, variant=None)",
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1))
    (folder / "text_000000.txt").write_text("Hours of work.\n\n")
    for _ in range(2):  # the second time by the new record
        extract(sources, None, text, folder, Workers(None, 1))
        assert (folder / "text_000000.txt").read_text() == "Hours of work.\n\n"
        assert json.loads((folder / RECORD).read_text())["version"] == 1
    with pytest.raises(BadRequest, match="holds something else"):
        extract(sources, None, TextSettings(language="de"), folder, Workers(None, 1))
