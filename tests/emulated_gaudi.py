"""An emulated Gaudi server for tests: processes that see tests/hpu_emulator, their cards and their reports."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

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
        return subprocess.run(
            command, env=self.environment(**variables), cwd=self.folder, capture_output=True, text=True, timeout=300
        )

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
