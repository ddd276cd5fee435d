"""kill -9 at moments drawn at random: nothing is lost, and what goes on ends as if it had never been killed.

A few kills of each kind are among the ordinary tests. `make test-faults` is the campaign: hundreds of them, a long run
whose memory is watched, and a table at the end. Set by the environment: FAULTS_SEED (printed, so that a campaign can be
repeated), FAULTS_SHARE (of the campaign's kills, 1 by default) and FAULTS_MINUTES (of the long run).

A start costs little: Python's fork server has imported torch and transformers, and each run is a fork of it.
"""

import collections
import contextlib
import faulthandler
import hashlib
import importlib
import itertools
import json
import mmap
import multiprocessing
import os
import random
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pretraining_helpers import (
    ROOT,
    SCRIPT,
    checkpoints,
    environment,
    logged,
    make_corpus,
    script_argv,
    write_config,
)
from test_data_prepare import WORDS, files_of, words, write_text
from test_finetuning_scripts import FOLDERS, glue_words, results

from central.files import checkpoint_step
from central.finetuning.output_folder import newest_trainer_checkpoint
from central.runtime.checkpoints import check_content, list_checkpoints, read_state

pytest_plugins = ("finetuning_fixtures",)

SEED = int(os.environ.get("FAULTS_SEED", secrets.randbelow(2**32)))
SHARE = float(os.environ.get("FAULTS_SHARE", 1))
MINUTES = float(os.environ.get("FAULTS_MINUTES", 15))
PATIENCE = 300  # s that a run may take on a busy machine
OF_A_LAUNCHER = 5  # s until a launcher would end ranks whose peer is gone; most end by themselves
STEPS = 10  # of each phase of a pre-training, saved and evaluated every second one

START_UP, BETWEEN = "start-up", "between"
# Where a run can be hit: a name, and the functions in whose midst it is then.
PRETRAINING = {
    "step": ["pretraining.train_loop.take_step"],
    "save": ["pretraining.checkpoint.write_checkpoint", "pretraining.checkpoint.prune"],
    "evaluation": ["pretraining.trainer.evaluate"],
}
SAVING = {"save": PRETRAINING["save"]}
PREPARING = {"tokens": ["pretraining.data.pipeline.tokenize"], "shards": ["pretraining.data.pipeline.write_hdf5"]}
FINETUNING = {
    "step": ["central.finetuning.trainer.FineTuningTrainer.training_step"],
    "save": ["central.finetuning.trainer.FineTuningTrainer._save_checkpoint"],
    "evaluation": ["central.finetuning.trainer.FineTuningTrainer.evaluation_loop"],
}
# What takes half the time of so small a run, and changes nothing in it: left out.
LEFT_OUT = ["pretraining.reports.draw_training", "central.runtime.device.Device.matrix_peak"]
PRELOADED = ["torch._dynamo", "pretraining.run_pretraining", "pretraining.data.prepare", "matplotlib.figure"]
PRELOADED += ["run_glue", "pretraining.data.request_options"]


class Board:
    """Counters in a file that two processes map: what one wrote before it was killed, the other reads.

    Of each place how often it was entered and left; and one number more, which a run may set.
    """

    def __init__(self, path: Path, places: list[str]):
        self._places = places
        if not path.exists():
            path.write_bytes(bytes(8 * (2 * len(places) + 1)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def _read(self, index: int) -> int:
        return struct.unpack_from("<q", self._map, 8 * index)[0]

    def _write(self, index: int, value: int) -> None:
        struct.pack_into("<q", self._map, 8 * index, value)

    def entered(self, place: str) -> int:
        return self._read(2 * self._places.index(place))

    def where(self) -> str:
        """Where the run is, or was when it ended: the places it is in the midst of, one or several."""
        inside = [name for i, name in enumerate(self._places) if self._read(2 * i) > self._read(2 * i + 1)]
        began = any(self.entered(name) for name in self._places)
        return " and ".join(inside) or (BETWEEN if began else START_UP)

    @property
    def number(self) -> int:
        return self._read(2 * len(self._places))

    @number.setter
    def number(self, value: int) -> None:
        self._write(2 * len(self._places), value)

    def watch(self, place: str, name: str) -> None:
        """Have the function or method of this full name tell the board."""
        owner, attribute = _find(name)
        function, index = getattr(owner, attribute), 2 * self._places.index(place)

        def told(*args, **kwargs):
            self._write(index, self._read(index) + 1)
            try:
                return function(*args, **kwargs)
            finally:
                self._write(index + 1, self._read(index + 1) + 1)

        setattr(owner, attribute, told)


def _find(name: str) -> tuple[object, str]:
    """The module or class that holds a full name, and the last part of it."""
    outer, _, attribute = name.rpartition(".")
    try:
        return importlib.import_module(outer), attribute
    except ModuleNotFoundError:
        owner, inner = _find(outer)
        return getattr(owner, inner), attribute


def _child(work: Callable, argv: list, environ: dict, output: Path, board: Path, places: dict) -> None:
    """A run, in its own session: `work(argv)`, or `work(board, argv)` of this file, its output in a file."""
    os.setsid()
    os.environ.update(environ)
    with output.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    faulthandler.register(signal.SIGUSR2)
    for owner, attribute in map(_find, LEFT_OUT):
        setattr(owner, attribute, lambda *_: None)
    board = Board(board, list(places))
    for place, names in places.items():
        for name in names:
            board.watch(place, name)
    import torch

    torch.set_num_threads(1)
    sys.exit(work(board, argv) if work is save_forever else _run(work, argv))


def _run(main: str, argv: list) -> int:
    from central.runtime import exits

    owner, attribute = _find(main)
    return exits.run(getattr(owner, attribute), list(map(str, argv)))


class Run:
    """A job under way: one process for each rank, forked off the fork server. `work` names a main function."""

    def __init__(self, work, argv: list, folder: Path, places: dict, ranks: int = 1):
        folder.mkdir(parents=True, exist_ok=True)
        boards = [folder / f"board_{rank}" for rank in range(ranks)]
        for path in boards:
            path.unlink(missing_ok=True)
        self.board, self.places = Board(boards[0], list(places)), [START_UP, *places]
        self.output = folder / "output.txt"
        self.processes = [
            multiprocessing.get_context("forkserver").Process(
                target=_child, args=(work, argv, environ, self.output, board, places)
            )
            for environ, board in zip(_rank_variables(ranks), boards)
        ]
        for process in self.processes:
            process.start()

    def is_over(self) -> bool:
        return not any(process.is_alive() for process in self.processes)

    def end(self) -> None:
        """Wait for a good end."""
        self._wait(PATIENCE)
        for process in filter(multiprocessing.Process.is_alive, self.processes):
            os.kill(process.pid, signal.SIGUSR2)  # says where it hangs
            process.join(1)
        statuses = [process.exitcode for process in self.processes]
        self._kill(self.processes)
        assert set(statuses) == {0}, f"{statuses}\n{self.output.read_text()[-6000:]}"

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, until - time.monotonic()))

    def kill(self, rng: random.Random, places: list[str], latest: float = 0.05) -> str | None:
        """Kill it, or one of its ranks; where it was then, None where it had come to its end before.

        The moment lies within `latest` seconds after one of the first entries into one of the places.
        """
        place, times = rng.choice(places), rng.randint(1, 5)
        while place != START_UP and self.board.entered(place) < times and not self.is_over():
            time.sleep(0.0005)
        time.sleep(rng.random() * (10 * latest if place == START_UP else latest))
        self._kill(self.processes if rng.random() < 0.5 else [rng.choice(self.processes)], rng.random() < 0.5)
        self._wait(OF_A_LAUNCHER)
        self._kill(self.processes)
        statuses = [process.exitcode for process in self.processes]
        if not any(statuses):
            return None
        assert -signal.SIGKILL in statuses, self.output.read_text()[-3000:]
        return self.board.where()

    def _kill(self, processes: list, with_workers: bool = True) -> None:
        for process in processes:
            process.kill()
            with contextlib.suppress(ProcessLookupError):  # those it started are a session with it
                os.killpg(process.pid, signal.SIGKILL if with_workers else 0)
        for process in processes:
            process.join()


def _rank_variables(ranks: int) -> list[dict]:
    """What torchrun would set for each rank."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def kill_and_go_on(stages: list[Callable[[], Run]], kills: int, rng: random.Random, check: Callable[[], None]) -> list:
    """Start the stages of a job one after the other, each killed at most `kills` times, then left to end; where they
    were hit. `check` is called after each kill."""
    hits = []
    for start in stages:
        for _ in range(rng.randint(1, kills)):
            run = start()
            where = run.kill(rng, run.places)
            if where is None:
                break
            hits.append(where)
            check()
        start().end()
    return hits


@pytest.fixture(scope="module", autouse=True)
def fork_server(tmp_path_factory):
    """Started once, with all imports done; its environment is that of all runs."""
    folders = [ROOT, ROOT / "tests", *FOLDERS.values()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(name, raising=False)
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
        yield


@pytest.fixture(scope="module")
def table(request):
    """Takes (what, kills and where they hit, result) and prints all at the end."""
    rows = []
    yield lambda what, hits, result: rows.append((what, hits, result))
    lines = [f"FAULTS_SEED={SEED}", "| what | kills | where they hit | result |", "|---|---|---|---|"]
    for what, hits, result in rows:
        places = ", ".join(f"{place} {count}" for place, count in collections.Counter(hits).most_common())
        lines.append(f"| {what} | {len(hits) or ''} | {places} | {result} |")
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print("", *lines, sep="\n")


@pytest.fixture
def rng(request) -> random.Random:
    print(f"FAULTS_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.originalname} {request.node.callspec.id}")


def kills(few: int, many: int):
    """A test runs with a few kills, and in the campaign with many."""
    many = pytest.param(max(1, round(SHARE * many)), marks=[pytest.mark.faults, pytest.mark.timeout(3600)], id="many")
    return pytest.mark.parametrize("count", [pytest.param(few, id="few"), many])


# ---------------------------------------------------------------- pre-training


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Corpora of both phases and a model configuration, as small as they can be."""
    folder = tmp_path_factory.mktemp("corpora")
    short = make_corpus(folder / "short", seq_len=16, max_predictions=3)
    long = make_corpus(folder / "long", seq_len=32, max_predictions=5)
    config = write_config(folder / "config.json", hidden_size=16, num_hidden_layers=1, intermediate_size=32)
    return short, long, config


def pretraining(corpora, out: Path, ranks: int, **flags) -> list[Callable[[], Run]]:
    """Both phases, each of which resumes where it stopped."""
    short, long, config = corpora
    common = {"max_steps": STEPS, "train_batch_size": 4, "save_total_limit": 1000, "resume_from_checkpoint": True}
    words = [script_argv(corpus, config, out, phase2=corpus is long, **common, **flags) for corpus in (short, long)]
    return [lambda argv=argv: Run("pretraining.run_pretraining.main", argv, out, PRETRAINING, ranks) for argv in words]


def left_by_pretraining(out: Path) -> dict:
    """Of each checkpoint its place in the training and the checksums of its files; of each step the losses."""
    found = {}
    for folder in checkpoints(out):
        state = read_state(folder)
        check_content(folder, state)
        found[folder.name] = {key: state[key] for key in ("phase", "step", "global_step", "data", "sha256")}
    training, held_out = logged(out)
    found["losses"] = {step: data["step_loss"] for step, data in training.items()}
    found["held out"] = held_out
    found["unfinished"] = [path.name for path in (out / "results" / "checkpoints").glob(".*")]
    return found


@kills(few=3, many=34)
@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        pytest.param(1, {}, id="1 rank"),
        pytest.param(2, {}, id="2 ranks, DDP"),
        pytest.param(2, {"allreduce_post_accumulation": True}, id="2 ranks, flat exchange"),
    ],
)
def test_a_pretraining_that_is_killed_leaves_what_it_would_have(
    corpora, tmp_path, rng, table, request, ranks, flags, count
):
    """Checkpoints, losses and evaluations of both phases, to the bit."""
    for start in pretraining(corpora, tmp_path / "calm", ranks, **flags):
        start().end()
    expected, hits = left_by_pretraining(tmp_path / "calm"), []
    assert len(expected["losses"]) == 2 * STEPS and len(expected["held out"]) > STEPS and not expected["unfinished"]
    for number in itertools.count():
        out, whole = tmp_path / f"killed_{number}", {}

        def check(out=out, whole=whole):
            found = {path: read_state(path)["sha256"] for path in checkpoints(out)}
            assert whole.items() <= found.items(), "a checkpoint was lost"
            whole.update(found)

        hits += kill_and_go_on(pretraining(corpora, out, ranks, **flags), min(6, count), rng, check)
        assert left_by_pretraining(out) == expected, out
        if len(hits) >= count:
            break
    name = request.node.callspec.id.removesuffix("-many").removesuffix("-few")
    table(f"pre-training, both phases, {name}", hits, f"{number + 1} runs, each equal to the bit to one left alone")


# ---------------------------------------------------------------- saving

LIMIT = 3


def save_forever(board: Board, argv: list) -> None:
    """Save a model in a loop, its weights telling the step; the board's number is the newest step that was kept."""
    import torch

    from pretraining import checkpoint
    from pretraining.kernels.cpu import CpuKernels
    from pretraining.lamb import Lamb, global_norm
    from pretraining.modeling import BertConfig, BertForPreTraining

    folder = Path(argv[0])
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    model = BertForPreTraining(BertConfig(vocab_size=2000, **sizes), CpuKernels())
    optimizer = Lamb(model.parameters(), lr=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(global_norm([parameter.grad for parameter in model.parameters()]))
    checkpoint.sweep(folder)
    saver = checkpoint.CheckpointWriter(folder, LIMIT)
    for step in itertools.count(max(map(checkpoint_step, list_checkpoints(folder)), default=0) + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
        state = {"phase": 1, "step": step, "global_step": step, "data": {"rows_read": 0}, "settings": {}}
        saver.save(model, optimizer, state, {"vocab.txt": "a\n"}, lambda step=step: setattr(board, "number", step))


@kills(few=10, many=300)
def test_no_kill_while_saving_loses_a_checkpoint(tmp_path, rng, table, count):
    """What was kept stays, and what bears a checkpoint's name is whole."""
    from pretraining import checkpoint

    folder, hits, newest = tmp_path / "checkpoints", [], 0
    while len(hits) < count:
        run = Run(save_forever, [folder], tmp_path, SAVING)
        where = run.kill(rng, ["save"], latest=0.02)
        hits += [where] if where == "save" else []
        newest = max(newest, run.board.number)
        found = list_checkpoints(folder)
        for path in found:
            check_content(path, read_state(path))
        steps = list(map(checkpoint_step, found))
        assert max(steps, default=0) >= newest and len(steps) >= min(LIMIT, newest), (steps, newest)
        if found:
            weights, moments = checkpoint.read_weights(found[-1]), checkpoint.read_moments(found[-1])
            assert all((tensor == steps[-1]).all() for tensor in weights.values()) and moments["state"]
        newest = max([newest, *steps])
    table("saving in a loop", hits, f"{newest} checkpoints written, 0 lost, 0 that are not whole")


# ---------------------------------------------------------------- prepare.py


@kills(few=2, many=30)
def test_a_preparation_that_is_killed_leaves_the_same_bytes(tmp_path, rng, table, count):
    """One process or two, the workers killed with it or left to themselves."""
    vocabulary = tmp_path / "vocab.txt"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS, *(f"d{number}" for number in range(800))]
    vocabulary.write_text("\n".join(tokens) + "\n")
    text = write_text(tmp_path / "text.txt", 800)

    def start(out, processes):
        argv = words(text, vocabulary, out, "--num_processes", str(processes))
        return Run("pretraining.data.prepare.main", argv, out.with_name(f"{out.name}_run"), PREPARING)

    start(tmp_path / "calm", 1).end()
    expected, hits = files_of(tmp_path / "calm"), []
    for number in itertools.count():
        out, processes = tmp_path / f"killed_{number}", rng.randint(1, 2)

        def check(out=out):
            done = {str(path.relative_to(out)): path for path in out.glob("hdf5*/c/*.hdf5")}
            for name, path in done.items():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == expected[name], path

        hits += kill_and_go_on([lambda out=out, n=processes: start(out, n)], min(6, count), rng, check)
        assert files_of(out) == expected and not list(out.rglob("*.tmp")), out
        if len(hits) >= count:
            break
    table("`prepare.py`", hits, f"{number + 1} preparations, each with the bytes of one left alone")


# ---------------------------------------------------------------- fine-tuning


def left_by_finetuning(out: Path) -> dict:
    """Digests of the weights of each checkpoint and of the end, and what the run reports, times left out."""
    files = [
        *out.glob("checkpoint-*/*.safetensors"),
        *out.glob("checkpoint-*/optimizer.pt"),
        *out.glob("*.safetensors"),
    ]
    found = {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    timed = re.compile("runtime|per_second")
    found["results"] = {name: value for name, value in results(out).items() if not timed.search(name)}
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    found["log"] = [{k: v for k, v in line.items() if not timed.search(k)} for line in history]
    return found


@kills(few=2, many=10)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_finetuning_that_is_killed_leaves_what_it_would_have(
    tiny_model, pairs, tmp_path, rng, table, monkeypatch, ranks, count
):
    """Weights, scores and log, to the bit."""

    def start(out):
        steps = ["--max_steps=8", "--save_steps=2", "--eval_strategy=steps", "--eval_steps=2", "--logging_steps=1"]
        more = ["--do_eval", "--no_cuda", "--resume_from_checkpoint", "--overwrite_output_dir"]
        argv = glue_words(tiny_model, pairs, out, *steps, *more)
        return Run("run_glue.main", argv, out.with_name(f"{out.name}_run"), FINETUNING, ranks)

    start(tmp_path / "calm").end()
    expected, hits = left_by_finetuning(tmp_path / "calm"), []
    assert len(expected) > 8
    for number in itertools.count():
        out, newest = tmp_path / f"killed_{number}", [0]

        def check(out=out, newest=newest):
            found = newest_trainer_checkpoint(out)
            step = int(found.name.removeprefix("checkpoint-")) if found else 0
            assert step >= newest[-1], "a checkpoint was lost"
            newest.append(step)

        hits += kill_and_go_on([lambda out=out: start(out)], min(6, count), rng, check)
        assert left_by_finetuning(out) == expected, out
        if len(hits) >= count:
            break
    table(f"fine-tuning, {ranks} rank(s)", hits, f"{number + 1} runs, each equal to the bit to one left alone")


# ---------------------------------------------------------------- memory


def resident_megabytes(pid: int) -> float:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


@pytest.mark.faults
@pytest.mark.timeout(60 * MINUTES + 600)
def test_memory_of_a_long_run_is_flat(corpora, tmp_path, table):
    """Tiny steps, a checkpoint, an evaluation and a picture every 200: under 1 MB more per 1,000 steps."""
    flags = {"max_steps": 10**6, "num_steps_per_checkpoint": 200, "train_batch_size": 4, "learning_rate": 1e-3}
    argv = script_argv(corpora[0], corpora[2], tmp_path, gradient_accumulation_steps=1, **flags)
    with (tmp_path / "output.txt").open("wb") as output:
        run = subprocess.Popen([sys.executable, str(SCRIPT), *argv], stdout=output, stderr=output, env=environment())
    curve, until = [], time.monotonic() + 60 * MINUTES
    with (tmp_path / "output.txt").open("rb") as output:
        while time.monotonic() < until:
            time.sleep(min(5, MINUTES))
            assert run.poll() is None, (tmp_path / "output.txt").read_text()[-3000:]
            output.seek(-min(1000, output.seek(0, os.SEEK_END)), os.SEEK_END)
            steps = re.findall(rb"step (\d+)/", output.read())
            curve += [(int(steps[-1]), resident_megabytes(run.pid))] if steps else []
    run.kill()
    run.wait()
    warm = [point for point in curve if point[0] >= curve[-1][0] / 3]
    slope = 1000 * np.polyfit(*zip(*warm), 1)[0]
    results_dir = tmp_path / "results"
    picture, log = ((results_dir / name).stat().st_size for name in ("training.png", "dllogger.json"))
    shown = ", ".join(f"{megabytes:.0f} MB at {step}" for step, megabytes in curve[:: max(1, len(curve) // 8)])
    sizes = f"log {log / curve[-1][0]:.0f} bytes a step, picture {picture} bytes"
    what = f"{curve[-1][0]} tiny steps in {MINUTES:g} minutes"
    table(what, [], f"{slope:+.2f} MB per 1,000 steps ({shown}); {sizes}")
    assert slope < 1 and picture < 2**18
