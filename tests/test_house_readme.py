"""Every command of the README and of docs/: CPU lines are run, lines for other machines composed, `make` under `fresh`.

A comment before each block of commands says which: `<!-- test: run -->`, `dry`, `fresh`, or `by hand` with the reason.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"<!-- test: (?P<how>run|dry|fresh|by hand[^>]*?) -->\n```bash\n(?P<text>.*?)```", re.DOTALL)


def pages() -> str:
    """The README and all pages beside it, as one text."""
    return "\n".join(page.read_text() for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


def blocks(how: str) -> list[str]:
    return [match["text"] for match in BLOCK.finditer(pages()) if match["how"].startswith(how)]


def commands(block: str) -> list[str]:
    """Lines of a block with continuations joined; comments and empty lines left out."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the files git knows, as a fresh clone has them."""
    copy = tmp_path_factory.mktemp("clone") / "bert"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


def shell(script: str, folder: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_every_block_says_how_it_is_tested():
    assert len(BLOCK.findall(pages())) == pages().count("```bash")
    assert blocks("run") and blocks("dry") and blocks("fresh")


@pytest.mark.mpi
@pytest.mark.timeout(600)
def test_the_cpu_commands_run_in_order(checkout, mpirun):
    for block in blocks("run"):
        done = shell(block, checkout)
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_the_lines_for_other_machines_compose(checkout):
    for block in blocks("dry"):
        lines = [f"{line} --dry_run" if "demo_bert.py" in line else line for line in commands(block)]
        composed = shell("\n".join(lines), checkout)
        assert composed.returncode == 0, f"{block}\n{composed.stderr[-2000:]}"
        assert "run_" in composed.stdout, block


@pytest.mark.fresh
@pytest.mark.timeout(3600)
def test_a_fresh_clone_does_what_the_readme_says(checkout):
    assert not (checkout / ".venv").exists()
    clean = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    for block in blocks("fresh"):
        for line in commands(block):
            done = subprocess.run(
                ["bash", "-c", line], cwd=checkout, env=clean, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
            assert done.returncode == 0, f"{line}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    for row in json.loads((checkout / "demo_output/demo.json").read_text()):
        gain = row["score"] - row["baseline"] if row["better"] == "higher" else row["baseline"] - row["score"]
        assert gain > row["standard_error"] > 0, row
