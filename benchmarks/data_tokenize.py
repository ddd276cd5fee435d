"""Tokenising alone, one thread: ours against Hugging Face tokenizers, the same text, interleaved.

    python benchmarks/data_tokenize.py TEXT --vocab_file VOCAB

Process CPU time, so that other work on the machine weighs less. Ours starts with an empty cache each round ("cold"),
and goes over the same text once more ("warm"): a corpus is somewhere between, nearer to warm the longer it is.
"""

import argparse
import os
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from data_common import machine, sentences_of, told
from tokenizers import BertWordPieceTokenizer

from pretraining.data.tokens import text_blocks
from pretraining.data.wordpiece import Tokenizer, read_vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--vocab_file", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=8.0, help="of the text, for each round")
    args = parser.parse_args()
    text = "\n".join(sentences_of([args.text]))[: int(args.megabytes * 1e6)]
    lines = text.split("\n")
    size = len(text.encode()) / 1e6
    vocabulary = read_vocabulary(args.vocab_file, True)
    other = BertWordPieceTokenizer(str(args.vocab_file), lowercase=True)

    def ours(tokenizer: Tokenizer) -> None:
        for block in text_blocks(text):
            tokenizer.encode(block)

    def theirs() -> None:
        for start in range(0, len(lines), 1000):
            other.encode_batch(lines[start : start + 1000], add_special_tokens=False)

    speeds = {"cold": [], "warm": [], "hf": []}
    for _ in range(args.rounds):
        tokenizer = Tokenizer(vocabulary)
        for name in speeds:
            start = time.process_time()
            theirs() if name == "hf" else ours(tokenizer)
            speeds[name].append(size / (time.process_time() - start))
    print(machine())
    print(f"{size:.1f} MB of {args.text.name}")
    for name, title in (("cold", "ours, empty cache"), ("warm", "ours, warm cache"), ("hf", "Hugging Face tokenizers")):
        print(f"{title}: {told(speeds[name], 'MB/s')}")
    for name in ("cold", "warm"):
        ratios = [ours / theirs for ours, theirs in zip(speeds[name], speeds["hf"], strict=True)]
        print(f"ratio, {name}: {told(ratios, 'x')}")


if __name__ == "__main__":
    main()
