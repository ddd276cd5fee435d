"""The mutation round's own parts: what is mutated, by which tests it is met, and that its lists are of this code."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import mutations
import pytest

SAMPLE = '''"""A file."""
LIMIT = 3


def weigh(a, b, *, scale=2.0):
    """Words."""
    if a < b and not scale:
        raise ValueError(f"{a + b} is too much")
    print(a)
    return min(a, b) / scale
'''


def changes(tmp_path, monkeypatch) -> dict[str, str]:
    """{mutant: its source} of the sample."""
    monkeypatch.setattr(mutations, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text(SAMPLE)
    return {str(mutant): mutant.source() for mutant in mutations.mutants_of("a.py")}


def in_one_form(text: str) -> str:
    return ast.unparse(ast.parse(text))


@pytest.mark.parametrize(
    "change",
    [
        "a.py |  | LIMIT = 3 -> LIMIT = 4",
        "a.py | weigh | a < b -> a <= b",
        "a.py | weigh | a < b -> a >= b",
        "a.py | weigh | a < b and (not scale) -> a < b or not scale",
        "a.py | weigh | not scale -> scale",
        "a.py | weigh | print(a) -> pass",
        "a.py | weigh | min(a, b) -> max(a, b)",
        "a.py | weigh | min(a, b) / scale -> min(a, b) * scale",
        "a.py | weigh | return min(a, b) / scale -> return None",
    ],
)
def test_a_mutant_is_one_change(tmp_path, monkeypatch, change):
    sources = changes(tmp_path, monkeypatch)
    before, after = change.split(" | ")[-1].split(" -> ")
    plain = in_one_form(SAMPLE)
    assert in_one_form(sources[change]) == in_one_form(plain.replace(before, after)) != plain


def test_words_of_messages_are_not_mutated(tmp_path, monkeypatch):
    assert not any(
        "a + b" in change.split(" -> ")[0] for change in changes(tmp_path, monkeypatch) if "raise" not in change
    )


def test_every_line_of_the_table_is_of_files_that_are_there():
    for glob in mutations.TESTS:
        assert list(mutations.ROOT.glob(glob)), glob
    for path, tests in mutations.scope().items():
        assert tests and all((mutations.ROOT / test).is_file() for test in tests), path


def test_equivalent_mutants_are_mutants_of_this_code():
    mutants = {}
    for change, reason in mutations.equivalent().items():
        path = change.split(" | ")[0]
        if path not in mutants:
            mutants[path] = set(map(str, mutations.mutants_of(path)))
        assert change in mutants[path] and len(reason) > 10, change


def crash(_folder):
    os.kill(os.getpid(), signal.SIGSEGV)


def fail(_folder):
    raise FileNotFoundError("the copy is gone")


def end_the_round(_folder):
    os.kill(os.getppid(), signal.SIGTERM)
    return 1


WORKS = [crash, fail, end_the_round, lambda _: 0, lambda _: 5, lambda _: sys.exit(1)]


def small_round(folder: str):
    """A round of the sample in which each mutant has one of the works above; prints the fates."""
    mutations.ROOT = Path(folder)
    (mutations.ROOT / "a.py").write_text(SAMPLE)
    (copy := mutations.ROOT / "copy").mkdir()
    chosen = mutations.mutants_of("a.py")[: len(WORKS)]
    mutations.try_mutant = lambda mutant, *_: WORKS[chosen.index(mutant)]
    mutations.tests_for = lambda *_: ["a"]
    signal.pthread_sigmask(signal.SIG_BLOCK, mutations.ENDING)
    fates = ["not run"] * len(WORKS)
    mutations.run_round(chosen, {"a": {"seconds": 1}}, [copy], fates)
    print(*fates)


def test_no_mutant_ends_the_round_and_each_result_is_printed(tmp_path, monkeypatch):
    """After a crash of a child, a fault of the script's own and a signal to the round the next mutants are tried."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    words = [sys.executable, "-c", f"import test_mutation_tool as t; t.small_round({str(tmp_path)!r})"]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    fates = ["crashed", "unclear", "caught", "survived", "unclear", "unclear"]
    assert printed.splitlines()[-1].split() == fates
    monkeypatch.setattr(mutations, "ROOT", tmp_path)
    for number, (fate, mutant) in enumerate(zip(fates, mutations.mutants_of("a.py")), 1):
        assert f"{number}/6 {fate}: line {mutant.lines.start}: {mutant}\n" in printed
    assert "FileNotFoundError: the copy is gone" in printed


def test_a_round_ended_early_counts_what_it_had(tmp_path, monkeypatch, capsys):
    changes(tmp_path, monkeypatch)
    chosen = mutations.mutants_of("a.py")[:6]
    assert mutations.report(chosen, ["caught", "crashed", "late", *["not run"] * 3], 0) == 0
    assert "100.0% of 3 mutants" in capsys.readouterr().out
    assert mutations.report(chosen, ["caught", "unclear", "survived", *["not run"] * 3], 0) == 1
    assert "33.3% of 3 mutants" in capsys.readouterr().out


def test_a_mutant_meets_the_tests_that_reach_it_then_those_that_start_python(tmp_path, monkeypatch):
    changes(tmp_path, monkeypatch)
    monkeypatch.setattr(mutations, "scope", lambda: {"a.py": ["tests/test_a.py"]})
    mutants = mutations.mutants_of("a.py")
    mutant, outside = (next(mutant for mutant in mutants if mutant.inside == inside) for inside in (True, False))
    reached, elsewhere = {"a.py": [mutant.lines.start]}, {"a.py": [2]}

    def test(work, lines, starts_python=False):
        return {"work": work, "lines": lines, "starts_python": starts_python}

    tests = {
        "tests/test_a.py::elsewhere": test(1, elsewhere),
        "tests/test_a.py::starting": test(1, elsewhere, starts_python=True),
        "tests/test_a.py::slow": test(9, reached),
        "tests/test_a.py::quick": test(2, reached),
        "tests/test_a.py::reading_a_number": test(3, {}),
        "tests/test_a.py::beyond": test(mutations.BUDGET, {}, starts_python=True),
        "tests/test_b.py::another": test(1, reached),
    }
    chosen = [[name.split("::")[1] for name in mutations.tests_for(m, tests)] for m in (mutant, outside)]
    assert chosen == [["quick", "slow", "starting"], ["elsewhere", "starting", "quick", "reading_a_number", "slow"]]
