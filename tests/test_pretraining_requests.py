"""Requests that run_pretraining.py must refuse: one line, the thing and the remedy, exit 2, nothing lost."""

import contextlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from pretraining_helpers import (
    ROOT,
    SCRIPT,
    VOCAB_SIZE,
    as_earlier_version,
    call,
    checkpoints,
    environment,
    make_corpus,
    run_script,
    script_argv,
    small_disk,
    write_config,
    write_vocabulary,
)

from central.runtime.checkpoints import is_complete
from central.runtime.device import Cpu, Device, open_device
from central.runtime.exits import BadRequest
from central.runtime.rank import Rank
from pretraining import model_stats
from pretraining.modeling import BertConfig
from pretraining.reports import Console, read_log
from pretraining.vocabulary import find_vocabulary

NESTED = b'{"a":' * 3000 + b"1" + b"}" * 3000


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    short = make_corpus(folder / "short", seq_len=16, max_predictions=3)
    long = make_corpus(folder / "long", seq_len=32, max_predictions=5)
    return short, long, write_config(folder / "config.json")


@pytest.fixture(scope="module")
def whole_run(corpora, tmp_path_factory):
    """Both phases, 6 steps each."""
    short, long, config = corpora
    out = tmp_path_factory.mktemp("whole")
    assert call(script_argv(short, config, out)) == 0
    assert call(script_argv(long, config, out, phase2=True, resume_from_checkpoint=True)) == 0
    return (out,)


def refused(words) -> list[str]:
    with pytest.raises(BadRequest) as error:
        call(words)
    assert all("\n" not in problem for problem in error.value.problems)
    return list(error.value.problems)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"fp16": True}, "--fp16: not supported, use --hmp"),
        ({"train_batch_size": 9}, "not a multiple of --gradient_accumulation_steps"),
        ({"max_steps": 0}, "--max_steps"),
        ({"max_steps": "inf"}, "--max_steps inf: expected a whole number from 1"),
        ({"max_predictions_per_seq": -1}, "--max_predictions_per_seq -1: expected a whole number from 1"),
        ({"learning_rate": "inf"}, "--learning_rate"),
        ({"warmup_proportion": 1.5}, "--warmup_proportion"),
        ({"learning_rate": 0}, "--learning_rate"),
        ({"save_total_limit": 0}, "--save_total_limit"),
        ({"use_habana": True}, "two devices"),
        ({"input_dir": "/nowhere"}, "--input_dir /nowhere: not found"),
        ({"output_dir": "/o\nut"}, "--output_dir '/o\\nut': expected a path, without line ends in it"),
        ({"json_summary": "/o\nut/log"}, "--json-summary '/o\\nut/log': expected a path"),
        ({"max_seq_length": 8}, "longer than --max_seq_length 8"),
        ({"max_seq_length": 2}, "--max_seq_length 2: expected a whole number from 5, for [CLS] a [SEP] b [SEP]"),
        ({"config_file": "/dev/zero"}, "--config_file /dev/zero: not a regular file"),
        ({"vocab_file": "/dev/zero"}, "--vocab_file /dev/zero: not a regular file"),
        ({"init_checkpoint": "/dev/zero"}, "--init_checkpoint /dev/zero: not a regular file"),
        ({"json_summary": "/dev/null"}, "--json-summary /dev/null: not a regular file"),
        ({"seed": -1}, "--seed -1: expected a whole number from 0, below 2**32"),
        ({"seed": 2**32}, "--seed 4294967296: expected a whole number from 0, below 2**32"),
        ({"train_batch_size": 10**400, "gradient_accumulation_steps": 1}, "a micro-batch of"),
        ({"phase2": True, "resume_from_checkpoint": True}, "run phase 1 first"),
        ({"resume_from_checkpoint": True, "resume_step": 4}, "no checkpoint of step 4"),
        ({"eval_dir": "/tmp"}, "no file *test*.hdf5"),
    ],
)
def test_requests_that_cannot_run(corpora, tmp_path, flags, words):
    problems = refused(script_argv(corpora[0], corpora[2], tmp_path, **flags))
    assert any(words in problem for problem in problems), problems
    assert not any(tmp_path.iterdir())


def test_problems_of_a_request_are_told_together_and_exit_2(corpora, tmp_path):
    words = script_argv(corpora[0], corpora[2], tmp_path, fp16=True, max_steps=0, learning_rate=-1)
    done = run_script(words)
    assert done.returncode == 2 and done.stderr.count("error: ") == 3 and "Traceback" not in done.stderr


def test_a_used_folder_needs_the_resume_flag(whole_run, corpora):
    (problem,) = refused(script_argv(corpora[0], corpora[2], whole_run[0]))
    assert "--resume_from_checkpoint" in problem and "another --output_dir" in problem


def test_vocabulary_must_fit(corpora, tmp_path):
    config = write_config(tmp_path / "other.json", vocab_size=VOCAB_SIZE + 3)
    (problem,) = refused(script_argv(corpora[0], config, tmp_path))
    assert f"vocab_size {VOCAB_SIZE + 3}" in problem and f"{VOCAB_SIZE} tokens" in problem
    corpus = make_corpus(tmp_path / "marked", shards=1)
    with h5py.File(corpus / "marked_training_0.hdf5", "r+") as file:
        file.attrs["vocab_sha256"] = "0" * 64
    (problem,) = refused(script_argv(corpus, corpora[2], tmp_path))
    assert "another vocabulary" in problem


def test_a_named_size_takes_the_vocabulary_of_the_data(corpora, tmp_path):
    config = ROOT / "pretraining" / "bert_tiny_config.json"
    assert call(script_argv(corpora[0], config, tmp_path, max_steps=1)) == 0
    written = json.loads((checkpoints(tmp_path)[-1] / "config.json").read_text())
    assert {**written, "vocab_size": 30522}.items() >= json.loads(config.read_text()).items()
    assert written["vocab_size"] == VOCAB_SIZE


def test_a_checkpoint_of_another_vocabulary_is_refused(whole_run, corpora, tmp_path):
    corpus = make_corpus(tmp_path / "other")
    tokens = (corpus / "vocab.txt").read_text().replace("w7\n", "seven\n")
    (corpus / "vocab.txt").write_text(tokens)
    out = tmp_path / "out"
    shutil.copytree(whole_run[0], out)
    (problem,) = refused(script_argv(corpus, corpora[2], out, resume_from_checkpoint=True, phase2=True, max_steps=20))
    assert "another vocabulary" in problem


def test_weights_of_another_vocabulary_are_no_start(whole_run, corpora, tmp_path):
    corpus = make_corpus(tmp_path / "other")
    (corpus / "vocab.txt").write_text((corpus / "vocab.txt").read_text().replace("w7\n", "seven\n"))
    (problem,) = refused(script_argv(corpus, corpora[2], tmp_path, init_checkpoint=checkpoints(whole_run[0])[0]))
    assert "another vocabulary" in problem


def hugging_face_folder(folder, **changes):
    """A small BERT as transformers saves it, with its tokenizer in tokenizer.json only."""
    import transformers

    write_vocabulary(folder)
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "vocab.txt").unlink()
    config = json.loads(write_config(folder / "config.json", **changes).read_text())
    transformers.BertForPreTraining(transformers.BertConfig(**config)).save_pretrained(folder)
    return folder


def test_a_hugging_face_folder_of_another_vocabulary_is_no_start(corpora, tmp_path):
    folder = hugging_face_folder(tmp_path)
    assert call(script_argv(corpora[0], corpora[2], tmp_path / "out", init_checkpoint=folder, max_steps=1)) == 0
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"w7"', '"seven"'))
    (problem,) = refused(script_argv(corpora[0], corpora[2], tmp_path / "new", init_checkpoint=folder))
    assert str(folder) in problem and "another vocabulary" in problem


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 4}, "num_attention_heads is 4, --config_file has 2"),  # weights of the same shapes
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
        ({"hidden_size": 64}, "hidden_size is 64, --config_file has 32: a model of another size"),
    ],
)
def test_a_hugging_face_folder_of_another_architecture_is_no_start(corpora, tmp_path, changes, words):
    folder = hugging_face_folder(tmp_path, **changes)
    (problem,) = refused(script_argv(corpora[0], corpora[2], tmp_path / "new", init_checkpoint=folder))
    assert str(folder) in problem and words in problem


def test_a_model_of_another_kind_is_no_start(corpora, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    (problem,) = refused(script_argv(corpora[0], corpora[2], tmp_path / "new", init_checkpoint=tmp_path))
    assert "a model of type roberta, not bert" in problem
    (tmp_path / "config.json").write_text("{")
    (problem,) = refused(script_argv(corpora[0], corpora[2], tmp_path / "new", init_checkpoint=tmp_path))
    assert "config.json: cannot be read" in problem
    (tmp_path / "config.json").write_bytes(NESTED)
    (problem,) = refused(script_argv(corpora[0], corpora[2], tmp_path / "new", init_checkpoint=tmp_path))
    assert "config.json: cannot be read (nested too deep)" in problem
    (tmp_path / "config.json").write_text('[["model_type", "bert"]]')
    (problem,) = refused(script_argv(corpora[0], corpora[2], tmp_path / "new", init_checkpoint=tmp_path))
    assert "config.json: cannot be read (but a list)" in problem


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("what", ["link", "loop", "pipe", "device", "folder"])
def test_a_name_in_a_start_that_is_no_file_is_refused_unread(whole_run, corpora, tmp_path, make_no_file, name, what):
    """Else weights are taken without what belongs to them, such as the moments, or a pipe is waited for."""
    folder = tmp_path / "start"
    shutil.copytree(checkpoints(whole_run[0])[0], folder)
    path = folder / name
    path.unlink(missing_ok=True)
    make_no_file(path, what)
    problems = refused(script_argv(corpora[0], corpora[2], tmp_path / "out", init_checkpoint=folder))
    assert [problem for problem in problems if problem.startswith(f"{path}: ")] == problems
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("phase", [1, 2])
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json"])
def test_a_start_that_is_cut_off_is_named(whole_run, corpora, tmp_path, file, phase):
    folder = tmp_path / "start"
    shutil.copytree(checkpoints(whole_run[0])[0], folder)
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    flags = {"init_checkpoint": folder, "phase2": phase == 2}
    (problem,) = refused(script_argv(corpora[phase - 1], corpora[2], tmp_path / "out", **flags))
    assert str(folder) in problem and file in problem


def test_a_state_of_another_make_is_named(whole_run, corpora, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole_run[0], out)
    newest = checkpoints(out)[-1] / "state.json"
    words = script_argv(corpora[1], corpora[2], out, phase2=True, resume_from_checkpoint=True, max_steps=8)
    for lacking in ({"global_step": None}, {"data": {}}):
        as_earlier_version(newest.parent, **lacking)
        (problem,) = refused(words)
        assert str(newest) in problem and ("global_step" in problem or "rows_read" in problem)


BROKEN_FILES = [
    ("vocab.txt", b"[PAD]\n\xff\xfe\n", "vocab.txt: cannot be read as UTF-8 text"),
    ("vocab.txt", b"[PAD]\nw1\n", "vocab.txt: no [UNK], [CLS], [SEP], [MASK] in it"),
    ("tokenizer_config.json", b'{"do_lower_case": tr', "tokenizer_config.json: not JSON"),
    ("tokenizer_config.json", b"\xff{}", "tokenizer_config.json: cannot be read as UTF-8 text"),
    ("tokenizer_config.json", b"[1]", "tokenizer_config.json: holds no settings of a tokenizer"),
    ("token_counts.npy", b"\x93NUMPY", "token_counts.npy: cannot be read"),
    ("tokenizer_config.json", NESTED, "tokenizer_config.json: not JSON (nested too deep)"),
    ("config.json", NESTED, "config.json: not a BERT configuration (nested too deep)"),
    ("config.json", b"{", "config.json: not a BERT configuration"),
    ("config.json", b"\xff\xfe{}", "config.json: not a BERT configuration"),
    ("config.json", b"[1, 2]", "config.json: not a BERT configuration"),
    ("config.json", b'{"hidden_size": "32"}', "(hidden_size '32' is not a whole number from 1 on)"),
    ("config.json", b'{"num_hidden_layers": 1' + b"0" * 400 + b"}", "(num_hidden_layers is more than 10000000)"),
]


@pytest.mark.parametrize(("name", "content", "words"), BROKEN_FILES)
def test_files_beside_the_shards_that_are_broken_are_named(corpora, tmp_path, name, content, words):
    corpus = make_corpus(tmp_path / "corpus", shards=1)
    config = write_config(corpus / "config.json")
    (corpus / name).write_bytes(content)
    (problem,) = refused(script_argv(corpus, config, tmp_path / "out"))
    assert words in problem and str(corpus) in problem
    assert not (tmp_path / "out").exists()


def test_the_counts_beside_the_shards_make_the_baseline_and_are_read_once(corpora, tmp_path, monkeypatch):
    """Of equal counts every token is as likely: the loss is the logarithm of the size of the vocabulary."""
    corpus = make_corpus(tmp_path / "corpus", shards=1)
    np.save(corpus / "token_counts.npy", np.full(VOCAB_SIZE, 5))
    read, load = [], np.load
    monkeypatch.setattr(np, "load", lambda file, **how: read.append(file) or load(file, **how))
    assert call(script_argv(corpus, corpora[2], tmp_path / "out", max_steps=1)) == 0
    log = read_log(tmp_path / "out" / "results" / "dllogger.json")
    losses = [data["eval_unigram_loss"] for _, data in log if "eval_unigram_loss" in data]
    assert losses and losses == pytest.approx([math.log(VOCAB_SIZE)] * len(losses))
    assert read == [corpus / "token_counts.npy"]


def test_a_vocabulary_file_that_is_none_is_named(corpora, tmp_path):
    (problem,) = refused(script_argv(corpora[0], corpora[2], tmp_path, vocab_file=tmp_path))
    assert f"{tmp_path}: cannot be read" in problem


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json"])
def test_a_damaged_newest_checkpoint_is_named_and_left(whole_run, corpora, tmp_path, file):
    out = tmp_path / "out"
    shutil.copytree(whole_run[0], out)
    newest = checkpoints(out)[-1]
    whole = (newest / file).read_bytes()
    (newest / file).write_bytes(whole[: len(whole) // 2])
    words = script_argv(corpora[1], corpora[2], out, phase2=True, resume_from_checkpoint=True, max_steps=8)
    (problem,) = refused(words)
    assert str(newest) in problem and file in problem and newest.exists()
    before = checkpoints(out)[-2].name.removeprefix("ckpt_")
    assert f"--resume_step {before} goes on from ckpt_{before}" in problem and "delete" not in problem
    assert call([*words, f"--resume_step={before}"]) == 0 and checkpoints(out)[-1].name == "ckpt_14"
    assert (newest.with_name(f"{newest.name}.1") / file).read_bytes() == whole[: len(whole) // 2]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_a_checkpoint_with_the_right_size_that_cannot_be_read_is_named(whole_run, corpora, tmp_path, file):
    """The step before may be one of the phase before; without one there is nothing to go back to."""
    out = tmp_path / "out"
    shutil.copytree(whole_run[0], out)
    words = script_argv(corpora[1], corpora[2], out, phase2=True, resume_from_checkpoint=True, max_steps=8)
    while len(left := checkpoints(out)) > 1:
        size = (left[-1] / file).stat().st_size
        (left[-1] / file).write_bytes(bytes(size))
        (problem,) = refused(words)
        assert str(left[-1] / file) in problem and f"goes on from {left[-2].name}" in problem
        left[-1].rename(tmp_path / left[-1].name)
    (left[-1] / file).write_bytes(bytes((left[-1] / file).stat().st_size))
    (problem,) = refused(words)
    assert "no whole checkpoint lies before it: copy it again" in problem and "delete" not in problem


def test_a_checkpoint_of_another_size_is_refused(whole_run, corpora, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole_run[0], out)
    config = write_config(tmp_path / "deep.json", num_hidden_layers=3)
    (problem,) = refused(script_argv(corpora[1], config, out, phase2=True, resume_from_checkpoint=True, max_steps=8))
    assert "another size" in problem and "ckpt_12" in problem


def test_weights_that_are_refused_leave_no_folder(corpora, tmp_path):
    (tmp_path / "model").mkdir()
    (problem,) = refused(script_argv(corpora[0], corpora[2], tmp_path / "new", init_checkpoint=tmp_path / "model"))
    assert "no model.safetensors" in problem and not (tmp_path / "new").exists()


def test_a_full_disk_is_seen_before_the_first_step(corpora, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    (tmp_path / "there").mkdir()
    (problem,) = refused(script_argv(corpora[0], corpora[2], tmp_path / "there" / "new"))
    assert "are free, two checkpoints take" in problem
    assert (tmp_path / "there").is_dir() and not (tmp_path / "there" / "new").exists()


def test_a_disk_that_fills_up_ends_with_2_and_keeps_the_older_checkpoints(corpora, tmp_path, monkeypatch):
    from pretraining import checkpoint

    real, written = checkpoint.save_file, []

    def save_file(weights, path, metadata):
        written.append(path)
        if len(written) > 1:
            raise OSError(28, "No space left on device")
        real(weights, path, metadata=metadata)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    (problem,) = refused(script_argv(corpora[0], corpora[2], tmp_path))
    assert "disk is full" in problem
    assert [path.name for path in checkpoints(tmp_path)] == ["ckpt_2"] and is_complete(checkpoints(tmp_path)[0])


@pytest.mark.parametrize("kilobytes", [40, 120])  # the weights or the moments are too large
def test_a_limit_of_the_size_of_files_is_named(corpora, tmp_path, kilobytes):
    argv = script_argv(corpora[0], corpora[2], tmp_path)
    limited = ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "limited"]
    done = run_script(argv, limited)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "ckpt_2: larger than a file may be here: raise the limit (ulimit -f)" in done.stderr
    assert not checkpoints(tmp_path)


LOG_FULL = r"dllogger.json: cannot be written \(No space left on device\)"


@pytest.mark.parametrize(
    ("room", "save_steps", "words"),
    [
        (0, 10**6, LOG_FULL),
        (1 << 17, 3, f"the disk is full|{LOG_FULL}"),  # the log may want room while half a checkpoint holds all of it
    ],
)
def test_a_disk_that_someone_fills_while_a_run_writes_to_it(corpora, tmp_path, room, save_steps, words):
    """Log and checkpoints on a small real disk: one line, exit 2, what was there is whole, and the run goes on."""
    with small_disk(tmp_path / "disk", megabytes=8) as out:
        argv = script_argv(corpora[0], corpora[2], out, max_steps=10**6, resume_from_checkpoint=True)
        assert run_script([*argv, "--steps_this_run=2"]).returncode == 0
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *argv, f"--num_steps_per_checkpoint={save_steps}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        next(line for line in process.stdout if line.startswith("step "))
        with contextlib.suppress(OSError), (out / "filler").open("wb") as filler:
            disk = os.statvfs(out)
            filler.write(b"x" * max(0, disk.f_bavail * disk.f_frsize - room))
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2 and errors.count("error: ") == 1 and "Traceback" not in errors, errors
        assert re.search(words, errors) and "make room" in errors
        assert checkpoints(out) and all(is_complete(path) for path in checkpoints(out))
        (out / "filler").unlink()
        step = json.loads((checkpoints(out)[-1] / "state.json").read_text())["step"]
        assert run_script([*argv, f"--steps_this_run={step + 2}"]).returncode == 0


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_an_unwritable_folder_is_named(corpora, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    prefix = ("setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all") if os.geteuid() == 0 else ()
    if prefix:
        for folder in (tmp_path, *tmp_path.parents):
            if os.stat(folder).st_uid == 0 and str(folder).startswith("/tmp/"):
                folder.chmod(folder.stat().st_mode | 0o055)
        corpora[0].parent.chmod(0o755)
    done = run_script(script_argv(corpora[0], corpora[2], closed), prefix=prefix)
    assert done.returncode == 2, done.stderr
    assert "cannot be written (Permission denied)" in done.stderr and "Traceback" not in done.stderr


def test_too_large_a_micro_batch_names_the_one_that_fits(corpora, tmp_path, monkeypatch):
    shards = 2 * 24 * 16 * 6  # bytes: the corpus stays in memory
    monkeypatch.setattr(Cpu, "available_memory", lambda self: (4 << 20) + shards)
    words = script_argv(corpora[0], corpora[2], tmp_path, train_batch_size=4096)
    (problem,) = refused(words)
    assert "a micro-batch of 2048 rows of 16 tokens needs about" in problem
    fits = int(problem.split("a micro-batch of ")[2].split()[0])
    config = BertConfig.from_json(corpora[2])
    device = open_device("cpu", "eager", "fp32", Rank())
    assert model_stats.training_bytes(config, device, fits, 16, 3) <= 4 << 20
    assert model_stats.training_bytes(config, device, fits + 1, 16, 3) > 4 << 20


def test_a_model_too_large_altogether_is_not_told_to_take_smaller_batches(corpora, tmp_path, monkeypatch):
    monkeypatch.setattr(Cpu, "available_memory", lambda self: 1 << 19)
    (problem,) = refused(script_argv(corpora[0], corpora[2], tmp_path))
    assert "not even a micro-batch of 1 fits: choose a smaller model" in problem
    assert "--gradient_accumulation_steps" not in problem


def test_shards_larger_than_memory_are_to_be_smaller(monkeypatch):
    config, device = BertConfig(VOCAB_SIZE, 32, 2, 2, 64), open_device("cpu", "eager", "fp32", Rank())
    monkeypatch.setattr(Cpu, "available_memory", lambda self: 1 << 30)
    with pytest.raises(BadRequest) as error:
        model_stats.check_memory(config, device, 4, 16, 3, ranks=1, data_bytes=3 << 30)
    assert "3.0 GiB of it are shards kept in memory: make smaller ones" in str(error.value)
    assert "smaller model" not in str(error.value)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json"])
def test_a_file_beside_the_shards_that_might_never_end_is_named(tmp_path, name):
    """It is neither waited for nor passed over."""
    folder = make_corpus(tmp_path / "corpus", shards=1)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(BadRequest, match=f"{name}: not a regular file"):
        find_vocabulary(None, folder)


def test_a_vocabulary_with_a_byte_order_mark_is_read(tmp_path):
    folder = make_corpus(tmp_path / "corpus", shards=1)
    plain = find_vocabulary(None, folder)
    (folder / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + (folder / "vocab.txt").read_bytes())
    assert find_vocabulary(None, folder) == plain


def test_the_time_left_of_steps_without_end(capsys):
    console = Console(10**300, 0, bar=False)
    console.step(1, "loss 1")
    assert "ETA 1157407 days" in capsys.readouterr().out


SHAPES = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from central.runtime.device import open_device
from central.runtime.rank import Rank
import torch
open_device("cpu", "eager", "bf16", Rank())
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
x = torch.ones(1500, 256, dtype=torch.bfloat16)
x.t() @ x
before = resident()
for tokens in range(500, 1300):
    x[:tokens].t() @ x[:tokens]
print(resident() - before)
"""


def test_products_of_ever_new_shapes_do_not_fill_the_memory():
    """torch keeps a bf16 kernel for every shape; batches without padding have a new one at every step."""
    script = SHAPES.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=True)
    assert int(done.stdout) < 400 << 20


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of x86")
def test_bf16_on_a_cpu_without_its_instructions_is_remarked_on():
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    remarks = {data_type: open_device("cpu", "eager", data_type, Rank()).remarks() for data_type in ("fp32", "bf16")}
    assert remarks["fp32"] == []
    assert len(remarks["bf16"]) == ("avx512_bf16" not in flags)


def test_a_utilisation_above_the_measured_peak_is_said_once(corpora, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Device, "matrix_peak", lambda self: 1e3)
    assert call(script_argv(corpora[0], corpora[2], tmp_path, max_steps=2)) == 0
    said = capsys.readouterr().out
    assert said.count("mfu above 100 %") == 1 and not re.search(r"step .* mfu", said)


def test_empty_values_and_flags_without_effect_are_said(corpora, tmp_path, capsys):
    words = script_argv(corpora[0], corpora[2], tmp_path, max_steps=1, loss_scale=8.0)
    assert call([*words, "--fused_sdpa", "--num_train_epochs=", "--init_checkpoint", ""]) == 0
    said = capsys.readouterr().out
    assert (
        "--num_train_epochs has no value" in said
        and "--init_checkpoint has no value" in said
        and "--loss_scale has no effect" in said
        and "--fused_sdpa has no effect" in said
    )
