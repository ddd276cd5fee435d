"""Every command line of the reference's README composes the reference's words, on Open MPI 4.

golden/reference_lines.json was taken by running the reference; golden/derived_lines.json holds the other lines of its
README, put together from those by hand with its flag tables.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
LINES = [line for name in ("reference", "derived") for line in json.loads((GOLDEN / f"{name}_lines.json").read_text())]
HOSTS = "10.10.100.101,10.10.100.102,10.10.100.103,10.10.100.104"
# Cores of a rank, and slots that follow from it: the reference divides in the wrong order and leaves cores idle.
ON_PURPOSE = (("ppr:4:socket:PE=4", "ppr:4:socket:PE=7"), (":32", ":56"))


def dry_run(root, words, **environ):
    """Standard output of a dry run, a line for each command."""
    argv = [sys.executable, str(root / "demo_bert.py"), *words, "--dry_run"]
    ours = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}  # nothing to be handed on
    done = subprocess.run(argv, capture_output=True, text=True, env={**ours, **environ})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def take_apart(words):
    """Variables set in front, words of mpirun, and the script's words in any order."""
    at = next(i for i, word in enumerate(words) if not re.fullmatch(r"\w+=.*", word, re.DOTALL))
    python = next(i for i, word in enumerate(words) if word in (sys.executable, "$PYTHON"))
    return dict(word.split("=", 1) for word in words[:at]), words[at:python], sorted(words[python + 1 :])


@pytest.mark.parametrize("line", LINES, ids=[f"line{line['readme_line']}" for line in LINES])
def test_readme_line(root, line):
    place = ["--device", "hpu", "--mpi", "openmpi4", "--node_topology", "2x28"]
    found = dry_run(root, [*line["argv"], *place], MULTI_HLS_IPS=HOSTS, DOCKER_SSHD_PORT="3022")
    assert len(found) == len(line["lines"])
    for ours, reference in zip(found, line["lines"]):
        variables, mpirun, script = take_apart(shlex.split(ours))
        for theirs, changed in ON_PURPOSE:
            reference = reference.replace(theirs, changed)
        reference = shlex.split(reference.replace("$ROOT", str(root)))
        _, expected_mpirun, expected_script = take_apart(reference)
        assert script == expected_script
        assert without_gaudi_variables(mpirun) == expected_mpirun
        if "-H" in mpirun:  # the reference sets MASTER_ADDR twice, to two addresses; ours once, by mpirun
            assert "MASTER_ADDR" not in variables
            variables |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "12345"}
        assert line["env"].items() <= variables.items()
        lazy = "1" if "--use_lazy_mode" in script else "0"
        assert variables["PT_HPU_LAZY_MODE"] == lazy
        if mpirun and "-H" in mpirun:
            assert f"PT_HPU_LAZY_MODE={lazy}" in mpirun


def without_gaudi_variables(mpirun):
    """mpirun's words without the variables for today's Gaudi software, which the reference did not know."""
    added = [i for i, word in enumerate(mpirun) if word.startswith("PT_HPU_")]
    return [word for i, word in enumerate(mpirun) if i not in added and i + 1 not in added]


def test_all_lines_of_the_readme_are_here():
    assert len(LINES) == 25
    assert sum(line["argv"][0] == "pretraining" for line in LINES) == 5
