"""The report of a corpus: what is in the text and in the sequences made of it, with bounds beyond which one line warns.

It is a plain dictionary, `corpus.json` beside the shards, so that `verify` shows it again as it was made.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from central.files import parse_json
from pretraining.data.wordpiece import OTHER, USAGE, Usage

FILE = "corpus.json"
UNKNOWN_CHARACTERS = 10  # shown
STORED_CHARACTERS = 1000  # of a part

# Bounds of what a corpus for BERT looks like.
MOST_UNKNOWN, SOME_UNKNOWN = 0.1, 0.01  # share of [UNK] among the tokens of words with letters
LEAST_COVERED = 0.95  # share of the text in some sequence
MOST_OF_ONE_LABEL = 0.75  # share of the commoner next-sentence label
MOST_PADDING = 0.5
MORE_PADDING = 0.2  # of the held-out sequences than of those trained on
MOST_DOCUMENTS_OF_ONE_SENTENCE = 0.5
SENTENCE_TOKENS = (4, 100)  # median
MOST_DUPLICATES = 0.3  # share of the sentences that occurred before
MOST_LEFT_OUT = 0.05  # lines and sentences of the input, a sentence that was kept
HELD_OUT_AMISS = 2.0  # times more or less of the text than --test_fraction asks for
TINY_TEXT = 10_000  # tokens; a try with less is not judged by what is held out
LEAST_MASKED = 0.8  # of the share asked for
LEAST_SHOWN = 0.0001  # share of [UNK] in a script's words: less is none to a reader
REAL_SHARE = 0.01  # of the tokens, from which a script is named; a few words of some other are in any text
MANY_LOSE_MARKS = 0.01  # share of a script's words
MARKS_SAY_LITTLE = ("Greek", "Hebrew")  # scripts that are often written without their marks
LATIN_LOSES_MARKS = 0.02  # German: 0.1, French: 0.2; English with its foreign names: SQuAD 0.003

LONGER_TEXTS = "give texts of several sentences"
DRAWN_SHORT = (
    "--short_seq_prob draws one length for all of a document, and they are few: more of them even it out, such as a"
    " file for each chapter; --short_seq_prob 0 draws none"
)
NOT_PARAGRAPHS = "blank lines belong between documents, not paragraphs (--one_document_per_file 1 for books)"

# What `--allow` takes: name, what it lets pass.
REFUSED = {
    "unknown": f"more than {MOST_UNKNOWN:.0%} [UNK]",
    "one_document": "all text in one document",
    "one_label": "next sentences that are all random",
}


@dataclass(frozen=True)
class Histogram:
    """How often each value occurs."""

    values: np.ndarray  # int64, ascending
    counts: np.ndarray  # int64

    @classmethod
    def of(cls, numbers: np.ndarray) -> "Histogram":
        return cls(*np.unique(np.asarray(numbers, np.int64), return_counts=True))

    @classmethod
    def total(cls, parts: Iterable["Histogram"]) -> "Histogram":
        parts = list(parts) or [cls.of(np.empty(0))]
        values, place = np.unique(np.concatenate([part.values for part in parts]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([part.counts for part in parts]), len(values))
        return cls(values, counts.astype(np.int64))

    def quantile(self, share: float) -> int:
        """The smallest value that at least so many are no larger than; 0 of none."""
        if not len(self.values):
            return 0
        totals = np.cumsum(self.counts)
        return int(self.values[np.searchsorted(totals, share * totals[-1])])

    def summary(self) -> dict[str, int]:
        return {"median": self.quantile(0.5), "99%": self.quantile(0.99), "longest": self.quantile(1.0)}


@dataclass(frozen=True)
class TextNumbers:
    """What is in the text, before sequences are made of it."""

    document_sentences: Histogram
    sentence_tokens: Histogram
    usage: Usage
    duplicate_share: float  # of sentences that occurred before, estimated
    left_out: int  # lines, rows, pages and sentences of the input, as the notes say
    strips_accents: bool
    has_plain_text: bool  # whose documents blank lines part

    @property
    def documents(self) -> int:
        return int(self.document_sentences.counts.sum())

    @property
    def sentences(self) -> int:
        return int(self.sentence_tokens.counts.sum())

    @property
    def one_sentence(self) -> int:
        """Documents of one sentence."""
        return int(self.document_sentences.counts[self.document_sentences.values == 1].sum())


def usage_arrays(usage: Usage) -> dict[str, np.ndarray]:
    """Arrays that a part of the token store keeps."""
    names = sorted(usage.scripts)
    characters = sorted(usage.unknown_characters.items(), key=lambda item: (-item[1], item[0]))[:STORED_CHARACTERS]
    return {
        "scripts": np.array(names, dtype=str),
        "script_numbers": np.array([usage.scripts[name] for name in names], np.int64).reshape(-1, len(USAGE)),
        "unknown_characters": np.array([ord(character) for character, _ in characters], np.int64),
        "unknown_counts": np.array([count for _, count in characters], np.int64),
    }


def usage_of(index: dict[str, np.ndarray]) -> Usage:
    """What `usage_arrays` stored."""
    characters = zip(map(chr, index["unknown_characters"].tolist()), index["unknown_counts"].tolist(), strict=True)
    return Usage(dict(zip(index["scripts"].tolist(), index["script_numbers"], strict=True)), Counter(dict(characters)))


def text_report(text: TextNumbers) -> dict:
    """The part of the report that is of the text."""
    total = sum(text.usage.scripts.values(), np.zeros(len(USAGE), np.int64))
    words, tokens, unknown, lose, lost = map(int, total)
    characters = sorted(text.usage.unknown_characters.items(), key=lambda item: (-item[1], item[0]))
    return {
        "documents": text.documents,
        "sentences": text.sentences,
        "tokens": tokens,
        "left_out": text.left_out,
        "sentences_a_document": text.document_sentences.summary(),
        "documents_of_one_sentence": text.one_sentence,
        "tokens_a_sentence": text.sentence_tokens.summary(),
        "duplicate_sentence_share": round(text.duplicate_share, 6),
        "unknown": {
            "share": _share(unknown, tokens),
            "share_in_words_with_letters": unknown_share(text),
            "scripts": {
                name: {"words": int(numbers[0]), "tokens": int(numbers[1]), "share": _share(numbers[2], numbers[1])}
                for name, numbers in sorted(text.usage.scripts.items(), key=lambda item: (-item[1][1], item[0]))
            },
            "characters": characters[:UNKNOWN_CHARACTERS],
        },
        "has_plain_text": text.has_plain_text,
        "accents_stripped": text.strips_accents,
        "words_that_lose_marks": _share(lose, words),
        "lost_marks": {
            name: {"marks": int(numbers[4]), "share_of_words": _share(numbers[3], numbers[0])}
            for name, numbers in sorted(text.usage.scripts.items())
            if numbers[4]
        },
    }


def unknown_share(text: TextNumbers) -> float:
    """Share of [UNK] among the tokens of words with letters; signs and emoji do not tell of the wrong vocabulary."""
    rows = [numbers for name, numbers in text.usage.scripts.items() if name != OTHER]
    return _share(sum(row[2] for row in rows), sum(row[1] for row in rows))


def held_out_report(documents: int, tokens: int, all_tokens: int, test_fraction: float) -> dict:
    """The part of the report that is of the text never trained on."""
    return {"documents": documents, "share_of_tokens": _share(tokens, all_tokens), "test_fraction": test_fraction}


ADDED = ("sequences", "documents", "covered_tokens", "text_tokens", "tokens", "masked_tokens", "random_next")
SHARD_ATTRIBUTES = (*ADDED, "max_seq_length", "masked_lm_prob")  # what the report takes from each file


def phase_report(shards: list[dict]) -> dict | None:
    """The part of the report that is of one phase and split, of SHARD_ATTRIBUTES of its files; None without files."""
    if not shards:
        return None
    total = {name: sum(int(shard[name]) for shard in shards) for name in ADDED}
    random = _share(total["random_next"], total["sequences"])
    positions = total["sequences"] * int(shards[0]["max_seq_length"])
    return {
        "sequences": total["sequences"],
        "documents": total["documents"],
        "text_in_sequences": _share(total["covered_tokens"], total["text_tokens"]),
        "mean_tokens": round(total["tokens"] / max(1, total["sequences"]), 2),
        "padding": round(1 - _share(total["tokens"], positions), 6),
        "masked": _share(total["masked_tokens"], total["tokens"]),
        "masked_lm_prob": float(shards[0]["masked_lm_prob"]),
        "next_sentence_random": random,
        "next_sentence_majority": max(random, round(1 - random, 6)),
    }


def refusals(text: TextNumbers, longest_sentence: int, allowed: tuple[str, ...]) -> list[str]:
    """Why training on this text makes no sense, but for what is allowed.

    `longest_sentence`: tokens from which a sentence is cut in two, in the phase that cuts last.
    """
    found = {}
    unknown = unknown_share(text)
    if unknown > MOST_UNKNOWN:
        worst = _worst_scripts(text)
        found["unknown"] = (
            f"--vocab_file: {unknown:.1%} of the tokens are [UNK] ({worst}), so the model would learn little: give a"
            " vocabulary of this language, or learn one (`prepare.py vocab`)"
        )
    if text.documents == 1:
        found["one_document"] = (
            "--input: all text is one document, so nothing can be held out and a random next sentence is from the same"
            f" text: {_how_to_part(text.has_plain_text)}"
        )
    elif text.one_sentence == text.documents and text.sentence_tokens.quantile(1.0) < longest_sentence:
        found["one_label"] = (
            "--input: every document is one sentence, so every next sentence is random and there is one label only: "
            + ("put blank lines between documents, not between sentences" if text.has_plain_text else LONGER_TEXTS)
        )
    return [f"{line}; `--allow {name}` goes on all the same" for name, line in found.items() if name not in allowed]


def _how_to_part(has_plain_text: bool) -> str:
    several = "give several documents, such as a chapter each, as files or rows"
    book = "--one_document_per_file 0 takes those of a book, whose lines then end sentences"
    return f"{several}, or with blank lines between them ({book})" if has_plain_text else several


def _worst_scripts(text: TextNumbers) -> str:
    real = _real_scripts({name: int(row[1]) for name, row in text.usage.scripts.items()})
    rows = sorted(text.usage.scripts.items(), key=lambda item: (-item[1][2], item[0]))
    worst = [f"{name} {_share(row[2], row[1]):.0%}" for name, row in rows if row[2] and name in real]
    return ", ".join(worst[:3])


def _real_scripts(tokens: dict[str, int]) -> set[str]:
    """Of the tokens of each script: those that are a real share of the words with letters."""
    letters = {name: count for name, count in tokens.items() if name != OTHER}
    return {name for name, count in letters.items() if count >= REAL_SHARE * sum(letters.values())}


def _tokens_by_script(report: dict) -> dict[str, int]:
    return {name: numbers["tokens"] for name, numbers in report["unknown"]["scripts"].items()}


def warnings(report: dict) -> list[str]:
    """One line for each number beyond its bound: what is wrong and what to do."""
    lines = []
    unknown, has_plain_text = report["unknown"], report.get("has_plain_text", True)  # older reports do not say
    if unknown["share"] > SOME_UNKNOWN:
        shown = ", ".join(f"{character} ({count})" for character, count in unknown["characters"][:5])
        lines.append(
            f"{unknown['share']:.1%} of the tokens are [UNK], most behind {shown or 'long words'}: a vocabulary learned"
            " on this text (`prepare.py vocab`) has them"
        )
    if report["documents"] == 1:
        lines.append(f"all text is one document: {_how_to_part(has_plain_text)}")
    alone = report["documents_of_one_sentence"] / max(1, report["documents"])
    if alone > MOST_DOCUMENTS_OF_ONE_SENTENCE:
        lines.append(
            f"{alone:.0%} of the documents have one sentence, whose next sentence is always random: "
            + ("blank lines belong between documents" if has_plain_text else LONGER_TEXTS)
            + "; where lines are sentences give --sentences line"
        )
    median = report["tokens_a_sentence"]["median"]
    if not SENTENCE_TOKENS[0] <= median <= SENTENCE_TOKENS[1]:
        lines.append(
            f"half of the sentences have {'no more than' if median < SENTENCE_TOKENS[0] else 'at least'} {median}"
            " tokens: see with `prepare.py extract` how the text is split, and choose --language or --sentences"
        )
    left_out = report["left_out"] / max(1, report["left_out"] + report["sentences"])
    if left_out > MOST_LEFT_OUT:
        lines.append(
            f"{left_out:.0%} of the lines and sentences were left out: the notes of the run name them; mend the files,"
            " or name their encoding or column"
        )
    if report["duplicate_sentence_share"] > MOST_DUPLICATES:
        lines.append(
            f"{report['duplicate_sentence_share']:.0%} of the sentences occurred before: is the same text in the input"
            " twice, or one that was made of templates? Held-out text is no longer unseen"
        )
    lines += _held_out_warning(report)
    real = _real_scripts(_tokens_by_script(report))
    losing = [
        f"{lost['marks']} from {lost['share_of_words']:.0%} of the {script} words"
        for script, lost in report["lost_marks"].items()
        if script in real and _loses_marks(script, lost["share_of_words"])
    ]
    if losing:
        lines.append(
            f"lower case without accents takes marks (umlauts, vowel signs, tones, й): {', '.join(losing)};"
            " --strip_accents 0 keeps them, also for `vocab`"
        )
    for length, splits in report["phases"].items():
        documents_are_short = report["tokens"] < report["documents"] * int(length)
        lines += _phase_warnings(length, splits, documents_are_short, has_plain_text)
    return lines


def _held_out_warning(report: dict) -> list[str]:
    held_out = report.get("held_out")  # older reports have none
    if not held_out or not held_out["documents"] or report["tokens"] < TINY_TEXT:
        return []
    share, asked = held_out["share_of_tokens"], held_out["test_fraction"]
    if asked / HELD_OUT_AMISS <= share <= asked * HELD_OUT_AMISS:
        return []
    return [
        f"{share:.1%} of the text is held out, where --test_fraction {asked:g} was asked for: documents are held out"
        f" whole ({held_out['documents']} of {report['documents']}), and are few or of unequal length: give long ones"
        " in parts, such as a file for each chapter, or more of them; another --random_seed draws others"
    ]


def _loses_marks(script: str, share_of_words: float) -> bool:
    bound = LATIN_LOSES_MARKS if script == "Latin" else MANY_LOSE_MARKS
    return share_of_words > bound and script not in MARKS_SAY_LITTLE


def _phase_warnings(length: str, splits: dict, documents_are_short: bool, has_plain_text: bool) -> list[str]:
    training, lines = splits["training"], []
    if training["text_in_sequences"] < LEAST_COVERED:
        lines.append(
            f"{1 - training['text_in_sequences']:.0%} of the text is in no sequence of {length} tokens: a higher"
            " --dupe_factor uses more of it; sentences should be shorter than half of a sequence"
        )
    if training["next_sentence_majority"] > MOST_OF_ONE_LABEL:
        lines.append(
            f"{training['next_sentence_majority']:.0%} of the next sentences of {length} tokens have the same label:"
            " documents of several sentences that are shorter than half of a sequence balance them"
        )
    if training["padding"] > MOST_PADDING:
        short = "as documents are short: a shorter --max_seq_length has less of it"
        short += f"; {NOT_PARAGRAPHS}" if has_plain_text else ""
        lines.append(
            f"{training['padding']:.0%} of the sequences of {length} tokens is padding"
            + (f", {short}" if documents_are_short else f": {DRAWN_SHORT}")
        )
    test = splits["test"]
    bound = min(MOST_PADDING, training["padding"] + MORE_PADDING)
    if test and test["padding"] > bound and training["padding"] <= MOST_PADDING:
        lines.append(
            f"{test['padding']:.0%} of the held-out sequences of {length} tokens is padding, of the others"
            f" {training['padding']:.0%}: {DRAWN_SHORT}"
        )
    if training["masked"] < LEAST_MASKED * training["masked_lm_prob"]:
        lines.append(
            f"{training['masked']:.1%} of the tokens are masked at {length} tokens, of {training['masked_lm_prob']:.0%}"
            " asked for: raise --max_predictions_per_seq"
        )
    if test is None:
        lines.append(f"no text is held out at {length} tokens: four documents at least, and a --test_fraction above 0")
    return lines


def lines(report: dict) -> list[str]:
    """The report for eyes."""
    unknown = report["unknown"]
    real = _real_scripts(_tokens_by_script(report))
    scripts = [
        f"{name} {numbers['share']:.2%}"
        for name, numbers in unknown["scripts"].items()
        if name in real and numbers["share"] >= LEAST_SHOWN
    ]
    characters = [f"{character} ({count})" for character, count in unknown["characters"]]
    shown = [
        f"text: {report['documents']} documents, {report['sentences']} sentences, {report['tokens']} tokens;"
        f" {report['duplicate_sentence_share']:.1%} of the sentences occurred before;"
        f" {report['left_out']} lines and sentences left out",
        f"sentences a document: {_summary(report['sentences_a_document'])};"
        f" {report['documents_of_one_sentence']} documents of one",
        f"tokens a sentence: {_summary(report['tokens_a_sentence'])}",
        f"[UNK]: {unknown['share']:.2%} of the tokens"
        + (f"; of words in {', '.join(scripts[:8])}" if scripts else "")
        + (f"; behind them {' '.join(characters)}" if characters else ""),
    ]
    if held_out := report.get("held_out"):
        shown.append(
            f"held out: {held_out['documents']} of the documents with {held_out['share_of_tokens']:.1%} of the tokens"
            f" (--test_fraction {held_out['test_fraction']:g})"
        )
    for length, splits in report["phases"].items():
        for split, numbers in splits.items():
            if numbers is None:
                shown.append(f"{length} tokens, {split}: none")
                continue
            shown.append(
                f"{length} tokens, {split}: {numbers['sequences']} sequences with {numbers['text_in_sequences']:.1%} of"
                f" the text, padding {numbers['padding']:.1%}, next sentence random"
                f" {numbers['next_sentence_random']:.1%} (majority {numbers['next_sentence_majority']:.1%})"
            )
    return shown


def write(report: dict) -> bytes:
    return (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode()


def read(folder: Path) -> dict | None:
    """The report beside the shards, None where there is none that can be read."""
    try:
        report: Any = parse_json((folder / FILE).read_text(encoding="utf-8"))
        lines(report)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return report


def _summary(numbers: dict[str, int]) -> str:
    return f"median {numbers['median']}, 99 % {numbers['99%']}, longest {numbers['longest']}"


def _share(part: int, whole: int) -> float:
    return round(float(part) / float(whole), 6) if whole else 0.0
