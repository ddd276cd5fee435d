"""Text with one sentence a line to the HDF5 files of both phases, dupe factor 5: prepare.py against the usual way.

    python benchmarks/data_prepare.py TEXT... --vocab_file VOCAB [--megabytes 2 4 8 16] [--picture FILE]
    python benchmarks/data_prepare.py TEXT... --vocab_file VOCAB --alone --megabytes 10 100

Theirs is data_peer.py, which names what is in its favour. The texts are the documents of TEXT, shuffled, and again
where they are not long enough. Whole commands of one process each, in turns: CPU time (user and system, with start-up),
so that other work on the machine counts little, and peak memory. Ours also with two processes, where memory is that of
the largest, and wall time tells something on a quiet machine only. At the end, where the time of ours goes.

Both sides must have used the same tokens of the same sentences and documents, every segment of every row of the
shortest text must be in that text, and of the last text there must be about as many rows, as full, as masked, with as
many random next sentences.
"""

import argparse
import contextlib
import io
import json
import runpy
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
from data_common import PREPARE, ROOT, Usage, machine, measured, told, write_long_text
from data_peer import open_tokenizer, read_documents
from race_results import COLOURS, label_panel, open_panels

from pretraining.data import hdf5, shards, tokens, wordpiece

PEER = ROOT / "benchmarks/data_peer.py"
NAMES = {"ours": "prepare.py", "theirs": "the usual way"}
LENGTHS = (128, 512)
BETWEEN = chr(sys.maxunicode)  # between documents; no token has that id
MOST_APART = 0.1  # of a figure: documents that are cut to a random shorter length make many rows, or not so many

# Stage: whose function it is.
STAGES = {
    "read and sentences": (tokens, "canonical_text"),
    "words to ids": (wordpiece.Tokenizer, "encode"),
    "pairs": (shards, "make_pairs"),
    "rows": (shards, "token_rows"),
    "masks": (shards, "mask_rows"),
    "compression": (hdf5, "deflate_planes"),
}


def arguments(text: Path, vocab: Path, out: Path, processes: int) -> list[str]:
    paths = ["--input", str(text), "--vocab_file", str(vocab), "--output_dir", str(out)]
    more = ["--sentences=line", "--one_document_per_file=0", "--corpus=c", "--test_fraction=0"]
    return [*paths, *more, f"--num_processes={processes}"]


def run(side: str, text: Path, vocab: Path, out: Path, processes: int = 1) -> Usage:
    """What a whole command used; its files are in `out`, and none of an earlier one."""
    shutil.rmtree(out, ignore_errors=True)
    if side == "ours":
        return measured([sys.executable, str(PREPARE), *arguments(text, vocab, out, processes)])
    return measured([sys.executable, str(PEER), f"--input_file={text}", f"--vocab_file={vocab}", f"--output_dir={out}"])


# ---- did both compute the same


def files_of(out: Path, length: int) -> list[Path]:
    """Of either side."""
    return sorted(out.glob(f"*seq_len_{length}*/**/*_training_*.hdf5"))


def figures(out: Path, length: int) -> dict[str, float]:
    """Rows of one length, and shares: of their places filled, of the tokens masked, of random next sentences."""
    rows = filled = masked = random_next = 0
    for path in files_of(out, length):
        with h5py.File(path) as file:
            rows += len(file["next_sentence_labels"])
            filled += int(file["input_mask"][:].sum())
            masked += int(np.count_nonzero(file["masked_lm_positions"][:]))
            random_next += int(file["next_sentence_labels"][:].sum())
    return {"rows": rows, "fill": filled / rows / length, "masked": masked / filled, "random next": random_next / rows}


def far_apart(ours: dict[str, float], theirs: dict[str, float]) -> list[str]:
    """Which of the figures differ by more than chance makes them."""
    return [name for name, value in theirs.items() if abs(ours[name] - value) > MOST_APART * value]


def segments(path: Path) -> Iterator[str]:
    """Both segments of each row as they were before masking, a character a token."""
    with h5py.File(path) as file:
        ids, places = file["input_ids"][:], file["masked_lm_positions"][:]
        rows, slots = np.nonzero(places)
        ids[rows, places[rows, slots]] = file["masked_lm_ids"][:][rows, slots]
        lengths, second = file["input_mask"][:].sum(1), file["segment_ids"][:].sum(1)
    for row, length, b in zip(ids.tolist(), lengths.tolist(), second.tolist(), strict=True):
        yield "".join(map(chr, row[1 : length - b - 1]))
        yield "".join(map(chr, row[length - b : length - 1]))


def check_content(outs: dict[str, Path], text: Path, vocab: Path) -> None:
    """Ends the benchmark if ours did not use the tokens that Hugging Face finds in the text, or a row of either side is
    not of the text."""
    documents = read_documents(text, open_tokenizer(vocab))
    ids = [[token for sentence in document for token in sentence] for document in documents]
    counts = np.bincount([token for document in ids for token in document])
    wanted = (len(documents), sum(map(len, documents)), int(counts.sum()))
    folder = files_of(outs["ours"], LENGTHS[0])[0].parent
    report = json.loads((folder / "corpus.json").read_text())
    found = tuple(report[name] for name in ("documents", "sentences", "tokens"))
    if found != wanted:
        sys.exit(f"documents, sentences and tokens: ours {found}, theirs {wanted}")
    if not np.array_equal(np.trim_zeros(np.load(folder / "token_counts.npy"), "b"), counts):
        sys.exit("tokens of ours are others than theirs")
    whole = BETWEEN.join("".join(map(chr, document)) for document in ids)
    for side, out in outs.items():
        for path in [path for length in LENGTHS for path in files_of(out, length)]:
            wrong = sum(segment not in whole for segment in segments(path))
            if wrong:
                sys.exit(f"{side}: {wrong} segments in {path.name} are not in the text")
    found = "{} documents, {} sentences and {} tokens".format(*wanted)
    print(f"  the same {found} on both sides; every segment is in the text")


def compare_figures(outs: dict[str, Path]) -> None:
    """Ends the benchmark if they are too different."""
    for length in LENGTHS:
        found = {side: figures(out, length) for side, out in outs.items()}
        for side, values in found.items():
            print(f"  {length} tokens, {side}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        apart = far_apart(**found)
        if apart:
            sys.exit(f"the sides differ in {', '.join(apart)}")


# ---- where the time goes


def timed(function: Callable, seconds: list[float]) -> Callable:
    """The function, its CPU time added to `seconds`."""

    def call(*args, **kwargs):
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.process_time() - start)

    return call


def profile(text: Path, vocab: Path, out: Path, size: float) -> None:
    """One run in this process, its time by stage."""
    spent = {stage: [] for stage in STAGES}
    for stage, (owner, name) in STAGES.items():
        setattr(owner, name, timed(getattr(owner, name), spent[stage]))
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.process_time()
        runpy.run_path(str(PREPARE))["main"](arguments(text, vocab, out, 1))
        total = time.process_time() - start
    print(f"where the time of ours goes, CPU ms a MB of text, {total / size * 1000:.0f} in all:")
    for stage, seconds in spent.items():
        print(f"  {stage}: {sum(seconds) / size * 1000:.1f}")
    print(f"  everything else (HDF5, files, checks): {(total - sum(map(sum, spent.values()))) / size * 1000:.1f}")


# ---- results


def peak_of(usages: list[Usage]) -> float:
    return max(usage.peak for usage in usages)


def report(size: float, used: dict[str, list[Usage]]) -> None:
    """Of one text: speed and memory of each side, and the ratios round by round."""
    for side, usages in used.items():
        speed = told([size / usage.cpu for usage in usages], "MB a CPU second")
        wall = told([usage.wall for usage in usages], "s of wall time")
        print(f"  {side}: {speed}; {wall}; peak memory {peak_of(usages):.0f} MB")
    for side, usages in used.items():
        if side != "ours":
            pairs = list(zip(used["ours"], usages, strict=True))
            cpu, wall = ([getattr(b, name) / getattr(a, name) for a, b in pairs] for name in ("cpu", "wall"))
            print(f"  {side} over ours: {told(cpu, 'x CPU time')}, {told(wall, 'x wall time')}")


def draw(found: dict[float, dict[str, list[Usage]]], file: Path) -> None:
    """MB of text made into rows over processor time (medians), and peak memory over MB; 800 x 320 pixels."""
    figure, (speed, memory) = open_panels(8, 3.2, 2)
    sizes = list(found)
    for (side, name), colour in zip(NAMES.items(), COLOURS):
        seconds = [statistics.median(usage.cpu for usage in used[side]) for used in found.values()]
        peaks = [peak_of(used[side]) for used in found.values()]
        style = {"color": colour, "linewidth": 2, "marker": "o"}
        speed.plot(seconds, sizes, label=f"{name}: {sizes[-1] / seconds[-1]:.2g} MB/s", **style)
        memory.plot(sizes, peaks, label=f"{name}: {peaks[-1]:.0f} MB", **style)
    label_panel(speed, "seconds of processor time, one process", "MB of text", "Text made into rows")
    label_panel(memory, "MB of text", "MB of memory", "Memory at the peak")
    for panel in (speed, memory):
        panel.set_ylim(bottom=0)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+", type=Path, help="files and folders, as prepare.py --input takes them")
    parser.add_argument("--vocab_file", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[2.0, 4.0, 8.0, 16.0], help="the shortest first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="ours only")
    parser.add_argument("--picture", type=Path, help="where to draw both sides, such as prepare_race.png")
    parser.add_argument("--temp_dir", type=Path, help="where the text and the HDF5 files go for the time being")
    args = parser.parse_args()
    if args.picture and args.alone:
        parser.error("--picture: is of both sides, not of one --alone")
    print(machine())
    found = {}
    with tempfile.TemporaryDirectory(dir=args.temp_dir) as folder:
        text = Path(folder) / "text.txt"
        outs = {side: Path(folder) / side for side in (["ours"] if args.alone else NAMES)}
        for megabytes in args.megabytes:
            size = write_long_text(args.text, text, megabytes)
            print(f"{size:.1f} MB of text", flush=True)
            used = {side: [] for side in (*outs, "ours, two processes")}
            for _ in range(args.rounds):
                used["ours, two processes"].append(run("ours", text, args.vocab_file, Path(folder) / "two", 2))
                for side, out in outs.items():
                    used[side].append(run(side, text, args.vocab_file, out))
            report(size, used)
            if not args.alone and not found:
                check_content(outs, text, args.vocab_file)
            found[size] = used
        if not args.alone:
            compare_figures(outs)
        profile(text, args.vocab_file, Path(folder) / "profile", size)
    if args.picture:
        draw(found, args.picture)


if __name__ == "__main__":
    main()
