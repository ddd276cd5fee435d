"""A copy of the launcher with a stand-in for run_pretraining.py, and ways to start it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def copy_project(folder) -> Path:
    """The project as far as the launcher needs it; its path holds a space and a dollar sign."""
    project = folder / "my $project"
    shutil.copytree(ROOT / "central", project / "central", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "demo_bert.py", project)
    (project / "pretraining").mkdir()
    for config in (ROOT / "pretraining").glob("*.json"):
        shutil.copy(config, project / "pretraining")
    (project / "pretraining" / "data").mkdir()
    shutil.copy(ROOT / "pretraining" / "data" / "row_lengths.py", project / "pretraining" / "data")
    shutil.copy(ROOT / "tests" / "launch_child.py", project / "pretraining" / "run_pretraining.py")
    for phase in (1, 2):
        (folder / f"phase {phase}").mkdir()
        with h5py.File(folder / f"phase {phase}" / "corpus_training_0.hdf5", "w") as file:
            file["input_ids"] = np.zeros((2, (128, 512)[phase - 1]), np.int32)
    return project


def words(project, *options, act="none", steps=10, rank=1, **script):
    """The command line of a run of the stand-in: `act` strikes at `rank`; `script` are further words for it."""
    folder = project.parent
    request = """pretraining --model_name_or_path tiny --data_type fp32 --device cpu --accumulate_gradients
        --train_batch_size 16 8 --batch_size 2 2""".split()
    data = ["--data_dir", str(folder / "phase 1"), str(folder / "phase 2"), "--output_dir", str(folder / "out put")]
    child = ["--act", act, "--steps", str(steps), "--rank", str(rank), *_switches(script)]
    return [sys.executable, str(project / "demo_bert.py"), *request, *data, *options, "--", *child]


def _switches(script):
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in script.items()]


def checkpoints(project) -> Path:
    return project.parent / "out put" / "results" / "checkpoints"


def run(argv, **environ):
    """Run it to its end: (status, standard output, standard error, seconds)."""
    begin = time.monotonic()
    done = subprocess.run(argv, capture_output=True, env={**os.environ, **environ}, cwd="/", timeout=120)
    return done.returncode, done.stdout.decode(), done.stderr.decode(), time.monotonic() - begin


def start(argv, project, ranks, **environ):
    """Start it as a terminal does, where Ctrl-C counts, and wait until its ranks run.

    Tests in the background of a script are started with SIGINT ignored, which the launcher would respect.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(argv, env={**os.environ, **environ}, cwd="/", text=True, **pipes)
    finally:
        signal.signal(signal.SIGINT, before)
    wait_until(lambda: len(list(checkpoints(project).glob("phase1_rank*.json"))) == ranks or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process


def left_running(project) -> list[str]:
    """Command lines of processes that still run this copy of the project."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if str(project) in command and state != "Z":
            found.append(f"{pid} {command}")
    return found


def descendants(pid) -> list[int]:
    """Processes that this one started, and those that they did."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def wait_until(holds, seconds=30):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
