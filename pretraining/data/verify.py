"""The step `verify`: read every file of a folder, check what training relies on, and tell what is in it."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from central.files import files_below, shards_of, whole_or_absent, why_no_file
from central.runtime.exits import BadRequest
from pretraining.data import report as corpus_report
from pretraining.data.hdf5 import KEYS, attribute, member
from pretraining.data.progress import Progress
from pretraining.data.wordpiece import Vocabulary, read_vocabulary
from pretraining.data.workers import Workers

BLOCK_ROWS = 8192
EXAMPLES = 3
SHOWN_TOKENS = 40  # of an example: its beginning and its end
SAME_IN_A_FOLDER = (
    "vocab_sha256",
    "vocab_size",
    "do_lower_case",
    "max_seq_length",
    "max_predictions_per_seq",
    "random_seed",
)


@dataclass
class Tally:
    """What one file holds; tallies of files are added up."""

    rows: int = 0
    sequences: int = 0
    tokens: int = 0
    masked: int = 0
    random_next: int = 0
    unknown: int = 0  # of the masked tokens, which are drawn at random from all
    positions: int = 0  # rows x row length
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))  # sequences of each length

    def add(self, other: "Tally") -> None:
        for name in ("rows", "sequences", "tokens", "masked", "random_next", "unknown", "positions"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        width = max(len(self.histogram), len(other.histogram))
        self.histogram = _widen(self.histogram, width) + _widen(other.histogram, width)


@dataclass(frozen=True)
class FileReport:
    path: Path
    tally: Tally
    attributes: dict[str, Any]
    faults: tuple[str, ...]


def verify_folder(folder: Path, workers: Workers) -> None:
    """Print a page of numbers and examples, draw the lengths; BadRequest names every damaged file."""
    files = [path for path in files_below(folder) if path.suffix == ".hdf5"] if folder.exists() else []
    if not files:
        raise BadRequest(f"{folder}: no .hdf5 file in it")
    if problems := [f"{path}: {what}" for path in files if (what := why_no_file(path))]:
        raise BadRequest(problems)
    progress = Progress("verifying", len(files), "files")
    reports = []
    unknown = {folder: _unknown_id(folder) for folder in {file.parent for file in files}}
    for report in workers.map(verify_file, ((file, unknown[file.parent]) for file in files)):
        reports.append(report)
        progress.update(len(reports))
    progress.close()
    faults = [fault for report in sorted(reports, key=lambda report: report.path) for fault in report.faults]
    for corpus in sorted({file.parent for file in files}):
        own = sorted((report for report in reports if report.path.parent == corpus), key=lambda report: report.path)
        faults += _folder_faults(corpus, own)
        _print_corpus(corpus, own)
    if faults:
        raise BadRequest(faults)


def _unknown_id(folder: Path) -> int | None:
    vocabulary = _vocabulary(folder)
    return vocabulary.ids["[UNK]"] if vocabulary else None


def verify_file(path: Path, unknown_id: int | None = None) -> FileReport:
    """Read a whole file and compare it with what it says of itself."""
    tally = Tally()
    faults: list[str] = []
    attributes: dict[str, Any] = {}
    try:
        with h5py.File(path, "r") as file:
            attributes = {name: value for name in file.attrs if (value := attribute(file, name)) is not None}
            faults += _shape_faults(file)
            if not faults:
                for start in range(0, len(file["input_ids"]), BLOCK_ROWS):
                    _tally_rows(file, slice(start, start + BLOCK_ROWS), attributes, tally, faults, unknown_id)
    except (OSError, RuntimeError, ValueError) as error:  # h5py on damaged files
        faults.append(f"damaged ({error})")
    if not faults:
        faults += _attribute_faults(tally, attributes)
    return FileReport(path, tally, attributes, tuple(f"{path}: {fault}" for fault in dict.fromkeys(faults)))


def _shape_faults(file: h5py.File) -> list[str]:
    keys = [key for key in KEYS if member(file, key) is None]
    if keys:
        return [f"no {', '.join(keys)} in it"]
    rows = {key: len(file[key]) for key in KEYS}
    if len(set(rows.values())) > 1 or not rows["input_ids"]:
        return [f"rows differ or are none: {rows}"]
    return []


def _tally_rows(
    file: h5py.File, rows: slice, attributes: dict, tally: Tally, faults: list[str], unknown_id: int | None
) -> None:
    ids, mask, segments, positions, labels, next_labels = (file[key][rows] for key in KEYS)
    is_packed = "next_sentence_weights" in file
    weights = file["next_sentence_weights"][rows] if is_packed else np.ones((len(ids), 1), int)
    real = mask > 0
    used = positions > 0
    length = real.sum(axis=1)
    vocab_size = attributes.get("vocab_size", 1 << 31)
    in_range = np.where(used & (positions < ids.shape[1]), positions, 0)
    checks = {
        "token ids outside of the vocabulary": ids.min() < 0 or max(ids.max(), labels.max()) >= vocab_size,
        "padding before tokens": (real[:, 1:] > real[:, :-1]).any(),
        "an empty row": (length == 0).any(),
        "ids in the padding": (ids[~real] != 0).any(),
        "segments other than 0 and 1": not np.isin(segments, (0, 1)).all(),
        "next-sentence labels other than 0 and 1": not np.isin(next_labels, (0, 1)).all(),
        "masked positions outside of the tokens": (in_range != positions).any()
        or not np.take_along_axis(real, in_range, axis=1)[used].all(),
    }
    faults += [fault for fault, found in checks.items() if found]
    each = np.stack([(mask == number).sum(axis=1) for number in range(1, weights.shape[1] + 1)], axis=1)
    tally.add(
        Tally(
            rows=len(ids),
            sequences=int(weights.sum()),
            tokens=int(length.sum()),
            masked=int(used.sum()),
            random_next=int((next_labels.reshape(weights.shape) * weights).sum()),
            unknown=0 if unknown_id is None else int((labels[used] == unknown_id).sum()),
            positions=ids.size,
            histogram=np.bincount(each[weights > 0], minlength=ids.shape[1] + 1),
        )
    )


def _attribute_faults(tally: Tally, attributes: dict) -> list[str]:
    found = {
        "sequences": tally.sequences,
        "tokens": tally.tokens,
        "masked_tokens": tally.masked,
        "random_next": tally.random_next,
    }
    return [
        f"attribute {name} is {attributes[name]}, the file has {value}"
        for name, value in found.items()
        if name in attributes and attributes[name] != value
    ]


def _folder_faults(corpus: Path, reports: list[FileReport]) -> list[str]:
    """Files that do not belong together, and a vocabulary that is not theirs."""
    faults = []
    for name in SAME_IN_A_FOLDER:
        values = {report.attributes[name] for report in reports if name in report.attributes}
        if len(values) > 1:
            faults.append(f"{corpus}: files with different {name}: {', '.join(map(str, sorted(values)))}")
    vocabulary = _vocabulary(corpus)
    hashes = {report.attributes["vocab_sha256"] for report in reports if "vocab_sha256" in report.attributes}
    if vocabulary and hashes and vocabulary.sha256 not in hashes:
        faults.append(f"{corpus / 'vocab.txt'}: not the vocabulary that the files were made with")
    return faults


def _vocabulary(corpus: Path) -> Vocabulary | None:
    path = corpus / "vocab.txt"
    return read_vocabulary(path, True) if path.exists() else None


def _print_corpus(corpus: Path, reports: list[FileReport]) -> None:
    print(f"\n{corpus}")
    histograms = {}
    for split in ("training", "test"):
        named = shards_of((report.path.name for report in reports), split)
        own = [report for report in reports if report.path.name in named or report.attributes.get("split") == split]
        if own:
            histograms[split] = _print_split(split, own)
    vocabulary = _vocabulary(corpus)
    _print_common(corpus, reports, vocabulary)
    made = corpus_report.read(corpus)
    if made:
        print("  report of the corpus, as it was made:")
        for line in (*corpus_report.lines(made), *(f"warning: {line}" for line in corpus_report.warnings(made))):
            print(f"    {line}")
    if vocabulary:
        _print_examples(reports, vocabulary)
    if histograms:
        _draw(corpus, histograms)


def _print_split(split: str, reports: list[FileReport]) -> np.ndarray:
    total = Tally()
    for report in reports:
        total.add(report.tally)
    text = {name: sum(report.attributes.get(name, 0) for report in reports) for name in ("documents", "sentences")}
    print(f"  {split}: {len(reports)} files, {text['documents']} documents, {text['sentences']} sentences")
    print(f"    {total.sequences} sequences in {total.rows} rows, {total.tokens} tokens")
    if total.sequences:
        random = total.random_next / total.sequences
        print(
            f"    mean length {total.tokens / total.sequences:.1f}, padding {1 - total.tokens / total.positions:.1%},"
            f" masked {total.masked / total.tokens:.2%}, of these [UNK] {total.unknown / max(1, total.masked):.2%},"
            f" next sentence random {random:.1%} (majority {max(random, 1 - random):.1%})"
        )
    return total.histogram


def _print_common(corpus: Path, reports: list[FileReport], vocabulary: Vocabulary | None) -> None:
    attributes = next((report.attributes for report in reports if report.attributes), {})
    if "duplicate_sentence_share" in attributes:
        print(f"  duplicate lines: {attributes['duplicate_sentence_share']:.2%} of the sentences occurred before")
    size = f"{len(vocabulary)} tokens" if vocabulary else "none in the folder"
    print(f"  vocabulary: {size}, sha256 {attributes.get('vocab_sha256', 'unknown')}")
    counts_file = corpus / "token_counts.npy"
    if counts_file.exists():
        counts = np.load(counts_file)
        share = counts[counts > 0] / max(1, counts.sum())
        print(f"  unigram entropy {-(share * np.log(share)).sum():.3f} nats, {np.count_nonzero(counts)} tokens in use")


def _print_examples(reports: list[FileReport], vocabulary: Vocabulary) -> None:
    own = vocabulary.sha256
    sound = [report for report in reports if not report.faults and report.attributes.get("vocab_sha256", own) == own]
    if not sound:
        return
    print("  examples; in a<b> the text has b, the model sees a, and is asked for b:")
    with h5py.File(sound[0].path, "r") as file:
        for row in range(min(EXAMPLES, len(file["input_ids"]))):
            ids, mask = file["input_ids"][row], file["input_mask"][row]
            text = [vocabulary.tokens[number] for number in ids[mask > 0]]
            for place, label in zip(file["masked_lm_positions"][row], file["masked_lm_ids"][row], strict=True):
                if place:
                    text[place] = f"{text[place]}<{vocabulary.tokens[label]}>"
            labels = np.atleast_1d(file["next_sentence_labels"][row])[: mask.max()]  # of the sequences in the row
            following = ", ".join("a random one" if label else "the one that follows" for label in labels)
            print(f"    {row + 1}, next sentence {following}: {' '.join(_shortened(text)).replace(' ##', '')}")


def _shortened(tokens: list[str]) -> list[str]:
    half = SHOWN_TOKENS // 2
    return tokens if len(tokens) <= SHOWN_TOKENS else [*tokens[:half], "...", *tokens[-half:]]


def _draw(corpus: Path, histograms: dict[str, np.ndarray]) -> None:
    os.environ["MPLBACKEND"] = "agg"  # a notebook's is a module that need not be here
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(histograms), 1, figsize=(8, 3 * len(histograms)), squeeze=False)
    for (split, histogram), ax in zip(histograms.items(), axes[:, 0], strict=True):
        lengths = np.arange(len(histogram))
        mean = (histogram * lengths).sum() / max(1, histogram.sum())
        ax.hist(lengths, bins=min(64, len(lengths)), weights=histogram)
        ax.set(
            title=f"{split}: {histogram.sum()} sequences, mean {mean:.1f} tokens", xlabel="tokens", ylabel="sequences"
        )
    figure.suptitle(corpus.name)
    figure.tight_layout()
    path = corpus / "lengths.png"
    try:
        with whole_or_absent(path) as unfinished:
            figure.savefig(unfinished, dpi=100, format="png")
        print(f"  lengths: {path}")
    except OSError as error:  # the numbers are told all the same
        print(f"  no picture of the lengths: {error}")
    pyplot.close(figure)


def _widen(histogram: np.ndarray, width: int) -> np.ndarray:
    return np.pad(histogram, (0, width - len(histogram)))
