"""The options of every step of prepare.py that reads text, and their way to checked settings."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from central.options import in_one_line
from central.runtime import rank as ranks
from central.runtime.exits import BadRequest
from pretraining.data.documents import TextSettings
from pretraining.data.formats import BOOK, TEXT, FormSettings
from pretraining.data.sentences import SPLITTERS, language_note, sentence_splitter
from pretraining.data.sources import HubDataset, Source, find_sources, wrapped_lines_said

NO_TEXT = "no text given: --input FILE_OR_FOLDER..., --dataset ID, or --dataset alone for Wikipedia"
MOST_SEED = 2**32 - 1
WIKIPEDIA = "wikimedia/wikipedia"
WIKIPEDIA_SNAPSHOT = "20231101"  # its configurations are named SNAPSHOT.LANGUAGE


def some_path(text: str) -> Path:
    """A path from the command line; an empty one would mean the folder at hand, where nobody asked for files."""
    if not text.strip() or "\0" in text or not in_one_line(text):
        raise argparse.ArgumentTypeError("empty, or no name of a file in one line")
    return Path(text)


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """What text is read, and how."""
    add = parser.add_argument_group("text").add_argument
    add(
        "--input",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files and folders: text, JSON lines, tables, HTML, MediaWiki XML, wikiextractor's output; packed too",
    )
    add(
        "--encoding",
        metavar="NAME",
        help="encoding of text that is not UTF-8, such as cp1252; without it such text is refused",
    )
    add(
        "--variant",
        metavar="CODE",
        help="which of a wiki's language variants is read, such as zh-hant; default zh-hans",
    )
    add(
        "--one_document_per_file",
        nargs="?",
        const="1",
        default="auto",
        choices=("auto", "0", "1"),
        help="plain text files are books, one document each, with wrapped lines; auto: those whose lines are wrapped",
    )
    add(
        "--dataset",
        nargs="?",
        const=WIKIPEDIA,
        metavar="ID",
        help=f"a data set of the Hugging Face Hub, or a folder that `datasets` reads; without ID {WIKIPEDIA}",
    )
    add("--dataset_config", metavar="NAME", help="its configuration, such as 20231101.en; Wikipedia: of --language")
    add("--dataset_split", default="train", metavar="NAME", help="its split")
    add("--text_column", default="text", metavar="NAME", help="field of JSON lines, tables and data sets with the text")
    add("--sentences", choices=SPLITTERS, default="rules", help="how sentences are found; line: each line is one")
    add("--language", default="en", metavar="CODE", help="whose abbreviations end no sentence")


def add_case_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--do_lower_case", type=int, choices=(0, 1), default=1, help="1: uncased")
    parser.add_argument(
        "--strip_accents",
        type=int,
        choices=(0, 1),
        help="1: without combining marks (é is e, Hindi loses vowel signs); as --do_lower_case where not given",
    )


def case_of(args: argparse.Namespace) -> tuple[bool, bool | None]:
    """(do_lower_case, strip_accents)."""
    return bool(args.do_lower_case), None if args.strip_accents is None else bool(args.strip_accents)


def add_process_option(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--num_processes", type=int, default=cores, metavar="N", help="workers; under mpirun its ranks are"
    )


def text_settings(args: argparse.Namespace) -> TextSettings:
    """How text is read; BadRequest when its sentences cannot be found, a note when they will be found less well."""
    sentence_splitter(args.sentences, args.language)
    note = language_note(args.sentences, args.language)
    if note and ranks.from_environment().is_main:
        print(f"note: {note}")
    return TextSettings(
        sentences=args.sentences,
        language=args.language,
        text_column=args.text_column,
        encoding=args.encoding,
        variant=args.variant,
    )


def form_settings(args: argparse.Namespace) -> FormSettings:
    """What is told of the input files; BadRequest for an encoding that nobody knows."""
    if args.encoding:
        try:
            "".encode(args.encoding)
        except (LookupError, UnicodeError) as error:  # the codec "undefined" refuses everything
            raise BadRequest(
                f"--encoding {args.encoding}: no such encoding; cp1252, utf-16 are names of some"
            ) from error
    books = {"0": False, "1": True, "auto": None}[args.one_document_per_file]
    if books is None and args.sentences == "line":
        books = False  # every line is told to be a sentence
    return FormSettings(args.encoding, args.text_column, books)


def dataset_of(args: argparse.Namespace) -> HubDataset | None:
    if not args.dataset:
        return None
    config = args.dataset_config
    if args.dataset == WIKIPEDIA and not config:
        config = f"{WIKIPEDIA_SNAPSHOT}.{args.language}"
    return HubDataset(args.dataset, config, args.dataset_split, args.text_column)


def sources_of(
    args: argparse.Namespace,
    output_dir: Path | None = None,
    text_is_needed: bool = True,
    vocab_file: Path | None = None,
) -> list[Source]:
    """The files to read; BadRequest when there is no text, or when what is written would be read as text."""
    problems = [NO_TEXT] if text_is_needed and not args.input and not args.dataset else []
    for flag, written in (("--output_dir", output_dir), ("--vocab_file", vocab_file)):
        problems += [
            f"{flag} {written}: inside of --input {given}, so its files would be read as text, or replace it;"
            " choose another"
            for given in args.input
            if written and written.resolve().is_relative_to(Path(given).resolve())
        ]
    sources = gather(problems, find_sources, args.input, form_settings(args))
    if problems:
        raise BadRequest(problems)
    note = wrapped_note(sources)
    if note and ranks.from_environment().is_main:
        print(f"note: {note}")
    return sources


def wrapped_note(sources: list[Source]) -> str | None:
    """How many files were taken for books as their lines are wrapped; None where there are none, or it was told."""
    seen = [source for source in sources if source.form_settings.one_document_per_file is None]
    books = [source for source in seen if source.kind == BOOK]
    if not books:
        return None
    texts = sum(source.kind == TEXT for source in seen)
    return wrapped_lines_said(len(books), len(books) + texts)


def check_seed(seed: int) -> None:
    """BadRequest for a seed that the generators of random numbers do not take."""
    if not 0 <= seed <= MOST_SEED:
        raise BadRequest(f"--random_seed {seed}: from 0 to {MOST_SEED}")


def gather(problems: list[str], function: Callable[..., Any], *arguments: object) -> Any:
    """What the function returns; None when it raises BadRequest, whose problems are added to the others."""
    try:
        return function(*arguments)
    except BadRequest as error:
        problems += error.problems
        return None
