"""What the data benchmarks share: real text made long enough, what a command uses, and how a number is told."""

import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PREPARE = ROOT / "pretraining" / "data" / "prepare.py"
sys.path.insert(0, str(ROOT))

# A command starts from this small process: the peak of a child counts that of its parent at the time.
WATCH = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(*resource.getrusage(resource.RUSAGE_CHILDREN)[:3])
sys.exit(status)
"""

from central.launch.machine import processor
from pretraining.data.documents import TextSettings, canonical_text
from pretraining.data.formats import FormSettings
from pretraining.data.sources import batches, find_sources


def machine() -> str:
    """Processor, cores, load and day."""
    cores, load, day = len(os.sched_getaffinity(0)), os.getloadavg()[0], time.strftime("%Y-%m-%d")
    return f"{processor()}, {cores} cores, Python {platform.python_version()}, load {load:.1f}, {day}"


def told(values: list[float], unit: str) -> str:
    """Median and spread of several runs."""
    median = statistics.median(values)
    return f"{median:.3g} {unit} (median of {len(values)}; {min(values):.3g} to {max(values):.3g})"


class Usage(NamedTuple):
    """Of a command and all that it started."""

    cpu: float  # s
    wall: float  # s
    peak: float  # MB of the largest process


def measured(command: list[str]) -> Usage:
    """Run a command to its end, which must be a good one."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", WATCH, *command], capture_output=True, text=True)
    wall = time.monotonic() - start
    if done.returncode:
        sys.exit(f"{done.stderr}failed: {' '.join(command)}")
    user, system, kilobytes = map(float, done.stdout.split())
    return Usage(user + system, wall, kilobytes / 1024)


def write_long_text(sources: list[Path], target: Path, megabytes: float) -> float:
    """One sentence a line, a blank line a document: the documents of all sources, shuffled, again and again; returns
    MB."""
    documents = sentences_of(sources)
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


def sentences_of(sources: list[Path]) -> list[str]:
    """Documents of files and folders, a sentence a line."""
    found = find_sources([str(source) for source in sources], FormSettings())
    text = "".join(canonical_text(batch, TextSettings()).text for batch in batches(found, None))
    return [document for document in text.split("\n\n") if document]
