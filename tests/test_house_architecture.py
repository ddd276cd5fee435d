"""docs/architecture.md says what is there: its picture is drawn from the imports, and the files it names exist."""

import importlib.util
import re

import pytest
from launch_project import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()


@pytest.fixture(scope="module")
def drawing():
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs" / "draw_architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_that_of_the_imports(drawing):
    assert drawing.BEGIN + drawing.picture() + drawing.END in PAGE, "python docs/draw_architecture.py --write"


def test_rooms_know_what_stands_below_them(drawing):
    for line in drawing.picture().splitlines():
        number, room, *rest = line.split()
        knows = [int(word) for word in line.rpartition("knows")[2].split()] if "knows" in line else []
        above = [other for other in knows if other < int(number)]
        assert not above or room == "pretraining" and above == [4], line


def test_the_files_that_the_page_names_are_there():
    names = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    files = [str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.py"), *ROOT.glob("*/**/*.py")]]
    missing = [name for name in names if not any(file == name or file.endswith("/" + name) for file in files)]
    assert len(names) > 20 and not missing
