"""The options of a whole run, and their way to a checked request."""

import argparse
from collections.abc import Iterator

from central.options import in_one_line
from central.runtime import rank as ranks
from central.runtime.exits import BadRequest
from pretraining.data.pipeline import Request
from pretraining.data.prepare_options import (
    MOST_SEED,
    add_case_option,
    add_process_option,
    add_text_options,
    case_of,
    dataset_of,
    gather,
    some_path,
    sources_of,
    text_settings,
)
from pretraining.data.report import REFUSED
from pretraining.data.shards import Phase, ShardSettings
from pretraining.data.wordpiece import VocabularyFile

LONGEST_NAME = 200  # bytes; a name of a file has 255, and says more than this
LONGEST_ROW = 1 << 16  # tokens
SHORT = 8  # tokens of a row, three of them special, below which it is said


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """Text, vocabulary, sequences."""
    add_text_options(parser)
    _add_token_options(parser)
    _add_sequence_options(parser)


def _add_token_options(parser: argparse.ArgumentParser) -> None:
    """Vocabulary and place of the tokens."""
    add = parser.add_argument_group("tokens").add_argument
    add("--vocab_file", required=True, type=some_path, metavar="FILE", help="WordPiece vocabulary, a token a line")
    add("--output_dir", required=True, type=some_path, metavar="DIR", help="where the folders of the phases go")
    add("--corpus", default="corpus", metavar="NAME", help="name of the corpus folder and of its files")
    add_case_option(parser)
    add_process_option(parser)


def _add_sequence_options(parser: argparse.ArgumentParser) -> None:
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


def request_of(args: argparse.Namespace, text_is_needed: bool = True) -> Request:
    """The run asked for; BadRequest with all that is wrong with it."""
    problems = list(_faults(args))
    sources = gather(problems, sources_of, args, args.output_dir, text_is_needed)
    vocabulary_file = VocabularyFile(args.vocab_file.resolve(), *case_of(args))
    gather(problems, vocabulary_file.read)
    text = gather(problems, text_settings, args)
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


def _words(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))


def _faults(args: argparse.Namespace) -> Iterator[str]:
    lengths, predictions = args.max_seq_length, args.max_predictions_per_seq
    if len(lengths) != len(predictions):
        yield (
            f"--max_seq_length {_words(lengths)} --max_predictions_per_seq {_words(predictions)}: one of each a phase,"
            f" such as --max_seq_length {_words(lengths)} --max_predictions_per_seq"
            f" {_words([max(1, length * 5 // 32) for length in lengths])}"
        )
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
    ):
        value = getattr(args, name)
        if not least <= value <= most:
            yield f"--{name} {value}: from {least} to {most}"
    if args.corpus in ("", ".", "..") or "/" in args.corpus or not in_one_line(args.corpus):
        yield f"--corpus {args.corpus!r}: a name of a folder, without / and line ends"
    elif len(args.corpus.encode(errors="replace")) > LONGEST_NAME:
        yield f"--corpus {args.corpus}: at most {LONGEST_NAME} bytes"
