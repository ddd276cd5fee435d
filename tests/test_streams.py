"""Streams whose other end goes away, is closed from the start, lacks letters or is slow: nothing of it ends a run."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch_project import checkpoints, copy_project, left_running, run, start, wait_until, words

from central.launch import supervise
from central.launch.processes import Log

ROOT = Path(__file__).resolve().parents[1]
TALK = """
import sys
from central import streams
streams.protect()
streams.protect()  # twice is once
made = open(sys.argv[1], "w")
for number in range(int(sys.argv[2])):
    print("café", number)
    print("café", number, file=sys.stderr)
made.write(f"{made.fileno()}")
"""


def talk(tmp_path, lines, redirect="", **environ):
    """A shell that runs a program of many lines: (status, what it wrote to its file, standard output)."""
    (tmp_path / "talk.py").write_text(TALK)
    made = tmp_path / "made"
    command = f'"{sys.executable}" "{tmp_path}/talk.py" "{made}" {lines} {redirect}'
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, env=environ, timeout=60)
    return done.returncode, made.read_text(), done.stdout


@pytest.mark.parametrize(
    "redirect", ["| head -1", "2>&1 | head -1", "2> >(head -1) > /dev/null", "> /dev/full 2>&1", "> /dev/full"]
)
def test_a_stream_that_takes_no_more_ends_nothing(tmp_path, redirect):
    status, made, _ = talk(tmp_path, 20000, redirect)
    assert (status, made) == (0, "3")


@pytest.mark.parametrize("redirect", ["<&- >&- 2>&-", ">&-", "2>&-", "<&-"])
def test_no_file_takes_the_place_of_a_stream_that_was_closed(tmp_path, redirect):
    status, made, _ = talk(tmp_path, 3, redirect)
    assert (status, made) == (0, "3")


def test_letters_that_the_terminal_lacks_are_escapes(tmp_path):
    status, _, out = talk(tmp_path, 1, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert (status, out) == (0, rb"caf\xe9 0" + b"\n")
    status, _, out = talk(tmp_path, 1, PYTHONIOENCODING="latin-1")
    assert (status, out) == (0, "café 0\n".encode("latin-1"))


def test_a_reader_that_is_slow_gets_every_line_of_a_stream_that_does_not_block(tmp_path):
    """Programs that share a terminal or a pipe of CI may have made it so."""
    (tmp_path / "talk.py").write_text(TALK)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    argv = [sys.executable, str(tmp_path / "talk.py"), str(tmp_path / "made"), "20000"]
    process = subprocess.Popen(
        argv, stdout=writer, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    os.close(writer)
    time.sleep(0.5)
    with open(reader, "rb") as file:
        assert file.read().splitlines() == [f"café {number}".encode() for number in range(20000)]
    assert process.wait() == 0


@pytest.fixture
def project(tmp_path):
    return copy_project(tmp_path)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_that_takes_the_reader_of_the_lines_with_it_saves(project, ranks):
    """What `demo_bert.py ... 2>&1 | tee log` is at Ctrl-C."""
    launcher = start(words(project, "--world_size", str(ranks), steps=2000), project, ranks)
    launcher.stdout.close()
    launcher.stderr.close()
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=60) == 85
    assert len(list(checkpoints(project).glob("saved_by_rank_*"))) == ranks
    assert left_running(project) == []


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_terminal_that_is_closed_stops_a_run_after_saving(project, ranks):
    request = words(project, "--world_size", str(ranks), steps=2000)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir("/")
        os.execv(request[0], request)
    wait_until(lambda: len(list(checkpoints(project).glob("phase1_rank*.json"))) == ranks)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 85
    assert len(list(checkpoints(project).glob("saved_by_rank_*"))) == ranks


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_without_any_streams_is_a_run(project, ranks):
    request = words(project, "--world_size", str(ranks), "--create_logfile", steps=3)
    done = subprocess.run(["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", *request], cwd="/", timeout=120)
    assert done.returncode == 0
    log = (checkpoints(project).parent / "train.log").read_text()
    assert all(f"phase {phase}, rank {rank}: café 100 %" in log for phase in (1, 2) for rank in range(ranks))


def test_python_does_not_look_beside_the_script(project):
    assert run(words(project, steps=1), PYTHONSAFEPATH="1")[0] == 0


@pytest.mark.parametrize("script", ["text-classification/run_glue.py", "question-answering/run_qa.py"])
def test_scripts_find_their_modules_where_python_does_not_look_for_them(script):
    path = ROOT / "transformers/examples/pytorch" / script
    done = subprocess.run([sys.executable, "-P", str(path), "-h"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_second_sigterm_while_saving_changes_nothing(project):
    """Schedulers send it twice. The process that stops and the launcher hold out to their very end."""
    launcher = start(words(project, steps=2000, saving=3), project, 1)
    launcher.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    while launcher.poll() is None:
        launcher.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    assert launcher.returncode == 85
    assert list(checkpoints(project).glob("saved_by_rank_0"))


def test_one_press_of_ctrl_c_may_arrive_twice():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs behind it with SIGINT ignored
    with supervise.StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert (stop.count, stop.hurries) == (2, 0)
        time.sleep(supervise.ONE_PRESS + 0.1)
        signal.raise_signal(signal.SIGINT)
        assert (stop.count, stop.hurries) == (3, 1)
        stop.count = 0  # leave the signals of the tests as they were


def test_ctrl_c_before_anything_runs_is_one_line(project):
    """The import of the launcher and its look at the machine take a while."""
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from central.launch import cli, plan\n"
        "def prepare(*_): raise KeyboardInterrupt\n"
        "plan.prepare = prepare; sys.exit(cli.main(sys.argv[1:]))"
    )
    request = [sys.executable, "-c", program, str(project), *words(project)[2:]]
    assert run(request)[:3] == (130, "", "interrupted\n")


def test_a_log_that_was_deleted_is_made_again_and_a_full_disk_ends_nothing(tmp_path):
    path = tmp_path / "results" / "train.log"
    path.parent.mkdir()
    log = Log(str(path))
    log.write(b"one\n")
    opened = len(os.listdir("/proc/self/fd"))
    path.unlink()
    path.parent.rmdir()
    log.write(b"two\n")
    assert path.read_text() == "two\n" and len(os.listdir("/proc/self/fd")) == opened
    assert log.close()
    full = Log("/dev/full")
    full.write(b"three\n")
    assert not full.close()
