"""Ranks that hang: who is named, when, and how the run ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pretraining_helpers import SCRIPT, environment, make_corpus, script_argv, write_config

from central.runtime.checkpoints import is_complete, list_checkpoints
from central.runtime.watchdog import BUSY, SILENT, Beat, Seen, hanging

ROOT = Path(__file__).resolve().parents[1]


PATIENCE = 300


def seen(progress: int, silence: int = 0, doing: str = "step 3") -> Seen:
    return Seen(Beat(9, progress, doing, "hosta"), silence)


@pytest.mark.parametrize(
    ("ranks", "named"),
    [
        ([seen(5), seen(5, SILENT)], [1]),
        ([seen(5, SILENT), seen(2)], [0]),  # a silent one holds the others up, wherever they are
        ([seen(5), seen(4), seen(5)], [1]),
        ([seen(5), seen(5)], [0, 1]),
        ([seen(5), seen(4, doing=BUSY)], []),
        ([seen(5), seen(4, SILENT, doing=BUSY)], []),
        ([seen(5), seen(4, PATIENCE, doing=BUSY)], [1]),  # it was stopped amid a save
        ([seen(5, SILENT - 1), seen(5)], [0, 1]),
        ([], []),
    ],
)
def test_who_hangs(ranks, named):
    assert hanging(dict(enumerate(ranks)), PATIENCE) == named


ALONE = """
import sys, time
from types import SimpleNamespace
from central.runtime.rank import Rank
from central.runtime.watchdog import Watchdog
dog = Watchdog(Rank(), float(sys.argv[1]), SimpleNamespace(requested=False), compiles=sys.argv[3] == "compiles")
if sys.argv[3] == "long":
    dog.mark("step 1"); time.sleep(4); dog.step()  # a step of 4 s: 4 s more are allowed from now on
if sys.argv[3] != "before training":
    dog.mark("step 2")
time.sleep(float(sys.argv[2]))
dog.close()
"""


@pytest.mark.parametrize(
    ("timeout", "seconds", "how", "status"),
    [
        (1, 30, "", 124),
        (0, 4, "", 0),
        (3, 1, "", 0),
        (1, 4, "compiles", 0),
        (5, 8, "long", 0),
        (1, 5, "before training", 0),
    ],
    ids=["hangs", "not watched", "in time", "compiles", "as long as the step before", "before training"],
)
def test_a_process_alone(timeout, seconds, how, status):
    words = [sys.executable, "-c", ALONE, str(timeout), str(seconds), how]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    if status:
        host = os.uname().nodename
        assert f"rank 0 on {host} hangs: no progress for 2 s in step 2" in done.stderr
        assert f"rank 0 on {host}: exit status 124" in done.stderr


SAVING = """
import os, signal, sys, time
from types import SimpleNamespace
from torch.distributed import TCPStore
from central.runtime.rank import Rank
from central.runtime.watchdog import Watchdog
number, port = int(sys.argv[1]), int(sys.argv[2])
store = TCPStore("127.0.0.1", port, 2, is_master=number == 0)
dog = Watchdog(Rank(number, number, 2, 2), 10, SimpleNamespace(requested=False), store)
dog.busy()
if number == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
dog.mark("step 3, exchange of gradients")
time.sleep(60)
"""


def test_a_rank_that_is_frozen_amid_a_save_is_named():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen([sys.executable, "-c", SAVING, rank, port], env=environ, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    try:
        errors = ranks[0].communicate(timeout=60)[1]
    finally:
        ranks[1].kill()
        ranks[1].communicate()
    assert ranks[0].returncode == 124, errors
    assert f"rank 1 on {os.uname().nodename} hangs: no sign of life" in errors and f"last seen in {BUSY}" in errors


@pytest.fixture
def frozen(tmp_path, mpirun):
    """A function that starts two ranks, freezes one after step 3, and returns mpirun, the time and what it says."""
    corpus, config = make_corpus(tmp_path / "short"), write_config(tmp_path / "config.json")
    started = []

    def freeze(which, number, **flags):
        words = script_argv(corpus, config, tmp_path, train_batch_size=4, max_steps=10000, **flags)
        process = subprocess.Popen(
            [mpirun, "--oversubscribe", "--bind-to", "none", "-n", "2", sys.executable, str(SCRIPT), *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        started.append(process)
        for line in process.stdout:
            if line.startswith("step 3/"):
                break
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(ranks[which]), signal.SIGSTOP)
        begin = time.monotonic()
        if number:
            process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
        return process.returncode, time.monotonic() - begin, errors

    yield freeze
    for process in started:
        process.terminate()
        process.wait(30)


@pytest.mark.mpi
@pytest.mark.parametrize(
    "which", [1, pytest.param(0, marks=pytest.mark.slow)], ids=["any rank", "the rank that holds the store"]
)
def test_a_frozen_rank_is_named_and_the_run_ends(frozen, tmp_path, which):
    status, seconds, errors = frozen(which, None, hang_timeout=10)
    assert status == 124, errors
    assert seconds < 30
    assert f"rank {which} on {os.uname().nodename} hangs: no sign of life" in errors
    assert list_checkpoints(tmp_path / "results/checkpoints")
    assert all(map(is_complete, list_checkpoints(tmp_path / "results/checkpoints")))


@pytest.mark.mpi
@pytest.mark.parametrize(
    "which", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["the rank that holds the store", "any rank"]
)
def test_a_stop_with_a_frozen_rank_ends_soon_and_names_it(frozen, which):
    status, seconds, errors = frozen(which, signal.SIGUSR1)
    assert status == 124, errors
    assert seconds < 20
    assert f"rank {which} on {os.uname().nodename} hangs: no sign of life" in errors
