"""Whose folder it is: a record of the request inside lets a later run go on, or tells that the folder is another's."""

import json
import shutil
from pathlib import Path

from central.runtime.exits import BadRequest
from pretraining.data.blanks import one_line
from pretraining.data.formats import TAR, ZIP
from pretraining.data.hdf5 import remove_unfinished, write_synced
from pretraining.data.sources import Source

RECORD = ".request.json"  # hidden: no input, should the folder be read as one
SHOWN_NOTES = 20


def describe_sources(sources: tuple[Source, ...]) -> list[list[object]]:
    """What tells that files are still the same and read the same way: of archives, how their texts are."""
    return [[s.path, s.kind, s.size, Path(s.path).stat().st_mtime_ns, *_told_of_members(s)] for s in sources]


def _told_of_members(source: Source) -> list[object]:
    return [source.form_settings.one_document_per_file] if source.kind in (TAR, ZIP) else []


def claim_folder(folder: Path, description: dict[str, object], ours: bool) -> None:
    """Keep what an unfinished run of this request left; empty the folder of another request, if it is `ours` to name.

    A folder without a record is no run's: it is refused.
    """
    text = json.dumps(description, indent=1)
    record = folder / RECORD
    remove_unfinished(folder, RECORD + "*")  # of a run killed at its very start
    same = record.exists() and record.read_bytes() == text.encode()
    if folder.is_dir() and any(folder.iterdir()) and not same:
        if not (ours and record.exists()):
            raise BadRequest(f"{folder}: holds something else; remove it, or choose another --output_dir or --corpus")
        print(f"{folder}: of another request, made anew")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    if not same:
        write_synced(record, text.encode())


def show_notes(notes: list[str], folder: Path) -> None:
    """Print what a user should know of the input: the first few, all of them in a file."""
    for note in notes[:SHOWN_NOTES]:
        print(f"note: {one_line(note)}")
    if len(notes) > SHOWN_NOTES:
        write_synced(folder / ".notes.log", "".join(f"{one_line(note)}\n" for note in notes).encode())
        print(f"note: {len(notes) - SHOWN_NOTES} more in {folder / '.notes.log'}")
