"""What must be the same on every host of a run. Run by path it prints this host's answer as JSON.

A word is the port where the ranks of a run are to meet on this host: whether it is free is part of the answer.
"""

import hashlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from importlib import metadata

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FOLDERS = ("central", "pretraining", "transformers")
SUFFIXES = (".py", ".json", ".txt")


def facts() -> dict[str, str]:
    """Name of this host, and the versions of python, torch and the project on it."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"host": socket.gethostname(), "python": python, "torch": version("torch"), "project": fingerprint()}


def is_in_use(port: str) -> bool:
    """Whether something listens at this port of this host."""
    try:
        socket.create_server(("", int(port))).close()
    except OSError:
        return True
    return False


def version(package: str) -> str:
    """The installed version of a package, or `not installed`; without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def fingerprint() -> str:
    """A short hash over names and contents of the project's code."""
    digest = hashlib.sha256()
    for path in sorted(_code_files()):
        with open(path, "rb") as file:
            digest.update(os.path.relpath(path, ROOT).encode() + b"\0" + file.read())
    return digest.hexdigest()[:12]


def _code_files() -> Iterator[str]:
    for name in os.listdir(ROOT):
        if name.endswith(SUFFIXES) and os.path.isfile(os.path.join(ROOT, name)):
            yield os.path.join(ROOT, name)
    for folder in FOLDERS:
        for where, _folders, names in os.walk(os.path.join(ROOT, folder)):
            yield from (os.path.join(where, name) for name in names if name.endswith(SUFFIXES))


if __name__ == "__main__":
    answer = facts()
    if len(sys.argv) > 1 and is_in_use(sys.argv[1]):
        answer["port_in_use"] = sys.argv[1]
    print(json.dumps(answer))
