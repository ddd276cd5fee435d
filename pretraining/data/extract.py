"""The step `extract`: any source to plain text files, one sentence a line, a blank line between documents."""

from collections.abc import Iterator
from pathlib import Path

from central.files import write_synced
from central.runtime.exits import BadRequest
from pretraining.data.documents import NO_TEXT, TextSettings, canonical_text
from pretraining.data.files import changed_fields, check_space, own_folder
from pretraining.data.progress import BYTES, Progress
from pretraining.data.sources import Batch, HubDataset, Source, batches, describe_sources, show_notes, text_bytes
from pretraining.data.workers import Workers

TEXT_VERSION = 1  # goes up when the same request gives other text


def extract(
    sources: list[Source], dataset: HubDataset | None, text: TextSettings, folder: Path, workers: Workers
) -> None:
    """Write one file a batch; files that are there are not made again."""
    found = describe_sources(tuple(sources))
    request = {
        "sources": found,
        "version": TEXT_VERSION,
        "dataset": changed_fields(dataset),
        "text": changed_fields(text),
    }
    formerly = {"sources": found, "dataset": repr(dataset), "text": repr(text)}  # of this text before it had a version
    own_folder(folder, request, may_empty=False, formerly=formerly)
    there = sum(path.stat().st_size for path in folder.glob("text_*.txt"))
    check_space(folder, "text files", max(0.0, text_bytes(sources) - there))
    progress = Progress("extracting", sum(source.size for source in sources), BYTES)

    def tasks() -> Iterator[tuple]:
        for batch in batches(sources, dataset):
            yield batch, text, folder / f"text_{batch.number:06d}.txt"
            progress.update(batch.bytes_read)

    notes = [note for found in workers.map(extract_batch, tasks()) for note in found]
    progress.close()
    show_notes(notes, folder)
    if all(path.stat().st_size <= len(NO_TEXT) for path in folder.glob("text_*.txt")):
        raise BadRequest("--input: no text in it, so nothing was extracted")
    print(folder)


def extract_batch(batch: Batch, text: TextSettings, path: Path) -> tuple[str, ...]:
    """Write the text of one batch, unless it is there; return its notes."""
    if path.exists():
        return ()
    canonical = canonical_text(batch, text)
    write_synced(path, canonical.text.encode())
    return canonical.notes
