"""The demo's text and pairs; the demo itself runs under `make test-fresh`."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[1] / "demo"


@pytest.fixture(scope="module")
def text():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DEMO))
        import text

        yield text
        del sys.modules["text"]


def test_the_lines_to_go_on_with_compose(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DEMO))
        import run

        del sys.modules["run"]
    lines = [shlex.split(line) for line in run.NEXT if line.startswith("demo_bert.py")]
    assert lines
    for words in lines:
        done = subprocess.run(
            [sys.executable, *words, "--dry_run"], cwd=DEMO.parent, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and "run_" in done.stdout, done.stderr


def test_docstrings_are_read_from_source_and_nothing_is_imported(text, tmp_path):
    module = tmp_path / "module.py"
    module.write_text('"""Of the module."""\nraise SystemExit\n\n\ndef f():\n    """Of the function."""\n')
    assert text.docstrings(module) == ["Of the module.", "Of the function."]
    (tmp_path / "broken.py").write_text("def")
    assert text.docstrings(tmp_path / "broken.py") == []


def test_paragraphs_are_prose(text):
    prose = "A sentence about a thing that is long\nenough to be taken for a paragraph."
    source = "\n\n".join(
        ["Heading", prose, ">>> a = 1\n>>> print(a) is what one would write here.", "x : int, (1, 2) -> [3]."]
    )
    assert text.paragraphs(source) == [prose.replace("\n", " ")]


def test_pairs_are_half_neighbours_and_half_of_other_documents(text):
    documents = [" ".join(f"Sentence {n} of document {d}." for n in range(20)) for d in range(4)]
    rows = text.neighbours(documents, 60, seed=1)
    assert rows == text.neighbours(documents, 60, seed=1) != text.neighbours(documents, 60, seed=2)
    assert len(rows) == 60 and sum(label for label, _, _ in rows) == 30
    assert len({first for _, first, _ in rows}) == 60
    for label, first, second in rows:
        (n, d), (m, e) = ([int(word.rstrip(".")) for word in s.split() if word[0].isdigit()] for s in (first, second))
        assert (d == e and m == n + 1) if label else d != e
