"""What the data benchmarks share: real text made long enough, and how a number is told."""

import os
import platform
import random
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PREPARE = ROOT / "pretraining" / "data" / "prepare.py"
sys.path.insert(0, str(ROOT))

from central.launch.machine import processor
from pretraining.data.documents import TextSettings, canonical_text
from pretraining.data.formats import FormSettings
from pretraining.data.sources import batches, find_sources


def machine() -> str:
    """Processor and cores."""
    return f"{processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def told(values: list[float], unit: str) -> str:
    """Median and spread of several runs."""
    median = statistics.median(values)
    return f"{median:.3g} {unit} (median of {len(values)}; {min(values):.3g} to {max(values):.3g})"


def write_long_text(source: Path, target: Path, megabytes: float) -> float:
    """One sentence a line, a blank line a document: the documents of `source` again and again, shuffled; returns MB."""
    documents = sentences_of(source)
    rng = random.Random(0)
    written = 0
    with open(target, "w", encoding="utf-8") as file:
        while written < megabytes * 1e6:
            rng.shuffle(documents)
            for document in documents:
                file.write(document + "\n\n")
                written += len(document.encode()) + 2
                if written >= megabytes * 1e6:
                    break
    return target.stat().st_size / 1e6


def sentences_of(source: Path) -> list[str]:
    """Documents of a file or folder, a sentence a line."""
    found = find_sources([str(source)], FormSettings(one_document_per_file=source.is_dir()))
    text = "".join(canonical_text(batch, TextSettings()).text for batch in batches(found, None))
    return [document for document in text.split("\n\n") if document]
