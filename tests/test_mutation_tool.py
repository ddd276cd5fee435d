"""The mutation round's own parts: what is mutated, by which tests it is met, and that its lists are of this code."""

import ast

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
