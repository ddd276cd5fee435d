"""An emulated Gaudi server for tests: processes that see tests/hpu_emulator, their cards and their reports."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

RUN_SECONDS = 300  # of one run, on a loaded machine
ROOT = Path(__file__).resolve().parents[1]
EMULATOR = ROOT / "tests" / "hpu_emulator"

# Loaded by its file: on this process's path the emulator would be found by whatever looks for a Gaudi.
_spec = importlib.util.spec_from_file_location("hpu_emulator_build", EMULATOR / "hpu_emulator" / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def where_it_hangs(process: subprocess.Popen) -> str:
    """End a run that takes too long; tells its processes, what each waits for, and Python's stacks in them."""
    below = psutil.Process(process.pid).children(recursive=True)
    lines = [f"not over after {RUN_SECONDS} s:"]
    for each in (psutil.Process(process.pid), *below):
        with contextlib.suppress(psutil.Error, OSError):
            waits_for = Path(f"/proc/{each.pid}/wchan").read_text()
            lines.append(
                f"{each.pid} of {each.ppid()} {each.status()} in {waits_for}: {' '.join(each.cmdline())[:200]}"
            )
            if "python" in Path(each.exe()).name:
                each.send_signal(signal.SIGABRT)  # PYTHONFAULTHANDLER writes the stacks of all its threads
    psutil.wait_procs(below, timeout=5)
    for each in (*below, process):
        with contextlib.suppress(psutil.Error):
            each.kill()
    try:
        out, err = process.communicate(timeout=5)
    except subprocess.TimeoutExpired as read:
        lines.append("a process whose parent had ended keeps the output open")
        out, err = ((text or b"").decode() for text in (read.output, read.stderr))
    return "\n".join([*lines, "standard output:", out[-2000:], "standard error:", err[-6000:]])


class Gaudi:
    """One server: `folder` holds its card locks and the reports of its processes."""

    def __init__(self, folder: Path, cards: int = 8, generation: int = 2):
        if build.compiler() is None:
            pytest.skip("the emulated hpu needs a C++ compiler, and there is no g++ on the PATH")
        build.library()
        self.folder = folder
        self.cards = cards
        self.generation = generation

    def environment(self, **variables: str | None) -> dict[str, str]:
        """The caller's environment on this server; a variable given as None is absent."""
        environ = {
            **os.environ,
            "PATH": f"{EMULATOR / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{EMULATOR}",
            "HPU_EMULATOR_CARDS": str(self.cards),
            "HPU_EMULATOR_GENERATION": str(self.generation),
            "HPU_EMULATOR_STATE": str(self.folder / "cards"),
            "HPU_EMULATOR_REPORT": str(self.folder / "report.jsonl"),
            **variables,
        }
        return {name: value for name, value in environ.items() if value is not None}

    def run(self, argv: list[str], ranks: int = 1, **variables: str | None) -> subprocess.CompletedProcess:
        """Run `python argv...` to its end, under mpirun when there are several ranks."""
        command = [sys.executable, *argv]
        if ranks > 1:
            if shutil.which("mpirun") is None:
                pytest.skip("no mpirun on the PATH")
            command = ["mpirun", "-n", str(ranks), "--bind-to", "none", "--oversubscribe", *command]
        environ = self.environment(PYTHONFAULTHANDLER="1", **variables)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, env=environ, cwd=self.folder, text=True, **pipes) as process:
            try:
                out, err = process.communicate(timeout=RUN_SECONDS)
            except subprocess.TimeoutExpired:
                raise AssertionError(where_it_hangs(process)) from None
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def python(self, code: str, ranks: int = 1, mode: str = "eager", **variables: str | None) -> str:
        """Standard output of a program that must succeed."""
        variables.setdefault("PT_HPU_LAZY_MODE", "1" if mode == "lazy" else "0")
        done = self.run(["-c", code], ranks, **variables)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def reports(self) -> list[dict]:
        """One of each process that has used a card and ended, oldest first."""
        file = self.folder / "report.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
