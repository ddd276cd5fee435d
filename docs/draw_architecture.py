"""Draw the rooms of this project from the imports in its files, for docs/architecture.md:

python docs/draw_architecture.py          print the picture
python docs/draw_architecture.py --write  put it into docs/architecture.md
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- picture: drawn by docs/draw_architecture.py -->\n```\n", "```\n<!-- end of the picture -->\n"
# Folder or file -> what it is, in the order in which a command passes them.
ROOMS = {
    "demo_bert.py": "the command",
    "central/habana_model_runner.py": "the same from a YAML file",
    "central/launch": "the parent process: words to settings to commands",
    "pretraining/data": "text to HDF5",
    "pretraining": "the pre-training, in each rank",
    "pretraining/kernels": "how a device computes the network's steps",
    "transformers": "the fine-tuning scripts, in each rank",
    "central/finetuning": "what they share",
    "central/runtime": "what both trainings use: ranks, devices, signals, files",
    "central": "what parent and child both need: standard library only",
}


def room_of(path: str) -> str:
    """The room of a file, by its path from the project's folder."""
    return next(name for name in sorted(ROOMS, key=len, reverse=True) if f"{path}/".startswith(f"{name}/"))


def files() -> list[Path]:
    found = [ROOT / "demo_bert.py"]
    for folder in ("central", "pretraining", "transformers"):
        found += sorted((ROOT / folder).rglob("*.py"))
    return [path for path in found if path.read_text().strip()]


def known(path: Path) -> set[str]:
    """The rooms that a file imports from, its own aside."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = [name.replace(".", "/") for name in names if name.split(".")[0] in ("central", "pretraining")]
    return {room_of(name) for name in ours} - {room_of(str(path.relative_to(ROOT)))}


def picture() -> str:
    """A line for each room: its number, its name, what it is, and the numbers of the rooms it knows."""
    edges: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in files():
        edges[room_of(str(path.relative_to(ROOT)))] |= known(path)
    numbers = {room: number for number, room in enumerate(ROOMS, start=1)}
    lines = []
    for room, text in ROOMS.items():
        knows = " ".join(str(number) for number in sorted(numbers[other] for other in edges[room]))
        lines.append(f"{numbers[room]:2}  {room:30} {text:58} {f'knows {knows}' if knows else ''}".rstrip())
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    if "--write" not in argv:
        print(picture(), end="")
        return 0
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + picture() + END + rest.partition(END)[2])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
