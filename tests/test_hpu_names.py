"""The tables of tests/hpu_emulator/README.md: every name and variable of Habana's that the project uses, no others."""

import json
import re
from pathlib import Path

import pytest
from emulated_gaudi import EMULATOR, ROOT, Gaudi

TABLES = (EMULATOR / "README.md").read_text()
VARIABLE = re.compile(r"\b(?:PT_HPU|HABANA|HCCL|HCL|HLS)_[A-Z0-9_]*[A-Z0-9]\b")
KEYS_OF_THE_HCL_FILE = {"HCL_COUNT", "HCL_RANKS"}


def table(heading: str) -> list[str]:
    """What stands in the first column of the table below a heading."""
    section = TABLES.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\S+)` \|", section, re.MULTILINE)


NAMES = table("Names of Habana's that the project uses")
VARIABLES = table("Variables of Habana's that the project uses")


def sources(*patterns: str) -> list[Path]:
    folders = [ROOT / name for name in ("central", "pretraining", "transformers", "demo", "benchmarks", "hb_configs")]
    return [ROOT / "demo_bert.py"] + [path for pattern in patterns for top in folders for path in top.rglob(pattern)]


def names_used(text: str) -> set[str]:
    """Names of Habana's in a module: what it imports, and attributes of modules that it imports or torch has."""
    found = {f"torch.hpu.{name}" for name in re.findall(r"(?:torch\.hpu|self\._torch\(\))\.(\w+)", text)}
    for module, imported in re.findall(r"from (habana_frameworks[\w.]*) import \(?([\w, \n]+)", text):
        found |= {f"{module}.{name.split()[0]}" for name in imported.split(",") if name.strip()}
    for module, alias in re.findall(r"^\s*import (habana_frameworks[\w.]*)(?: as (\w+))?", text, re.MULTILINE):
        attributes = re.findall(rf"\b{alias}((?:\.\w+)+)", text) if alias else [""]
        found |= {module + attribute for attribute in attributes}
    return found | ({"habana_frameworks"} if '"habana_frameworks"' in text else set())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("from habana_frameworks.a import b, c", {"habana_frameworks.a.b", "habana_frameworks.a.c"}),
        ("  import habana_frameworks.torch.core as htcore\nhtcore.x.y()", {"habana_frameworks.torch.core.x.y"}),
        ("import habana_frameworks.torch.core", {"habana_frameworks.torch.core"}),
        ("torch.hpu.empty_cache()", {"torch.hpu.empty_cache"}),
    ],
)
def test_names_are_found(text, names):
    assert names_used(text) == names


def test_every_name_is_in_the_table():
    used = set().union(*(names_used(path.read_text()) for path in sources("*.py")))
    assert used == set(NAMES) and len(NAMES) == len(used)


def test_every_variable_is_in_the_table():
    texts = [
        path.read_text() for path in [*sources("*.py", "*.sh", "*.yaml"), ROOT / "README.md", ROOT / "docs/gaudi.md"]
    ]
    used = set().union(*map(VARIABLE.findall, texts))
    assert used == {*VARIABLES, *KEYS_OF_THE_HCL_FILE} and len(set(VARIABLES)) == len(VARIABLES)


def test_the_double_has_every_name_and_reads_every_variable(tmp_path):
    printed = Gaudi(tmp_path).python(f"""
import importlib, json, torch
from hpu_emulator import state
def find(path):
    words = path.split(".")
    for count in range(len(words), 0, -1):
        try:
            thing = importlib.import_module(".".join(words[:count]))
        except ImportError:
            continue
        for word in words[count:]:
            thing = getattr(thing, word)
        return
for name in {NAMES!r}:
    find(name)
print(json.dumps(sorted(state.VARIABLES)))
""")
    assert {name for name in VARIABLES if name.startswith("PT_HPU_")} <= set(json.loads(printed))
