"""Whose folder it is: a record of the request inside lets a later run go on. And room for what will be written."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from central.files import size_in_words, write_synced
from central.runtime.exits import BadRequest

RECORD = ".request.json"  # hidden: no input, should the folder be read as one


def remove_unfinished(folder: Path, pattern: str = "*") -> None:
    """Drop what a killed run was writing."""
    for unfinished in folder.glob(f"{pattern}.tmp"):
        unfinished.unlink(missing_ok=True)


def check_space(folder: Path, what: str, needed: float) -> None:
    """Say how much will be written; BadRequest when it does not fit."""
    free = shutil.disk_usage(folder).free
    print(f"{what}: about {size_in_words(needed)} to write, {size_in_words(free)} free")
    if needed > free:
        raise BadRequest(f"{folder}: {what} need about {size_in_words(needed)}, {size_in_words(free)} are free")


def own_folder(
    folder: Path, request: Mapping[str, object], may_empty: bool, formerly: Mapping[str, object] | None = None
) -> None:
    """Keep what an unfinished run of this request left; empty the folder of another request, if that is allowed.

    `formerly`: how an older version described this request. A folder without a record is no run's: it is refused.
    """
    text = _record_of(request)
    record = folder / RECORD
    remove_unfinished(folder, RECORD + "*")  # of a run killed at its very start
    found = record.read_bytes() if record.exists() else None
    goes_on = found == text or formerly is not None and found == _record_of(formerly)
    if folder.is_dir() and any(folder.iterdir()) and not goes_on:
        if found is None or not may_empty:
            raise BadRequest(f"{folder}: holds something else; remove it, or choose another --output_dir or --corpus")
        print(f"{folder}: of another request, made anew")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    if found != text:
        write_synced(record, text)


def _record_of(request: Mapping[str, object]) -> bytes:
    return json.dumps(request, indent=1).encode()


def changed_fields(settings: Any) -> dict[str, object] | None:
    """The fields of a dataclass that are not at their defaults: a new option leaves older records as they are."""
    if settings is None:
        return None
    values = ((field.name, getattr(settings, field.name), field.default) for field in fields(settings))
    return {name: value for name, value, default in values if value != default}
