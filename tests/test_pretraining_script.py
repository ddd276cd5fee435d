"""run_pretraining.py as users run it: both phases, exact resume, ranks, signals, divergence, bad input."""

import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from pretraining_helpers import (
    SCRIPT,
    as_earlier_version,
    call,
    checkpoints,
    environment,
    logged,
    make_columns,
    make_corpus,
    run_script,
    script_argv,
    write_config,
    write_shard,
    write_vocabulary,
)
from safetensors.torch import load_file

from central.runtime.checkpoints import is_complete
from central.runtime.exits import BadRequest, Diverged, Preempted
from pretraining import reports, trainer
from pretraining.objective import OBJECTIVES
from pretraining.results import add_phase

STEPS = 100  # of a run that is killed, more than ten kills use up
MPIRUN = ("--oversubscribe", "--bind-to", "none", "-n")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Corpora of both phases and a model configuration."""
    folder = tmp_path_factory.mktemp("corpora")
    short = make_corpus(folder / "short", seq_len=16, max_predictions=3)
    long = make_corpus(folder / "long", seq_len=32, max_predictions=5)
    return short, long, write_config(folder / "config.json")


@pytest.fixture(scope="module")
def whole_run(corpora, tmp_path_factory):
    """Both phases, uninterrupted: 6 steps of phase 1, 6 of phase 2."""
    short, long, config = corpora
    out = tmp_path_factory.mktemp("whole")
    first = run_script(script_argv(short, config, out, tensorboard=True))
    assert first.returncode == 0, first.stderr
    second = run_script(script_argv(long, config, out, phase2=True, resume_from_checkpoint=True))
    assert second.returncode == 0, second.stderr
    return out, first, second


def losses(out):
    return {step: data["step_loss"] for step, data in logged(out)[0].items()}


def test_both_phases_leave_what_is_promised(whole_run):
    out, first, second = whole_run
    results = out / "results"
    # the newest three, and the last of phase 1
    assert [path.name for path in checkpoints(out)] == ["ckpt_6", "ckpt_8", "ckpt_10", "ckpt_12"]
    assert all(is_complete(path) for path in checkpoints(out))
    state = json.loads((checkpoints(out)[-1] / "state.json").read_text())
    assert (state["phase"], state["step"], state["global_step"]) == (2, 6, 12)
    assert state["data"]["rows_read"] == 48 and state["settings"]["seed"] == 5
    assert (results / "training.png").read_bytes().startswith(b"\x89PNG")
    assert list((results / "tensorboard").iterdir())
    assert "phase 2 starts from ckpt_6" in second.stdout and "ETA" in first.stdout
    assert not first.stderr and not second.stderr


def test_log_lines_are_dlloggers(whole_run, corpora):
    out = whole_run[0]
    lines = [json.loads(line[5:]) for line in (out / "results" / "dllogger.json").read_text().splitlines()]
    assert all(set(line) == {"timestamp", "datetime", "elapsedtime", "type", "step", "data"} for line in lines)
    assert lines[0]["step"] == "PARAMETER" and lines[-1]["step"] == []
    final = {"e2e_train_time", "raw_train_time", "training_sequences_per_second", "final_loss"}
    assert final <= set(lines[-1]["data"])
    with h5py.File(corpora[1] / "long_test_0.hdf5") as file:
        share = file["next_sentence_labels"][()].mean()
    assert lines[-1]["data"]["eval_nsp_majority"] == max(share, 1 - share)
    assert lines[-1]["data"]["eval_nsp_accuracy"] == lines[-2]["data"]["eval_nsp_accuracy"]
    training, held_out = logged(out)
    assert sorted(training) == list(range(1, 13))
    names = {"average_loss", "step_loss", "learning_rate", "average_training_time_step", "average_perf_per_step"}
    names |= {
        "sequences_per_second",
        "tokens_per_second",
        "step_time",
        "mlm_accuracy",
        "nsp_accuracy",
        "grad_norm",
        "mfu",
    }
    names |= {f"time_{stage}" for stage in ("data", "forward", "backward", "exchange", "step")}
    assert names <= set(training[7]) and training[7]["phase"] == 2
    assert sorted(held_out) == [(1, 0), (1, 2), (1, 4), (1, 6), (2, 6), (2, 8), (2, 10), (2, 12)]
    wanted = {"eval_mlm_loss", "eval_mlm_accuracy", "eval_nsp_accuracy", "eval_nsp_loss", "eval_unigram_loss"}
    wanted |= {"eval_nsp_majority"}
    assert wanted | {"phase", "eval_sequences"} == set(held_out[2, 12]) and held_out[1, 0]["eval_sequences"] == 8


def results(out):
    return json.loads((out / "results" / "results.json").read_text())


def test_results_of_both_phases_for_a_ci_job(whole_run):
    """A flat object a phase: last scores of the log, throughput, and what ran on what."""
    from transformers import BertForPreTraining

    out, first, second = whole_run
    training, held_out = logged(out)
    found = results(out)
    assert list(found) == ["phase_1", "phase_2"]
    for phase, global_step in ((1, 6), (2, 12)):
        entry = found[f"phase_{phase}"]
        assert all(isinstance(value, str | int | float | None) for value in entry.values())
        assert held_out[phase, global_step].items() <= entry.items()
        assert (entry["phase"], entry["step"], entry["max_steps"], entry["global_step"]) == (phase, 6, 6, global_step)
        assert entry["train_loss"] == training[global_step]["average_loss"]
        assert 0 < entry["step_time"] == pytest.approx(8 / entry["sequences_per_second"])
        assert entry["tokens_per_second"] > entry["sequences_per_second"] and entry["peak_memory_bytes"] > 1 << 20
        assert (entry["model"], entry["device"], entry["data_type"]) == ("bert-large-uncased", "cpu", "fp32")
        assert (entry["world_size"], entry["global_batch_size"]) == (1, 8)
        assert entry["parameters"] == BertForPreTraining.from_pretrained(checkpoints(out)[-1]).num_parameters()
        assert (entry["torch"], entry["numpy"]) == (torch.__version__, np.__version__) and "commit" in entry
    for done, step in ((first, 6), (second, 12)):
        assert done.stdout.splitlines()[-1] == (
            f"in {out / 'results'}: the model (checkpoints/ckpt_{step}), picture (training.png), log (dllogger.json), "
            "results (results.json)"
        )


def test_results_when_a_run_goes_on(corpora, tmp_path):
    """A phase that is resumed writes its own anew, and those before it stay; a phase behind it has other weights."""
    short, long, config = corpora

    def run(corpus, **flags):
        assert call(script_argv(corpus, config, tmp_path, **flags)) == 0
        return {name: entry["step"] for name, entry in results(tmp_path).items()}

    assert run(short, steps_this_run=2) == {"phase_1": 2}
    assert run(short, resume_from_checkpoint=True) == {"phase_1": 6}
    assert run(long, phase2=True, resume_from_checkpoint=True, steps_this_run=2) == {"phase_1": 6, "phase_2": 2}
    first = results(tmp_path)["phase_1"]
    assert run(long, phase2=True, resume_from_checkpoint=True) == {"phase_1": 6, "phase_2": 6}
    assert results(tmp_path)["phase_1"] == first
    assert run(short, max_steps=8, resume_from_checkpoint=True) == {"phase_1": 8}
    assert not list((tmp_path / "results").glob("*.tmp"))


def test_damaged_results_are_written_anew(tmp_path):
    file = tmp_path / "results.json"
    for text in ("", "[1]", "{", "\udcff"):
        file.write_text(text, errors="surrogateescape")
        add_phase(file, 2, {"step": 1})
        assert json.loads(file.read_text()) == {"phase_2": {"step": 1}}


def test_the_picture_says_what_was_trained(corpora, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        "pretraining.reports.draw_training", lambda history, picture, title, objective: titles.append(title)
    )
    assert call([*script_argv(corpora[0], corpora[2], tmp_path, max_steps=1), "--bert_model=tiny"]) == 0
    assert set(titles) == {"tiny, 0.0 M parameters, cpu fp32"}


def test_schedule_and_moments_over_the_phases(whole_run):
    """The schedule begins anew in phase 2, the optimizer's own count goes on."""
    out = whole_run[0]
    training, _ = logged(out)
    for first_step in (1, 7):
        rates = [training[first_step + i]["learning_rate"] for i in range(6)]
        wanted = [0.01 * (1 / 6) / 0.25] + [0.01 * (1 - k / 6) ** 0.5 for k in range(2, 7)]
        assert rates == pytest.approx(wanted)
    moments = torch.load(checkpoints(out)[-1] / "optimizer.pt", weights_only=True)
    assert [group["step"] for group in moments["param_groups"]] == [12, 12]


def test_the_same_command_gives_the_same_run(whole_run, corpora, tmp_path):
    short, _, config = corpora
    assert call(script_argv(short, config, tmp_path)) == 0
    again, before = losses(tmp_path), losses(whole_run[0])
    assert [again[step] for step in range(1, 7)] == [before[step] for step in range(1, 7)]


def test_hugging_face_reproduces_the_held_out_loss(whole_run, corpora):
    """Law 5 with a trained model: loss and accuracy of the last evaluation, from transformers alone."""
    from transformers import BertForPreTraining

    out, long = whole_run[0], corpora[1]
    peer = BertForPreTraining.from_pretrained(checkpoints(out)[-1]).eval()
    with h5py.File(long / "long_test_0.hdf5") as file:
        columns = {name: torch.from_numpy(file[name][()].astype(np.int64)) for name in file}
    with torch.no_grad():
        logits = peer(columns["input_ids"], columns["input_mask"], columns["segment_ids"]).prediction_logits
    positions, labels = columns["masked_lm_positions"], columns["masked_lm_ids"]
    picked = logits[torch.arange(len(positions))[:, None], positions][positions != 0]
    loss = torch.nn.functional.cross_entropy(picked, labels[positions != 0]).item()
    found = logged(out)[1][2, 12]
    assert found["eval_mlm_loss"] == pytest.approx(loss, rel=1e-5)
    accuracy = (picked.argmax(-1) == labels[positions != 0]).float().mean().item()
    assert found["eval_mlm_accuracy"] == pytest.approx(accuracy)


def killed_and_resumed(corpora, folder, rng, phase, kills):
    """Kill -9 `kills` times within a few steps of a start, then let both phases finish; losses of both."""
    short, long, config = corpora
    out = folder / "out"
    for current, corpus in ((1, short), (2, long)):
        flags = {"phase2": current == 2, "resume_from_checkpoint": True, "num_steps_per_checkpoint": 3}
        words = script_argv(corpus, config, out, max_steps=STEPS, **flags)
        for _ in range(kills if current == phase else 0):
            process = subprocess.Popen(
                [sys.executable, str(SCRIPT), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env=environment(),
            )  # fmt: skip
            steps = (line for line in process.stdout if line.startswith("step "))
            for _ in range(rng.randint(1, 6)):
                next(steps)
            time.sleep(rng.random() * 0.05)
            process.kill()
            assert process.wait() == -signal.SIGKILL  # it had not ended by itself
        assert call(words) == 0
    return losses(out)


@pytest.fixture(scope="module")
def uninterrupted(corpora, tmp_path_factory):
    """Losses of both phases in one go, by global step."""
    short, long, config = corpora
    out = tmp_path_factory.mktemp("uninterrupted")
    torch.set_num_threads(1)
    flags = {"max_steps": STEPS, "num_steps_per_checkpoint": STEPS}
    assert call(script_argv(short, config, out, **flags)) == 0
    assert call(script_argv(long, config, out, phase2=True, resume_from_checkpoint=True, **flags)) == 0
    return losses(out)


def phase_1(losses):
    return {step: loss for step, loss in losses.items() if step <= STEPS}


@pytest.mark.parametrize("phase", [1, 2])
def test_resume_after_kill_is_exact(corpora, uninterrupted, tmp_path, phase):
    found = killed_and_resumed(corpora, tmp_path, random.Random(phase), phase, kills=1)
    assert len(found) == 2 * STEPS and found == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("phase", [1, 2])
def test_resume_after_ten_kills_is_exact(corpora, uninterrupted, tmp_path, phase):
    found = killed_and_resumed(corpora, tmp_path, random.Random(10 + phase), phase, kills=10)
    assert found == uninterrupted


def packed_corpus(folder):
    """Rows of up to three sequences, packed by the project's own packer from the rows of an ordinary corpus."""
    from pretraining.packing import pack_lengths, pack_rows, predictions_needed

    make_corpus(folder, shards=0, test=0)
    for index in range(2):
        columns = make_columns(40, 32, 3, seed=index)
        packs = pack_lengths(np.count_nonzero(columns["input_mask"], axis=1), 32)
        needed = predictions_needed(np.count_nonzero(columns["masked_lm_positions"], axis=1), packs)
        write_shard(folder / f"p_training_{index}.hdf5", pack_rows(columns, packs, needed))
    return folder


EXACT_WITH = {
    "bf16": {"hmp": True},
    "dynamic masking": {"dynamic_masking": True},
    "recomputation": {"checkpoint_activations": True},
    "packed rows": {},
    "phase 2, bf16, dynamic masking": {"phase2": True, "hmp": True, "dynamic_masking": True},
}


@pytest.mark.parametrize("how", EXACT_WITH)
def test_stopping_and_resuming_is_exact_with(corpora, whole_run, tmp_path, how):
    """Losses and weights, to the bit; stopped amid an epoch and amid a shard."""
    flags, corpus = EXACT_WITH[how], corpora[0]
    if how == "packed rows":
        corpus = packed_corpus(tmp_path / "p")
    if "phase2" in flags:
        corpus, flags = corpora[1], {**flags, "init_checkpoint": checkpoints(whole_run[0])[0]}
    words = {name: script_argv(corpus, corpora[2], tmp_path / name, **flags) for name in "ab"}
    assert call(words["a"]) == 0
    assert call([*words["b"], "--steps_this_run=3"]) == 0
    assert call([*words["b"], "--resume_from_checkpoint"]) == 0
    assert len(losses(tmp_path / "a")) == 6 and losses(tmp_path / "a") == losses(tmp_path / "b")
    assert_same_weights(checkpoints(tmp_path / "a")[-1], checkpoints(tmp_path / "b")[-1])


def assert_same_weights(a, b):
    """Weights and moments of two checkpoints, to the bit."""
    first, second = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    one, other = (torch.load(folder / "optimizer.pt", weights_only=True) for folder in (a, b))
    for index, moments in one["state"].items():
        assert all(torch.equal(moments[name], other["state"][index][name]) for name in moments)
    assert [group["step"] for group in one["param_groups"]] == [group["step"] for group in other["param_groups"]]


@pytest.mark.mpi
def test_two_ranks_resume_exactly_and_one_rank_reads_on_in_the_same_order(corpora, without_dropout, tmp_path, mpirun):
    """Dropout and dynamic masks of each rank, stopped by a signal: to the bit. At another world size: the same rows."""
    flags = {
        "dynamic_masking": True,
        "allreduce_post_accumulation": True,
        "max_steps": 40,
        "num_steps_per_checkpoint": 1000,
    }
    words = {name: script_argv(corpora[0], corpora[2], tmp_path / name, **flags) for name in "ab"}
    done = run_script(words["a"], prefix=(mpirun, *MPIRUN, "2"))
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(
        [mpirun, *MPIRUN, "2", sys.executable, str(SCRIPT), *words["b"]],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    next(line for line in process.stdout if line.startswith("step 3/"))
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 85, errors
    done = run_script([*words["b"], "--resume_from_checkpoint"], prefix=(mpirun, *MPIRUN, "2"))
    assert done.returncode == 0 and "resume from ckpt_" in done.stdout, done.stderr
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert_same_weights(checkpoints(tmp_path / "a")[-1], checkpoints(tmp_path / "b")[-1])

    alone, config = without_dropout  # one rank, 16 rows a step, three steps
    halves = {"max_steps": 3, "steps_this_run": 1}
    done = run_script(script_argv(corpora[0], config, tmp_path / "c", **halves), prefix=(mpirun, *MPIRUN, "2"))
    assert done.returncode == 0, done.stderr
    rest = script_argv(
        corpora[0], config, tmp_path / "c", max_steps=3, train_batch_size=16, resume_from_checkpoint=True
    )
    assert call(rest) == 0
    assert losses(tmp_path / "c") == pytest.approx(losses(alone), rel=1e-4)


SLOW = pytest.mark.slow
RESUMES_OF_RANKS = [  # ranks, words
    # A ring of three ranks adds an element up in an order that goes by its place in a bucket.
    pytest.param(3, {}, id="3 ranks, ddp"),
    *(
        pytest.param(ranks, {**phase, **exchange, **precision}, id=f"{ranks}{phase}{exchange}{precision}", marks=SLOW)
        for ranks in (1, 2)
        for phase in ({}, {"phase2": True})
        for exchange in ({}, {"allreduce_post_accumulation": True})
        for precision in ({}, {"hmp": True})
    ),
]


@pytest.mark.mpi
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ranks", "flags"), RESUMES_OF_RANKS)
def test_thirty_steps_with_a_stop_amid_leave_the_same_checkpoints(corpora, whole_run, tmp_path, mpirun, ranks, flags):
    """Every checkpoint of a run stopped at step 8 and resumed is that of an uninterrupted one, to the bit."""
    corpus = corpora[1] if "phase2" in flags else corpora[0]
    flags = {**flags, "max_steps": 30, "num_steps_per_checkpoint": 11, "train_batch_size": 4, "save_total_limit": 9}
    if "phase2" in flags:
        flags["init_checkpoint"] = checkpoints(whole_run[0])[0]
    words = {name: script_argv(corpus, corpora[2], tmp_path / name, **flags) for name in "ab"}
    for argv in (words["a"], [*words["b"], "--steps_this_run=8"], [*words["b"], "--resume_from_checkpoint"]):
        done = run_script(argv, prefix=(mpirun, *MPIRUN, ranks))
        assert done.returncode == 0, done.stderr
    uninterrupted = checkpoints(tmp_path / "a")
    assert len(uninterrupted) == 3
    for whole in uninterrupted:
        assert_same_weights(whole, tmp_path / "b" / whole.relative_to(tmp_path / "a"))


def test_resuming_a_finished_phase_touches_nothing(whole_run, corpora, capsys):
    out, long, config = whole_run[0], corpora[1], corpora[2]
    before = {path: path.stat().st_mtime_ns for path in (out / "results").rglob("*")}
    assert call(script_argv(long, config, out, phase2=True, resume_from_checkpoint=True)) == 0
    assert call(script_argv(corpora[0], config, out, resume_from_checkpoint=True)) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (out / "results").rglob("*")}
    assert "nothing to do" in capsys.readouterr().out


def flip(path, place):
    """Change one bit of a file, its size and time as they were."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("place", [0.5, 0.98])
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json", "config.json"])
def test_a_flipped_bit_is_never_trained_on(whole_run, corpora, tmp_path, capfd, file, place):
    shutil.copytree(whole_run[0] / "results", tmp_path / "results")
    newest = checkpoints(tmp_path)[-1]
    before = [path.name for path in checkpoints(tmp_path)]
    flip(newest / file, place)
    words = script_argv(corpora[1], corpora[2], tmp_path, phase2=True, resume_from_checkpoint=True, max_steps=8)
    with pytest.raises(BadRequest) as refused:
        call(words)
    (problem,) = refused.value.problems
    assert str(newest / file) in problem or str(newest) in problem and file == "state.json"
    assert "--resume_step 10 goes on from ckpt_10" in problem and "delete" not in problem
    assert [path.name for path in checkpoints(tmp_path)] == before
    if (file, place) == ("optimizer.pt", 0.5):
        assert call([*words, "--resume_step=10"]) == 0
        assert newest.with_name("ckpt_12.1").is_dir()


def test_a_flipped_bit_of_the_weights_is_refused_by_a_phase_2_and_by_init_checkpoint(whole_run, corpora, tmp_path):
    shutil.copytree(whole_run[0] / "results", tmp_path / "a" / "results")
    first = checkpoints(tmp_path / "a")[0]
    flip(first / "model.safetensors", 0.7)
    for path in checkpoints(tmp_path / "a")[1:]:
        shutil.rmtree(path)
    for words in (
        script_argv(corpora[1], corpora[2], tmp_path / "a", phase2=True, resume_from_checkpoint=True),
        script_argv(corpora[0], corpora[2], tmp_path / "b", init_checkpoint=first),
    ):
        with pytest.raises(BadRequest, match=r"ckpt_6/model\.safetensors: its content is not what was written"):
            call(words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": -5}, "step -5"),
        ({"global_step": 10**30}, f"global_step {10**30}"),
        ({"data": {"rows_read": -1}}, "rows_read -1"),
        ({"phase": 3}, "phase 3"),
        ({"step": 11, "global_step": 10}, "step 11 of 10 in all"),
        ({"step": True}, "no step in it"),
        ({"data": {"rows_read": True}}, "no rows_read in it"),
        ({"world_size": -2}, "world_size -2"),
        ({"settings": {"seed": "x"}}, "seed 'x'"),
        ({"settings": {"seed": -1}}, "seed -1"),
        ({"settings": {"init_checkpoint": 7}}, "init_checkpoint 7"),
    ],
)
def test_a_state_that_is_no_place_of_a_training_is_refused(whole_run, corpora, tmp_path, change, words):
    shutil.copytree(whole_run[0] / "results", tmp_path / "results")
    as_earlier_version(checkpoints(tmp_path)[-1], **change)
    with pytest.raises(BadRequest, match=f"state.json: {words}"):
        call(script_argv(corpora[1], corpora[2], tmp_path, phase2=True, resume_from_checkpoint=True, max_steps=8))


def without(moments, *indices):
    return {**moments, "state": {i: values for i, values in moments["state"].items() if i not in indices}}


def with_steps(moments, step):
    return {**moments, "param_groups": [{**group, "step": step} for group in moments["param_groups"]]}


def with_values(moments, name, value):
    state = {i: {**values, name: torch.full_like(values[name], value)} for i, values in moments["state"].items()}
    return {**moments, "state": state}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda moments: {**moments, "state": {}}, "no moments of "),
        (lambda moments: without(moments, 3), "no moments of "),
        (lambda moments: {**moments, "names": ["x." + name for name in moments["names"]]}, "no moments of "),
        (
            lambda moments: {
                **moments,
                "state": {i: {n: t[..., :1] for n, t in v.items()} for i, v in moments["state"].items()},
            },
            "where .* is due",
        ),
        (lambda moments: {**moments, "names": [[name] for name in moments["names"]]}, "names that are no text"),
        (lambda moments: {**moments, "param_groups": [1, 2]}, "a group without a count"),
        (lambda moments: with_steps(moments, "3"), "a group without a count"),
        (lambda moments: with_steps(moments, -3), "a group without a count"),
        (lambda moments: with_steps(moments, float("nan")), "a group without a count"),
        (lambda moments: with_steps(moments, torch.tensor([3, 3])), "a group without a count"),
        (lambda moments: with_values(moments, "exp_avg", float("nan")), "no finite numbers"),
        (lambda moments: with_values(moments, "exp_avg_sq", -1.0), "negative values"),
        (lambda moments: [1, 2], "holds no state, names, param_groups"),
        (lambda moments: {"state": {}}, "holds no state, names, param_groups"),
    ],
    ids=[
        *("empty", "one missing", "foreign names", "other shapes", "names in lists", "groups of numbers", "a text"),
        *("below zero", "no number", "two steps", "nan", "negative squares", "a list", "one key"),
    ],
)
def test_moments_that_are_not_those_of_the_weights_are_refused(whole_run, corpora, tmp_path, spoil, words):
    shutil.copytree(whole_run[0] / "results", tmp_path / "results")
    newest = checkpoints(tmp_path)[-1]
    torch.save(spoil(torch.load(newest / "optimizer.pt", weights_only=True)), newest / "optimizer.pt")
    as_earlier_version(newest)
    argv = script_argv(corpora[1], corpora[2], tmp_path, phase2=True, resume_from_checkpoint=True, max_steps=8)
    with pytest.raises(BadRequest, match=f"optimizer.pt: .*{words}.*--resume_step 10 goes on from ckpt_10"):
        call(argv)


def test_a_kill_between_saving_and_the_last_evaluation_loses_no_score(corpora, tmp_path, monkeypatch):
    """The run dies where evaluation begins; a resume finds the phase done, and makes up for the score alone."""
    short, _, config = corpora
    words = script_argv(short, config, tmp_path, max_steps=2, eval_steps=100)

    evaluate, calls = trainer.evaluate, []

    def killed_at_the_last(*of_what):
        calls.append(of_what)
        if len(calls) == 2:
            raise SystemExit(137)
        return evaluate(*of_what)

    assert call([*words, "--steps_this_run=1"]) == 0
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(trainer, "evaluate", killed_at_the_last)
        call([*words, "--resume_from_checkpoint"])
    assert [path.name for path in checkpoints(tmp_path)] == ["ckpt_1", "ckpt_2"]
    assert (1, 2) not in logged(tmp_path)[1]
    weights = (checkpoints(tmp_path)[-1] / "model.safetensors").stat().st_mtime_ns
    assert call([*words, "--resume_from_checkpoint"]) == 0
    assert logged(tmp_path)[1][1, 2]["eval_sequences"] == 8 and len(logged(tmp_path)[0]) == 2
    assert (checkpoints(tmp_path)[-1] / "model.safetensors").stat().st_mtime_ns == weights
    after = (tmp_path / "results" / "dllogger.json").stat().st_mtime_ns
    assert call([*words, "--resume_from_checkpoint"]) == 0
    assert (tmp_path / "results" / "dllogger.json").stat().st_mtime_ns == after


@pytest.mark.parametrize("held_out", [True, False], ids=["evaluated", "nothing held out"])
def test_a_kill_before_the_results_are_written_loses_none(corpora, tmp_path, monkeypatch, held_out):
    """A resume finds the phase done, writes its results with the loss that the log kept, and trains no step."""
    short = tmp_path / "shards"
    shutil.copytree(corpora[0], short, ignore=shutil.ignore_patterns(*([] if held_out else ["*_test_*"])))
    words = script_argv(short, corpora[2], tmp_path, max_steps=2)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(reports.results, "add_phase", lambda *_: sys.exit(137))
        call(words)
    assert not (tmp_path / "results" / "results.json").exists()
    weights = (checkpoints(tmp_path)[-1] / "model.safetensors").stat().st_mtime_ns
    assert call([*words, "--resume_from_checkpoint"]) == 0
    training, evaluated = logged(tmp_path)
    entry = results(tmp_path)["phase_1"]
    assert (entry["step"], entry["train_loss"], entry["step_time"]) == (2, training[2]["average_loss"], None)
    assert ("eval_mlm_loss" in entry) is held_out and len(training) == 2
    assert (checkpoints(tmp_path)[-1] / "model.safetensors").stat().st_mtime_ns == weights


def test_results_that_are_gone_take_no_later_phase_back(corpora, tmp_path, capsys):
    short, long, config = corpora
    assert call(script_argv(short, config, tmp_path, max_steps=2)) == 0
    assert call(script_argv(long, config, tmp_path, phase2=True, resume_from_checkpoint=True, max_steps=2)) == 0
    (tmp_path / "results" / "results.json").unlink()
    before = sorted(path.name for path in (tmp_path / "results").rglob("*"))
    assert call(script_argv(short, config, tmp_path, max_steps=2, resume_from_checkpoint=True)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "results").rglob("*")) == before


def test_packed_shards_train(corpora, tmp_path):
    """Named by Habana's packer, with more slots for masked tokens than --max_predictions_per_seq, by a line of 1.23."""
    columns = make_columns(24, 16, 3)
    columns |= {key: np.pad(columns[key], ((0, 0), (0, 3))) for key in ("masked_lm_positions", "masked_lm_ids")}
    columns |= {
        "positions": np.tile(np.arange(16, dtype=np.int16), (24, 1)),
        "next_sentence_positions": np.zeros((24, 3), np.int16),
        "next_sentence_labels": np.stack([columns["next_sentence_labels"], *[np.full(24, -1)] * 2], 1),
        "next_sentence_weights": np.tile(np.array([1, 0, 0], np.int8), (24, 1)),
    }
    write_shard(tmp_path / "p" / "mixed_strategies_part_0.hdf5", columns)
    (tmp_path / "p_metadata.json").write_text('{"avg_seq_per_sample": 1.0}')
    write_vocabulary(tmp_path / "p")
    write_shard(tmp_path / "u" / "u_training_0.hdf5", make_columns(24, 16, 3))
    write_vocabulary(tmp_path / "u")
    for name, flags in (("p", ["--enable_packed_data_mode", "True"]), ("u", ["--enable_packed_data_mode=False"])):
        argv = script_argv(
            tmp_path / name, corpora[2], tmp_path / f"out_{name}", max_steps=2, max_predictions_per_seq=3
        )
        assert call([*argv, *flags]) == 0
    packed, unpacked = losses(tmp_path / "out_p"), losses(tmp_path / "out_u")
    assert packed == pytest.approx(unpacked, rel=1e-5)


def test_compile_mode_has_static_shapes_and_the_same_losses(corpora, tmp_path, monkeypatch):
    """torch.compile itself is left out: what counts here is the static layout through the plain kernels."""
    from central.runtime.device import Device

    monkeypatch.setattr(Device, "compile", lambda self, module: module)
    config = write_config(tmp_path / "c.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    assert call(script_argv(corpora[0], config, tmp_path / "a", max_steps=3)) == 0
    assert call(script_argv(corpora[0], config, tmp_path / "b", max_steps=3, torch_compile=True)) == 0
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), rel=1e-4)


@pytest.fixture(scope="module")
def without_dropout(corpora, tmp_path_factory):
    """One rank, three steps of 16 rows: what two ranks must repeat."""
    folder = tmp_path_factory.mktemp("alone")
    config = write_config(folder / "config.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    assert call(script_argv(corpora[0], config, folder, max_steps=3, train_batch_size=16)) == 0
    return folder, config


EXCHANGES = {
    "flat": {"allreduce_post_accumulation": True},
    "ddp": {},
    "flat bf16": {"allreduce_post_accumulation": True, "allreduce_post_accumulation_fp16": True},
    "ddp bf16": {"allreduce_post_accumulation_fp16": True},
}


@pytest.mark.mpi
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_two_ranks_take_the_steps_of_one(corpora, without_dropout, tmp_path, mpirun, exchange):
    """Law 1: world size and way of exchange leave losses, gradient norms and weights as they are."""
    alone, config = without_dropout
    words = script_argv(corpora[0], config, tmp_path, max_steps=3, train_batch_size=8, **EXCHANGES[exchange])
    done = run_script(words, prefix=(mpirun, *MPIRUN, "2"))
    assert done.returncode == 0, done.stderr
    tolerance = 3e-2 if "bf16" in exchange else 2e-4
    wanted, found = logged(alone)[0], logged(tmp_path)[0]
    for step in (1, 2, 3):
        assert found[step]["step_loss"] == pytest.approx(wanted[step]["step_loss"], rel=tolerance / 10)
        assert found[step]["grad_norm"] == pytest.approx(wanted[step]["grad_norm"], rel=tolerance)
    a, b = (load_file(checkpoints(out)[-1] / "model.safetensors") for out in (alone, tmp_path))
    worst = max(float((a[name] - b[name]).norm() / (a[name].norm() + 1e-3)) for name in a)
    assert worst < (0.2 if "bf16" in exchange else 5e-3)
    assert len(logged(tmp_path)[1]) == len(logged(alone)[1])
    for place, numbers in logged(tmp_path)[1].items():
        assert numbers["eval_mlm_loss"] == pytest.approx(logged(alone)[1][place]["eval_mlm_loss"], rel=tolerance)


@pytest.mark.mpi
def test_a_signal_saves_on_all_ranks_and_exits_85(corpora, tmp_path, mpirun):
    words = script_argv(
        corpora[0], corpora[2], tmp_path, max_steps=100000, num_steps_per_checkpoint=100000, train_batch_size=4
    )
    process = subprocess.Popen(
        [mpirun, *MPIRUN, "2", sys.executable, str(SCRIPT), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    process.send_signal(signal.SIGUSR1)  # mpirun hands it on to the ranks
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 85, errors
    (saved,) = checkpoints(tmp_path)
    assert is_complete(saved) and "exit status 85" in errors
    assert json.loads((saved / "state.json").read_text())["step"] == max(logged(tmp_path)[0])


@pytest.mark.parametrize("exchange", [{}, {"allreduce_post_accumulation": True}], ids=["ddp", "flat"])
def test_several_ranks_agree_to_stop_amid_a_step(corpora, tmp_path, mpirun, exchange):
    """A step of 8,000 micro-steps; one rank alone is told, as a server that goes down tells its own."""
    words = script_argv(
        corpora[0], corpora[2], tmp_path, train_batch_size=8000, gradient_accumulation_steps=8000, **exchange
    )
    process = subprocess.Popen(
        [mpirun, *MPIRUN, "2", sys.executable, str(SCRIPT), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    for line in process.stdout:
        if "held out" in line:
            break
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    time.sleep(3)
    os.kill(int(ranks[-1]), signal.SIGTERM)
    begin = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 85, errors
    assert time.monotonic() - begin < 20
    assert "stopped by a signal after step 0" in errors and not checkpoints(tmp_path)  # there is nothing to save yet


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_exits_85_alone_and_the_run_goes_on_exactly(corpora, uninterrupted, tmp_path, number):
    words = script_argv(corpora[0], corpora[2], tmp_path, max_steps=STEPS, num_steps_per_checkpoint=1000)
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(),
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("step 4/"):
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 85 and "--resume_from_checkpoint" in errors
    assert call([*words, "--resume_from_checkpoint"]) == 0
    assert losses(tmp_path) == phase_1(uninterrupted)


def test_a_stop_amid_a_step_loses_nothing(corpora, uninterrupted, tmp_path, monkeypatch):
    """A rank alone need not finish a long step: the state saved is that of the step before, and it goes on exactly."""
    import pretraining.run_pretraining as script

    class StopAtTwelfthLook:
        looks = 0

        @property
        def requested(self):
            self.looks += 1
            return self.looks >= 14  # two in the first evaluation, then one before a step and each of its micro-steps

    words = script_argv(corpora[0], corpora[2], tmp_path, max_steps=STEPS, num_steps_per_checkpoint=1000)
    with monkeypatch.context() as patch:
        patch.setattr(script.ranks, "StopRequest", StopAtTwelfthLook)
        with pytest.raises(Preempted, match="after step 3"):
            call(words)
    assert [path.name for path in checkpoints(tmp_path)] == ["ckpt_3"]
    assert call([*words, "--resume_from_checkpoint"]) == 0
    assert losses(tmp_path) == phase_1(uninterrupted)


def test_a_stop_that_may_not_save_does_not_say_it_has(corpora, tmp_path, monkeypatch):
    import pretraining.run_pretraining as script

    monkeypatch.setattr(script.ranks, "StopRequest", lambda: SimpleNamespace(requested=True))
    with pytest.raises(Preempted, match="after step 0; nothing was saved"):
        call(script_argv(corpora[0], corpora[2], tmp_path, skip_checkpoint=True))


@pytest.mark.parametrize("look", [2, 13])  # in the evaluations before the first step and after the last
def test_a_run_stopped_amid_an_evaluation_makes_up_for_it(corpora, tmp_path, monkeypatch, look):
    import pretraining.run_pretraining as script

    class Stop:
        looks = 0

        @property
        def requested(self):
            self.looks += 1
            return self.looks >= look

    words = script_argv(corpora[0], corpora[2], tmp_path, max_steps=3, num_steps_per_checkpoint=1000)
    with monkeypatch.context() as patch:
        patch.setattr(script.ranks, "StopRequest", Stop)
        with pytest.raises(Preempted, match="after step 0" if look == 2 else "after step 3"):
            call(words)
    assert len(checkpoints(tmp_path)) == (look > 2)
    assert call([*words, "--resume_from_checkpoint"]) == 0
    assert set(logged(tmp_path)[1]) == {(1, 0), (1, 3)}


def test_a_checkpoint_is_on_its_way_before_the_evaluation_begins(corpora, tmp_path, monkeypatch):
    """An evaluation may take longer than the time between SIGTERM and SIGKILL: its step must not be lost with it."""
    from pretraining.trainer import Run

    def killed(run):
        if run.state.step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        call(script_argv(corpora[0], corpora[2], tmp_path))
    assert [path.name for path in checkpoints(tmp_path)] == ["ckpt_2"] and is_complete(checkpoints(tmp_path)[0])


def test_other_shards_than_those_a_run_stopped_at_are_said(corpora, tmp_path, capsys):
    corpus = make_corpus(tmp_path / "c")
    words = script_argv(corpus, corpora[2], tmp_path, resume_from_checkpoint=True)
    for stop in (2, 4):
        assert call([*words, f"--steps_this_run={stop}"]) == 0
    assert "are not those" not in capsys.readouterr().out
    (corpus / "c_training_0.hdf5").rename(corpus / "c_training_7.hdf5")
    assert call(words) == 0
    assert f"the shards in {corpus} are not those this run stopped at" in capsys.readouterr().out


def test_a_stop_before_the_first_step_of_phase_2_leaves_phase_1_as_it_is(corpora, tmp_path, monkeypatch):
    """The name ckpt_2 is taken by the end of phase 1: phase 2 has nothing of its own to save yet."""
    import pretraining.run_pretraining as script

    assert call(script_argv(corpora[0], corpora[2], tmp_path, max_steps=2)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(script.ranks, "StopRequest", lambda: SimpleNamespace(requested=True))
        with pytest.raises(Preempted, match="after step 0"):
            call(script_argv(corpora[1], corpora[2], tmp_path, phase2=True, resume_from_checkpoint=True))
    (kept,) = checkpoints(tmp_path)
    assert json.loads((kept / "state.json").read_text())["phase"] == 1


def test_a_resumed_run_keeps_its_seed(whole_run, corpora, tmp_path, capsys):
    for stop in (2, 4, 6):
        seed = 5 if stop == 2 else 9
        words = script_argv(
            corpora[0], corpora[2], tmp_path, resume_from_checkpoint=True, steps_this_run=stop, seed=seed
        )
        assert call(words) == 0
    assert losses(tmp_path) == {step: loss for step, loss in losses(whole_run[0]).items() if step <= 6}
    assert "--seed 9: this run goes on with the seed it began with, 5" in capsys.readouterr().out


def test_a_restart_goes_on_in_its_folder_whatever_it_began_with(whole_run, corpora, tmp_path, monkeypatch):
    """--init_checkpoint beside --resume_from_checkpoint, as the launcher gives them, at the first start and later."""
    origin, out = checkpoints(whole_run[0])[-1], tmp_path / "out"

    def resume(**flags):
        return call(script_argv(corpora[0], corpora[2], out, resume_from_checkpoint=True, **flags))

    assert resume(init_checkpoint=origin, resume_step=12, steps_this_run=2) == 0
    assert resume(steps_this_run=4) == 0
    monkeypatch.chdir(origin.parent)
    assert resume(init_checkpoint=origin.name, resume_step=12) == 0
    assert sorted(losses(out)) == [1, 2, 3, 4, 5, 6] and len(logged(out)[0]) == 6
    with pytest.raises(BadRequest, match="began with --init_checkpoint"):
        resume(init_checkpoint=checkpoints(whole_run[0])[0], max_steps=8)


def test_going_back_to_an_older_step_keeps_what_it_leaves(corpora, tmp_path):
    """--resume_step: the run goes on from there, its checkpoints are the newest, those beyond are put aside."""
    assert call(script_argv(corpora[0], corpora[2], tmp_path)) == 0
    words = script_argv(corpora[0], corpora[2], tmp_path, resume_from_checkpoint=True, save_total_limit=1)
    assert call([*words, "--resume_step=2", "--steps_this_run=4"]) == 0
    assert sorted(path.name for path in (tmp_path / "results" / "checkpoints").iterdir()) == [
        "ckpt_4",
        "ckpt_4.1",
        "ckpt_6.1",
    ]


def test_phase_1_gone_on_with_puts_the_checkpoints_of_phase_2_aside(whole_run, corpora, tmp_path):
    """Both would be called ckpt_8; those of phase 2 came from the older end of phase 1, and are kept."""
    out = tmp_path / "out"
    shutil.copytree(whole_run[0], out)
    phase_2 = (checkpoints(out)[-1] / "model.safetensors").read_bytes()
    words = script_argv(corpora[0], corpora[2], out, resume_from_checkpoint=True, max_steps=8, save_total_limit=9)
    assert call(words) == 0
    folder = out / "results" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["ckpt_10.1", "ckpt_12.1", "ckpt_6", "ckpt_8", "ckpt_8.1"]
    assert (folder / "ckpt_12.1" / "model.safetensors").read_bytes() == phase_2
    assert json.loads((folder / "ckpt_8" / "state.json").read_text())["phase"] == 1


def test_a_finished_pt_of_the_reference_is_left_alone(corpora, tmp_path):
    from test_pretraining_checkpoint import make_model, reference_pt

    folder = tmp_path / "results" / "checkpoints"
    folder.mkdir(parents=True)
    reference_pt(folder / "ckpt_6.pt", make_model())
    assert call(script_argv(corpora[0], corpora[2], tmp_path, resume_from_checkpoint=True)) == 0
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["ckpt_6.pt"]


@pytest.mark.mpi
def test_ranks_that_see_different_folders_do_not_start(corpora, tmp_path, mpirun):
    """Hosts without a shared folder: one finds the checkpoint of the run, the other begins anew."""
    assert call(script_argv(corpora[0], corpora[2], tmp_path / "a", steps_this_run=2)) == 0
    command = [mpirun, *MPIRUN[:-1]]
    for host in ("a", "b"):
        words = script_argv(corpora[0], corpora[2], tmp_path / host, resume_from_checkpoint=True)
        command += [*([] if host == "a" else [":"]), "-n", "1", sys.executable, str(SCRIPT), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 2 and "must hold the same on every host" in done.stderr
    assert [path.name for path in checkpoints(tmp_path / "a")] == ["ckpt_2"]


@pytest.mark.parametrize("how", ["huge weights", "exploding"])
def test_divergence_stops_with_3_and_the_last_checkpoint_is_good(corpora, tmp_path, how):
    """NaN in the middle of a run: exit 3, the step and its rows named, what is on disk is finite."""
    out = tmp_path / "out"
    assert call(script_argv(corpora[0], corpora[2], out, max_steps=6, steps_this_run=2)) == 0
    last = checkpoints(out)[-1]
    if how == "huge weights":
        weights = load_file(last / "model.safetensors")
        weights["bert.encoder.layer.1.output.dense.weight"][:] = 3e38  # finite, and its products are not
        from safetensors.torch import save_file

        other = tmp_path / "poisoned"
        shutil.copytree(last, other)
        save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
        as_earlier_version(other)
        words = script_argv(corpora[0], corpora[2], tmp_path / "new", init_checkpoint=other)
    else:
        words = script_argv(corpora[0], corpora[2], out, resume_from_checkpoint=True, learning_rate=1e38)
    stopped = run_script(words)
    assert stopped.returncode == 3, stopped.stderr
    assert "is not finite" in stopped.stderr and "checkpoint is good" in stopped.stderr
    step = int(re.search(r"step (\d+): the gradient", stopped.stderr)[1])
    assert step == 1 if how == "huge weights" else step >= 3
    assert named_rows(stopped.stderr) == rows_of_step(corpora[0], step)
    for path in checkpoints(out) + checkpoints(tmp_path / "new"):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(path / "model.safetensors").values())


def named_rows(text):
    """{file: rows} as a message names them."""
    found = {}
    for name, numbers in re.findall(r"(\w+\.hdf5) rows ([-\d, ]*\d)", text):
        for run in numbers.split(", "):
            first, _, last = run.partition("-")
            found.setdefault(name, set()).update(range(int(first), int(last or first) + 1))
    return found


def rows_of_step(corpus, step, rows_per_step=8, seed=5):
    """{file: rows} of a step, from the order as design law 2 has it: a function of seed and epoch."""
    files = sorted(corpus.glob("*training*"))
    found = {}
    for place in range((step - 1) * rows_per_step, step * rows_per_step):
        epoch, place = divmod(place, 24 * len(files))
        shard = np.random.default_rng([seed, epoch]).permutation(len(files))[place // 24]
        row = np.random.default_rng([seed, epoch, shard]).permutation(24)[place % 24]
        found.setdefault(files[shard].name, set()).add(int(row))
    return found


def test_rows_too_many_for_a_line_go_to_a_file(whole_run, corpora, tmp_path, monkeypatch):
    monkeypatch.setattr("pretraining.trainer.LONGEST_NAMES", 10)
    from safetensors.torch import save_file

    other = shutil.copytree(checkpoints(whole_run[0])[0], tmp_path / "poisoned")
    weights = load_file(other / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.weight"][:] = 3e38
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    as_earlier_version(other)
    with pytest.raises(Diverged, match=r"from the 8 rows in .*rows_not_finite\.txt: no update was saved"):
        call(script_argv(corpora[0], corpora[2], tmp_path / "out", init_checkpoint=other))
    listed = (tmp_path / "out" / "results" / "rows_not_finite.txt").read_text()
    assert named_rows(listed) == rows_of_step(corpora[0], 1)


def test_weights_that_are_not_finite_are_never_saved(corpora, tmp_path):
    """A finite gradient times a rate beyond fp32: the first step already spoils the weights, and is to be saved."""
    words = script_argv(
        corpora[0], corpora[2], tmp_path, learning_rate=1e39, warmup_proportion=0, num_steps_per_checkpoint=1
    )
    with pytest.raises(Diverged, match="is not finite"):
        call(words)
    assert not checkpoints(tmp_path)


def test_a_picture_is_not_worth_a_run(corpora, tmp_path, monkeypatch, capsys):
    def failing(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pretraining.reports.draw_training", failing)
    assert call(script_argv(corpora[0], corpora[2], tmp_path, max_steps=4)) == 0
    assert len(checkpoints(tmp_path)) == 2 and capsys.readouterr().out.count("no training.png") == 1


def test_a_picture_leaves_nothing_in_memory(corpora, tmp_path, monkeypatch):
    """A figure is a cycle of objects of several megabytes; a collection of all of them comes rarely."""
    figures = []

    class Figure:
        """Weakly referable."""

    def draw(*_):
        figure = Figure()
        figure.canvas = SimpleNamespace(figure=figure)
        figures.append(weakref.ref(figure))

    monkeypatch.setattr(reports, "draw_training", draw)
    monkeypatch.setattr(gc, "freeze", lambda: None)  # of a process of tests
    call(script_argv(corpora[0], corpora[2], tmp_path))
    assert figures and not any(figure() for figure in figures)


def test_what_a_run_went_back_from_is_not_drawn(tmp_path):
    """Phase 2 was begun twice: from step 4 of phase 1, and from its end."""
    from pretraining.reports import START, DlLogger, read_history, read_log

    log = DlLogger(tmp_path / "log.json", fresh=True, objective=OBJECTIVES["mlm_nsp"])

    def begin(step, phase):
        log.log("PARAMETER", {START: step, "phase": phase})

    def line(step, phase, **data):
        log.log([0, step], {"phase": phase, **data})

    begin(0, 1)
    for step in (2, 4):
        line(step, 1, average_loss=9.0)
    begin(4, 2)
    line(4, 2, eval_mlm_loss=9.0)
    line(5, 2, average_loss=1.0)
    line(9, 2, average_loss=1.0)
    begin(4, 1)  # going back
    line(6, 1, average_loss=8.0)
    begin(6, 2)
    line(6, 2, eval_mlm_loss=8.0)
    line(8, 2, average_loss=7.0)
    for history in (log.history, read_history(tmp_path / "log.json", OBJECTIVES["mlm_nsp"])):
        places = [
            {phase: [step for step, _ in curve.points] for phase, curve in curves.items()}
            for curves in (history.training, history.held_out)
        ]
        assert places == [{1: [2, 4, 6], 2: [8]}, {2: [6]}]
    assert len(list(read_log(tmp_path / "log.json"))) == 8  # the log itself keeps everything


def test_the_picture_of_a_long_log_is_drawn_from_a_bounded_sample():
    """Of 300,000 steps about a thousand, evenly spaced, the newest included; a run that goes back cuts them off."""
    history = reports.History(OBJECTIVES["mlm_nsp"])
    for step in range(1, 300_001):
        history.add([0, step], {"phase": 1, "average_loss": 1 / step, "learning_rate": 0.1, "step_time": 1.0})
        if step % 1000 == 0:
            history.add([0, step], {"phase": 1, "eval_mlm_loss": 1 / step})
    points = history.training[1].points
    steps = np.array([step for step, _ in points])
    assert (
        1000 <= len(points) <= 2001
        and steps[0] == 1
        and points[-1]
        == (
            300_000,
            {"average_loss": 1 / 300_000, "learning_rate": 0.1},
        )
    )
    assert np.diff(steps).min() > 0 and np.diff(steps)[:-1].max() <= 2 * 300_000 / 1000
    assert len(history.held_out[1].points) == 300
    history.add("PARAMETER", {reports.START: 1500, "phase": 1})
    assert history.training[1].points[-1][0] <= 1500 and len(history.held_out[1].points) == 1


def test_results_that_are_deleted_during_a_run_are_made_again(corpora, tmp_path, monkeypatch, capsys):
    """All of the output folder, after step 4 of 6: the log begins anew, the picture shows all steps."""
    results, evaluate, calls = tmp_path / "results", trainer.evaluate, []

    def deleting(*of_what):
        calls.append(of_what)
        if len(calls) == 3:  # before the first step, after steps 2 and 4
            while not (results / "checkpoints" / "ckpt_4").exists() or list((results / "checkpoints").glob(".*")):
                time.sleep(0.01)  # it is being written
            shutil.rmtree(results)
        return evaluate(*of_what)

    drawn = []
    monkeypatch.setattr(trainer, "evaluate", deleting)
    monkeypatch.setattr("pretraining.reports.draw_training", lambda history, *_: drawn.append(history))
    assert call(script_argv(corpora[0], corpora[2], tmp_path)) == 0
    assert capsys.readouterr().out.count("dllogger.json: was deleted, and begins anew") == 1
    training, held_out = logged(tmp_path)
    assert set(training) and set(training) < set(range(1, 7)) and (1, 6) in held_out
    assert [step for step, _ in drawn[-1].training[1].points] == list(range(1, 7))
    assert checkpoints(tmp_path)[-1].name == "ckpt_6"


def test_a_second_run_without_checkpoints_keeps_the_log_of_the_first(corpora, tmp_path, capsys):
    for number in range(3):
        assert call([*script_argv(corpora[0], corpora[2], tmp_path), "--skip_checkpoint", "--steps_this_run=1"]) == 0
        assert ("the log of an earlier run is kept as" in capsys.readouterr().out) == (number > 0)
    for name in ("dllogger.json", "results.json"):
        kept = sorted(path.name for path in (tmp_path / "results").glob(f"{name}*"))
        assert kept == [name, f"{name}.1", f"{name}.2"]


def test_settings_that_differ_when_a_run_goes_on_are_said(corpora, tmp_path, capsys):
    words = script_argv(corpora[0], corpora[2], tmp_path, steps_this_run=2)
    assert call(words) == 0
    capsys.readouterr()
    changes = {
        "learning_rate": 2e-3,
        "warmup_proportion": 0.2,
        "train_batch_size": 16,
        "max_steps": 9,
        "steps_this_run": 3,
    }
    assert call(script_argv(corpora[0], corpora[2], tmp_path, resume_from_checkpoint=True, **changes)) == 0
    said = capsys.readouterr().out
    for flag in ("--learning_rate: 0.002", "--warmup_proportion: 0.2", "--max_steps: 9", "over all ranks: 16"):
        assert f"{flag} from here on" in said, said
    assert said.count("from here on") == 4
    # Both past their warm-up: 2e-3 * sqrt(1 - 3 / 9), and 1e-2 * sqrt(1 - 3 / 6).
    assert "the learning rate of step 3 is 1.63e-03, and was to be 7.07e-03\n" in said
    assert call(script_argv(corpora[0], corpora[2], tmp_path, resume_from_checkpoint=True, **changes)) == 0
    assert "was to be" not in capsys.readouterr().out


def test_an_end_before_the_step_reached_is_refused(whole_run, corpora, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(whole_run[0], out)
    for corpus, changes in ((corpora[0], {}), (corpora[1], {"phase2": True})):
        words = script_argv(corpus, corpora[2], out, resume_from_checkpoint=True, max_steps=5, **changes)
        with pytest.raises(BadRequest, match="--max_steps 5: ckpt_[0-9]* is at step 6 of phase"):
            call(words)


def test_phase_2_from_an_unfinished_phase_1_is_said(corpora, tmp_path, capsys):
    assert call(script_argv(corpora[0], corpora[2], tmp_path, steps_this_run=3)) == 0
    words = script_argv(corpora[1], corpora[2], tmp_path, phase2=True, resume_from_checkpoint=True, steps_this_run=1)
    assert call(words) == 0
    assert "step 3 of phase 1, which was to have 6: phase 1 is not finished" in capsys.readouterr().out


def test_a_log_begun_by_the_reference_is_drawn(tmp_path):
    from pretraining.reports import DlLogger, draw_training

    log = DlLogger(tmp_path / "log.json", fresh=True, objective=OBJECTIVES["mlm_nsp"])
    log.log([0, 1], {"average_loss": 9.0, "step_loss": 9.0, "learning_rate": 0.1})  # all that the reference logs
    log.log([0, 2], {"average_loss": 8.0, "learning_rate": 0.2, "sequences_per_second": 3.0})
    draw_training(log.history, tmp_path / "a.png", "title", OBJECTIVES["mlm_nsp"])
    assert (tmp_path / "a.png").exists()


def test_init_checkpoint_starts_step_0_with_the_weights_and_moments(whole_run, corpora, tmp_path):
    folder = checkpoints(whole_run[0])[-1]
    assert call(script_argv(corpora[0], corpora[2], tmp_path, init_checkpoint=folder, max_steps=2)) == 0
    assert [path.name for path in checkpoints(tmp_path)] == ["ckpt_2"]
    moments = torch.load(checkpoints(tmp_path)[0] / "optimizer.pt", weights_only=True)
    assert moments["param_groups"][0]["step"] == 14
    # evaluated before the first update: the loss of the weights as they came
    start = logged(tmp_path)[1][1, 0]["eval_mlm_loss"]
    assert start != pytest.approx(logged(whole_run[0])[1][1, 0]["eval_mlm_loss"], abs=1e-4)


def test_phase_2_goes_on_from_a_pt_of_the_reference(whole_run, corpora, tmp_path, capsys):
    from test_pretraining_checkpoint import reference_pt

    from pretraining.kernels.plain import PlainKernels
    from pretraining.modeling import BertConfig, BertForPreTraining, initialise

    model = BertForPreTraining(BertConfig.from_json(corpora[2]), PlainKernels())
    initialise(model, 3)
    folder = tmp_path / "results" / "checkpoints"
    folder.mkdir(parents=True)
    reference_pt(folder / "ckpt_7040.pt", model)
    words = script_argv(
        corpora[1], corpora[2], tmp_path, phase2=True, resume_from_checkpoint=True, phase1_end_step=7038
    )
    assert call(words) == 0
    assert "step 2 (phase 1 ended at 7038)" in capsys.readouterr().out
    assert [path.name for path in checkpoints(tmp_path)] == ["ckpt_7042", "ckpt_7044"]


def test_dry_evaluation_without_training(whole_run, corpora, tmp_path, capsys):
    folder = checkpoints(whole_run[0])[-1]
    words = script_argv(corpora[1], corpora[2], tmp_path, init_checkpoint=folder, do_train=False, phase2=True)
    assert call(words) == 0
    found = logged(tmp_path)[1][2, 12]["eval_mlm_loss"]
    assert found == pytest.approx(logged(whole_run[0])[1][2, 12]["eval_mlm_loss"], rel=1e-6)
    assert not checkpoints(tmp_path)
