"""The options of prepare.py, and their way to a checked request."""

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from central.options import in_one_line
from central.runtime import rank as ranks
from central.runtime.exits import BadRequest
from pretraining.data.documents import TextSettings
from pretraining.data.formats import BOOK, TEXT, FormSettings
from pretraining.data.pipeline import Request
from pretraining.data.report import REFUSED
from pretraining.data.sentences import SPLITTERS, language_note, sentence_splitter
from pretraining.data.shards import Phase, ShardSettings
from pretraining.data.sources import HubDataset, Source, find_sources, wrapped_lines_said
from pretraining.data.wordpiece import VocabularyFile

NO_TEXT = "no text given: --input FILE_OR_FOLDER..., --dataset ID, or --dataset alone for Wikipedia"
MOST_SEED = 2**32 - 1
LONGEST_ROW = 1 << 16  # tokens
SHORT = 8  # tokens of a row, three of them special, below which it is said
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


def add_token_options(parser: argparse.ArgumentParser) -> None:
    """Vocabulary and place of the tokens."""
    add = parser.add_argument_group("tokens").add_argument
    add("--vocab_file", required=True, type=some_path, metavar="FILE", help="WordPiece vocabulary, a token a line")
    add("--output_dir", required=True, type=some_path, metavar="DIR", help="where the folders of the phases go")
    add("--corpus", default="corpus", metavar="NAME", help="name of the corpus folder and of its files")
    add_case_option(parser)
    add_process_option(parser)


def add_sequence_options(parser: argparse.ArgumentParser) -> None:
    """What the HDF5 files hold."""
    add = parser.add_argument_group("sequences").add_argument
    add(
        "--max_seq_length",
        type=int,
        nargs="+",
        default=[128, 512],
        metavar="N",
        help="tokens a sequence, for each phase",
    )
    add(
        "--max_predictions_per_seq",
        type=int,
        nargs="+",
        default=[20, 80],
        metavar="N",
        help="most masked, for each phase",
    )
    add("--masked_lm_prob", type=float, default=0.15, metavar="P", help="share of tokens to mask")
    add(
        "--short_seq_prob",
        type=float,
        default=0.1,
        metavar="P",
        help="share of documents cut to a random shorter length",
    )
    add("--whole_word_masking", action="store_true", help="mask all pieces of a word or none")
    add("--dupe_factor", type=int, default=5, metavar="N", help="times the text is used, with other pairs and masks")
    add("--random_seed", type=int, default=12345, metavar="N", help="same seed and text, same bytes")
    add("--num_shards", type=int, default=0, metavar="N", help="training files a phase; 0: by size")
    add("--test_fraction", type=float, default=0.1, metavar="P", help="share of documents held out for evaluation")
    add(
        "--allow",
        nargs="+",
        default=[],
        choices=REFUSED,
        metavar="NAME",
        help="go on with a text that is refused: "
        + ", ".join(f"{name} ({what.replace('%', '%%')})" for name, what in REFUSED.items()),
    )
    add("--keep_tokens", action="store_true", help="keep the tokens for a run with other masks or lengths")


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
        except LookupError as error:
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
    sources = _gather(problems, find_sources, args.input, form_settings(args))
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


def request_of(args: argparse.Namespace, text_is_needed: bool = True) -> Request:
    """The run asked for; BadRequest with all that is wrong with it."""
    problems = list(_faults(args))
    sources = _gather(problems, sources_of, args, args.output_dir, text_is_needed)
    vocabulary_file = VocabularyFile(args.vocab_file.resolve(), *case_of(args))
    _gather(problems, vocabulary_file.read)
    text = _gather(problems, text_settings, args)
    if problems:
        raise BadRequest(problems)
    short = [length for length in args.max_seq_length if length < SHORT]
    if short and ranks.from_environment().is_main:
        print(f"note: --max_seq_length {', '.join(map(str, short))}: almost nothing of a text fits into such rows")
    settings = ShardSettings(
        phases=tuple(map(Phase, args.max_seq_length, args.max_predictions_per_seq)),
        vocabulary_file=vocabulary_file,
        masked_lm_prob=args.masked_lm_prob,
        short_seq_prob=args.short_seq_prob,
        whole_word_masking=args.whole_word_masking,
        dupe_factor=args.dupe_factor,
        random_seed=args.random_seed,
        num_shards=args.num_shards,
        test_fraction=args.test_fraction,
    )
    output_dir = args.output_dir.resolve()
    return Request(
        tuple(sources),
        dataset_of(args),
        text,
        settings,
        output_dir,
        args.corpus,
        args.keep_tokens,
        tuple(args.allow),
    )


def check_seed(seed: int) -> None:
    """BadRequest for a seed that the generators of random numbers do not take."""
    if not 0 <= seed <= MOST_SEED:
        raise BadRequest(f"--random_seed {seed}: from 0 to {MOST_SEED}")


def _gather(problems: list[str], function: Callable[..., Any], *arguments: object) -> Any:
    """What the function returns; None when it raises BadRequest, whose problems are added to the others."""
    try:
        return function(*arguments)
    except BadRequest as error:
        problems += error.problems
        return None


def _faults(args: argparse.Namespace) -> Iterator[str]:
    lengths, predictions = args.max_seq_length, args.max_predictions_per_seq
    if len(lengths) != len(predictions):
        yield f"--max_seq_length {lengths}, --max_predictions_per_seq {predictions}: one of each a phase"
    for length, most in zip(lengths, predictions, strict=False):
        if length < 5:
            yield f"--max_seq_length {length}: at least 5, for [CLS] a [SEP] b [SEP]"
        elif length > LONGEST_ROW:
            yield f"--max_seq_length {length}: at most {LONGEST_ROW}"
        elif not 1 <= most <= length - 3:
            yield f"--max_predictions_per_seq {most}: from 1 to {length - 3} for sequences of {length}"
    if not 0 < args.masked_lm_prob < 1:
        yield f"--masked_lm_prob {args.masked_lm_prob}: between 0 and 1, such as 0.15"
    for name, least, most in (
        ("short_seq_prob", 0, 1),
        ("test_fraction", 0, 0.9),
        ("dupe_factor", 1, 1000),
        ("random_seed", 0, MOST_SEED),
        ("num_shards", 0, 100_000),
        ("num_processes", 1, 4096),
    ):
        value = getattr(args, name)
        if not least <= value <= most:
            yield f"--{name} {value}: from {least} to {most}"
    if not args.corpus or "/" in args.corpus:
        yield f"--corpus {args.corpus!r}: a name without /"
