"""From any text to BERT's pre-training data, in one run or step by step.

    prepare.py --input FILE_OR_FOLDER... --vocab_file V --output_dir D --corpus NAME    the whole run
    prepare.py download|extract|vocab|shard|hdf5|pack|verify ...                        one step

The whole run is `shard` (tokenise once) and `hdf5` (sequences of every phase). Each goes on where it was stopped.
"""

import argparse
import errno
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from central.files import existing_parent, why_no_file
from central.models import LARGEST_SIZE
from central.runtime.exits import DONE, BadRequest, errno_of, run
from pretraining.data import prepare_options as options
from pretraining.data.prepare_options import some_path
from pretraining.data.workers import workers

# What a step alone needs, its functions import: with HDF5, numpy and ssl every start would take twice as long.

FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
WHOLE_RUN = "all"


def all_options(parser: argparse.ArgumentParser) -> None:
    from pretraining.data.request_options import add_request_options

    add_request_options(parser)


def run_all(args: argparse.Namespace) -> None:
    from pretraining.data import pipeline
    from pretraining.data.request_options import request_of

    request = request_of(args)
    with workers(args.num_processes) as pool:
        if pool:
            pipeline.prepare(request, pool)


def run_shard(args: argparse.Namespace) -> None:
    from pretraining.data import pipeline
    from pretraining.data.request_options import request_of

    request = request_of(args)
    with workers(args.num_processes) as pool:
        if pool:
            pipeline.tokenize(request, pool, need_tokens=True)
            print(request.tokens_folder)


def run_hdf5(args: argparse.Namespace) -> None:
    from pretraining.data import pipeline
    from pretraining.data.request_options import request_of

    request = request_of(args, text_is_needed=False)
    with workers(args.num_processes) as pool:
        if pool:
            pipeline.write_hdf5(request, pipeline.stored_corpus(request), pool)


def download_options(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--wikipedia", metavar="CODE", help="newest dump of this language's Wikipedia, such as en")
    source.add_argument("--url", metavar="URL", help="any file")
    parser.add_argument("--checksum", metavar="NAME:HEX", help="sha256:, sha1: or md5: and the digits expected")
    parser.add_argument("--output_dir", required=True, type=some_path, metavar="DIR", help="where the file goes")


def run_download(args: argparse.Namespace) -> None:
    from pretraining.data.download import download, file_name, wikipedia_dump

    url, checksum = wikipedia_dump(args.wikipedia) if args.url is None else (args.url, args.checksum)
    target = args.output_dir / file_name(url)
    download(url, target, checksum)
    print(target)


def extract_options(parser: argparse.ArgumentParser) -> None:
    options.add_text_options(parser)
    options.add_process_option(parser)
    parser.add_argument(
        "--output_dir", required=True, type=some_path, metavar="DIR", help="a folder for the text files alone"
    )


def run_extract(args: argparse.Namespace) -> None:
    from pretraining.data.extract import extract

    sources, dataset = options.sources_of(args, args.output_dir), options.dataset_of(args)
    text = options.text_settings(args)
    with workers(args.num_processes) as pool:
        if pool:
            extract(sources, dataset, text, args.output_dir, pool)


def vocab_options(parser: argparse.ArgumentParser) -> None:
    options.add_text_options(parser)
    options.add_case_option(parser)
    parser.add_argument("--vocab_size", type=int, default=30522, metavar="N", help="tokens wanted")
    parser.add_argument("--vocab_file", required=True, type=some_path, metavar="FILE", help="where to write them")


def run_vocab(args: argparse.Namespace) -> None:
    from pretraining.data.vocabulary import train_vocabulary, write_vocabulary
    from pretraining.data.wordpiece import SPECIAL_TOKENS, Vocabulary

    sources, dataset = options.sources_of(args, vocab_file=args.vocab_file), options.dataset_of(args)
    text = options.text_settings(args)
    if not len(SPECIAL_TOKENS) < args.vocab_size <= LARGEST_SIZE:
        raise BadRequest(
            f"--vocab_size {args.vocab_size}: more than the {len(SPECIAL_TOKENS)} special tokens, and at most"
            f" {LARGEST_SIZE}"
        )
    if args.vocab_file.exists() and (what := why_no_file(args.vocab_file)):
        raise BadRequest(f"--vocab_file {args.vocab_file}: {what}")
    folder = existing_parent(str(args.vocab_file.parent))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadRequest(f"--vocab_file {args.vocab_file}: {folder} cannot be written to: choose another folder")
    normaliser = Vocabulary((), *options.case_of(args)).normaliser
    tokens, notes = train_vocabulary(sources, dataset, text, args.vocab_size, normaliser)
    write_vocabulary(tokens, args.vocab_file)
    for note in notes:
        print(f"note: {note}")
    fewer = f", of {args.vocab_size} asked for: the text has no more words and pieces; give more text"
    print(f"{args.vocab_file}: {len(tokens)} tokens{fewer if len(tokens) < args.vocab_size else ''}")


def pack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input_dir", required=True, type=some_path, metavar="DIR", help="corpus folder with HDF5 files"
    )
    parser.add_argument("--output_dir", required=True, type=some_path, metavar="DIR", help="folder for the packed ones")
    parser.add_argument("--random_seed", type=int, default=12345, metavar="N", help="order of the packed rows")
    options.add_process_option(parser)


def run_pack(args: argparse.Namespace) -> None:
    from pretraining.data.pack import pack_folder

    options.check_seed(args.random_seed)
    with workers(args.num_processes) as pool:
        if pool:
            pack_folder(args.input_dir, args.output_dir, args.random_seed, pool)


def verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=some_path, metavar="DIR", help="corpus folder, or any folder above")
    options.add_process_option(parser)


def run_verify(args: argparse.Namespace) -> None:
    from pretraining.data.verify import verify_folder

    with workers(args.num_processes) as pool:
        if pool:
            verify_folder(args.folder, pool)


# Step: (its options, what it does, one line of help). Without the name of a step, the whole run.
STEPS = {
    WHOLE_RUN: (all_options, run_all, "text to the HDF5 files of all phases"),
    "download": (download_options, run_download, "fetch a Wikipedia dump or any file"),
    "extract": (extract_options, run_extract, "sources to plain text, one sentence a line"),
    "vocab": (vocab_options, run_vocab, "learn a WordPiece vocabulary from text"),
    "shard": (all_options, run_shard, "tokenise, and stop there"),
    "hdf5": (all_options, run_hdf5, "HDF5 files from the tokens that `shard` left"),
    "pack": (pack_options, run_pack, "put several sequences into one row"),
    "verify": (verify_options, run_verify, "check HDF5 files and tell what is in them"),
}


def main(argv: list[str]) -> int:
    step, words = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (WHOLE_RUN, argv)
    if step not in STEPS:
        raise BadRequest(f"unknown step {step}: one of {', '.join(STEPS)}")
    add_options, do, description = STEPS[step]
    steps = "\n".join(f"  {name:<10}{line}" for name, (_, _, line) in STEPS.items() if name != WHOLE_RUN)
    parser = argparse.ArgumentParser(
        prog="prepare.py" if step == WHOLE_RUN else f"prepare.py {step}",
        description=description,
        epilog=f"steps, each with its own --help (prepare.py STEP --help):\n{steps}" if step == WHOLE_RUN else None,
        formatter_class=HelpFormatter,
    )
    add_options(parser)
    args = parser.parse_args(words)
    try:
        do(args)
    except (OSError, RuntimeError) as error:  # HDF5 tells of a full disk by either
        raise _explained(error) from error
    return DONE


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults at each option, line breaks kept in the list of steps."""


def _explained(error: OSError | RuntimeError) -> Exception:
    """A full or closed disk is the user's to mend; what is finished stays."""
    number = errno_of(error)
    if number in FULL:
        return BadRequest(f"{os.strerror(number)}; finished files stay: free some space and run the same command again")
    if number in NOT_WRITABLE:
        return BadRequest(f"cannot read or write ({error}); choose another folder or change its permissions")
    return error


if __name__ == "__main__":
    sys.exit(run(main))
