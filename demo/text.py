"""The text of the demo: what this Python and its packages say of themselves, read from source, nothing imported."""

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from random import Random

PACKAGES = ("numpy", "networkx", "pandas", "fsspec", "pip", "packaging", "jinja2")  # what the installation brings
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "_vendor"}
SHORTEST = 40  # characters of a paragraph: below it are headings and names of parameters
FEWEST = 5  # sentences of a document
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def documents() -> list[str]:
    """A document a topic of the language reference, then one a module: a paragraph a line, FEWEST sentences or more."""
    sources = [[text] for _, text in sorted(topics.topics.items())] + [docstrings(path) for path in modules()]
    joined = ("\n".join(paragraph for text in source for paragraph in paragraphs(text)) for source in sources)
    return [document for document in joined if len(sentences(document)) >= FEWEST]


def modules() -> Iterator[Path]:
    """Source files of the standard library and of PACKAGES, in a fixed order."""
    library, packages = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    for root in (library, *(packages / name for name in PACKAGES)):
        for path in sorted(root.rglob("*.py")):
            if LEFT_OUT.isdisjoint(path.relative_to(root).parts):
                yield path


def docstrings(path: Path) -> list[str]:
    """Docstrings of a module, its classes and functions, in the order of the file; none where it is no valid Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return [text for node in nodes if (text := ast.get_docstring(node))]


def paragraphs(text: str) -> list[str]:
    """Paragraphs of prose, each joined to one line: without headings, examples, lists of parameters and tables."""
    blocks = (" ".join(block.split()) for block in text.split("\n\n"))
    return [
        block
        for block in blocks
        if len(block) >= SHORTEST and block[0].isupper() and block[-1] in ".!?" and plain(block)
    ]


def plain(paragraph: str) -> bool:
    """Whether most of it is words: code and markup have more signs."""
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return ">>>" not in paragraph and letters > 0.85 * len(paragraph)


def sentences(document: str) -> list[str]:
    return [sentence for line in document.splitlines() for sentence in SENTENCE_END.split(line)]


def neighbours(documents: list[str], count: int, seed: int) -> list[tuple[int, str, str]]:
    """(1, a sentence, the one after it) and (0, a sentence, one of another document), in turns, `count` at most."""
    random = Random(seed)
    split = [sentences(document) for document in documents]
    places = [(which, at) for which, found in enumerate(split) for at in range(len(found) - 1)]
    random.shuffle(places)
    rows: list[tuple[int, str, str]] = []
    for which, at in places[:count]:
        follows = len(rows) % 2
        if not follows:
            other = random.choice([n for n in range(len(split)) if n != which])
        second = split[which][at + 1] if follows else random.choice(split[other])
        rows.append((follows, split[which][at], second))
    return rows
