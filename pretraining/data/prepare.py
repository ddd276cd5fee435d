"""From any text to BERT's pre-training data, in one run or step by step.

    prepare.py --input FILE_OR_FOLDER... --vocab_file V --output_dir D --corpus NAME     the whole run
    prepare.py download | extract | vocab | shard | hdf5 | pack | verify --help          one step

The whole run is `shard` (tokenise once) and `hdf5` (sequences of every phase). Both go on where they were stopped.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from central.runtime.exits import BadRequest, run
from pretraining.data import pipeline
from pretraining.data.documents import TextSettings
from pretraining.data.sentences import SPLITTERS
from pretraining.data.shards import Phase, ShardSettings, choose_num_shards
from pretraining.data.sources import HubDataset, find_sources
from pretraining.data.vocabulary import train_vocabulary, write_vocabulary
from pretraining.data.workers import workers
from pretraining.data.wordpiece import SPECIAL_TOKENS, read_vocabulary


def add_source_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("text")
    group.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files and folders: plain text (a blank line ends a document), JSONL, MediaWiki XML; .gz and .bz2 too",
    )
    group.add_argument(
        "--one_document_per_file",
        action="store_true",
        help="each plain text file is one document with wrapped lines, as books are",
    )
    group.add_argument(
        "--dataset", metavar="ID", help="a data set of the Hugging Face Hub, or a local folder that `datasets` reads"
    )
    group.add_argument("--dataset_config", metavar="NAME", help="its configuration, such as 20231101.en")
    group.add_argument("--dataset_split", default="train", metavar="NAME", help="its split")
    group.add_argument(
        "--text_column", default="text", metavar="NAME", help="the field with the text, in JSONL files and data sets"
    )
    group.add_argument(
        "--sentences", choices=SPLITTERS, default="rules", help="how sentences are found; line: every line is one"
    )
    group.add_argument(
        "--language", default="en", metavar="CODE", help="language of the abbreviations that end no sentence"
    )
    group.add_argument("--do_lower_case", type=int, choices=(0, 1), default=1, help="1: an uncased vocabulary")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sequences")
    group.add_argument(
        "--vocab_file", required=True, type=Path, metavar="FILE", help="WordPiece vocabulary, one token a line"
    )
    group.add_argument(
        "--output_dir", required=True, type=Path, metavar="DIR", help="where the folders of the phases go"
    )
    group.add_argument("--corpus", default="corpus", metavar="NAME", help="name of the corpus folder and of its files")
    group.add_argument(
        "--max_seq_length",
        type=int,
        nargs="+",
        default=[128, 512],
        metavar="N",
        help="tokens of a sequence, for each phase",
    )
    group.add_argument(
        "--max_predictions_per_seq",
        type=int,
        nargs="+",
        default=[20, 80],
        metavar="N",
        help="most masked tokens of a sequence, for each phase",
    )
    group.add_argument("--masked_lm_prob", type=float, default=0.15, metavar="P", help="share of tokens to mask")
    group.add_argument(
        "--short_seq_prob",
        type=float,
        default=0.1,
        metavar="P",
        help="share of documents cut to a random shorter length",
    )
    group.add_argument("--whole_word_masking", action="store_true", help="mask all pieces of a word or none")
    group.add_argument(
        "--dupe_factor", type=int, default=5, metavar="N", help="times the text is used, with other pairs and masks"
    )
    group.add_argument("--random_seed", type=int, default=12345, metavar="N", help="same seed and text, same bytes")
    group.add_argument("--num_shards", type=int, default=0, metavar="N", help="training files of a phase; 0: by size")
    group.add_argument(
        "--test_fraction", type=float, default=0.1, metavar="P", help="share of documents held out for evaluation"
    )
    group.add_argument(
        "--num_processes",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="worker processes; under mpirun the ranks are the workers",
    )
    group.add_argument(
        "--keep_tokens", action="store_true", help="keep the tokenised text for another run with other masks or lengths"
    )


def text_settings(args: argparse.Namespace) -> TextSettings:
    return TextSettings(sentences=args.sentences, language=args.language, text_column=args.text_column)


def dataset_of(args: argparse.Namespace) -> HubDataset | None:
    return HubDataset(args.dataset, args.dataset_config, args.dataset_split, args.text_column) if args.dataset else None


def request_of(args: argparse.Namespace) -> pipeline.Request:
    """The run asked for, checked; BadRequest with all that is wrong."""
    problems = list(faults(args))
    sources = []
    for check in (
        lambda: sources.extend(find_sources(args.input, args.one_document_per_file)),
        lambda: read_vocabulary(args.vocab_file, bool(args.do_lower_case)),
    ):
        try:
            check()
        except BadRequest as error:
            problems += error.problems
    if problems:
        raise BadRequest(problems)
    phases = tuple(Phase(*pair) for pair in zip(args.max_seq_length, args.max_predictions_per_seq, strict=True))
    settings = ShardSettings(
        phases=phases,
        vocab_file=args.vocab_file.resolve(),
        do_lower_case=bool(args.do_lower_case),
        masked_lm_prob=args.masked_lm_prob,
        short_seq_prob=args.short_seq_prob,
        whole_word_masking=args.whole_word_masking,
        dupe_factor=args.dupe_factor,
        random_seed=args.random_seed,
        num_shards=args.num_shards,
        test_fraction=args.test_fraction,
    )
    return pipeline.Request(
        tuple(sources), dataset_of(args), text_settings(args), settings, args.output_dir.resolve(), args.corpus
    )


def faults(args: argparse.Namespace):
    """What is wrong with the numbers of a request, a line each."""
    if not args.input and not args.dataset:
        yield "no text given: --input FILE_OR_FOLDER... or --dataset ID"
    if len(args.max_seq_length) != len(args.max_predictions_per_seq):
        yield f"--max_seq_length has {len(args.max_seq_length)} values and --max_predictions_per_seq {len(args.max_predictions_per_seq)}; one of each a phase"
    for length, predictions in zip(args.max_seq_length, args.max_predictions_per_seq, strict=False):
        if length < 5:
            yield f"--max_seq_length {length}: at least 5 ([CLS] a [SEP] b [SEP])"
        elif not 1 <= predictions <= length - 3:
            yield f"--max_predictions_per_seq {predictions}: from 1 to {length - 3} for sequences of {length}"
    if not 0 < args.masked_lm_prob < 1:
        yield f"--masked_lm_prob {args.masked_lm_prob}: between 0 and 1, such as 0.15"
    for name, value, least, most in (
        ("short_seq_prob", args.short_seq_prob, 0, 1),
        ("test_fraction", args.test_fraction, 0, 0.9),
        ("dupe_factor", args.dupe_factor, 1, 1000),
        ("random_seed", args.random_seed, 0, 2**63),
        ("num_shards", args.num_shards, 0, 100_000),
        ("num_processes", args.num_processes, 1, 4096),
    ):
        if not least <= value <= most:
            yield f"--{name} {value}: from {least} to {most}"
    if not args.corpus or "/" in args.corpus:
        yield f"--corpus {args.corpus!r}: a name without /"


def prepare(args: argparse.Namespace, last_step: str) -> int:
    """The whole run, or its first half."""
    request = request_of(args)
    with workers(args.num_processes) as pool:
        if pool is None:
            return 0
        corpus = pipeline.tokenize(request, pool)
        print(
            f"{corpus.documents} documents, {corpus.sentences} sentences, {corpus.tokens} tokens, {corpus.duplicate_share:.1%} of the sentences seen before"
        )
        if last_step == "shard":
            return 0
        settings = replace(
            request.settings, num_shards=choose_num_shards(args.num_shards, corpus.documents, corpus.tokens)
        )
        pipeline.write_hdf5(request, settings, corpus, pool)
    for phase in settings.phases:
        print(request.corpus_folder(phase))
    return 0


def vocab(args: argparse.Namespace) -> int:
    sources = find_sources(args.input, args.one_document_per_file)
    tokens = train_vocabulary(sources, dataset_of(args), text_settings(args), args.vocab_size, bool(args.do_lower_case))
    write_vocabulary(tokens, args.vocab_file)
    print(f"{args.vocab_file}: {len(tokens)} tokens")
    return 0


def main(argv: list[str]) -> int:
    if argv and argv[0] == "vocab":
        parser = argparse.ArgumentParser(
            prog="prepare.py vocab", formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        add_source_options(parser)
        parser.add_argument("--vocab_size", type=int, default=30522, metavar="N", help="tokens wanted")
        parser.add_argument("--vocab_file", type=Path, required=True, metavar="FILE", help="where to write it")
        return vocab(parser.parse_args(argv[1:]))
    parser = argparse.ArgumentParser(prog="prepare.py", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_source_options(parser)
    add_run_options(parser)
    return prepare(parser.parse_args(argv), "hdf5")


if __name__ == "__main__":
    sys.exit(run(main))
