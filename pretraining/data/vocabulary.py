"""Training a WordPiece vocabulary on the user's own text."""

from collections.abc import Iterator
from pathlib import Path

from central.runtime.exits import BadRequest
from pretraining.data.documents import TextSettings, canonical_text
from pretraining.data.hdf5 import write_synced
from pretraining.data.sources import HubDataset, Source, batches
from pretraining.data.wordpiece import SPECIAL_TOKENS


def train_vocabulary(
    sources: list[Source], dataset: HubDataset | None, text: TextSettings, vocab_size: int, do_lower_case: bool
) -> list[str]:
    """`vocab_size` tokens or fewer (a small text has no more), [PAD] first; BadRequest when its characters are more."""
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(lowercase=do_lower_case)
    tokenizer.train_from_iterator(
        _lines(sources, dataset, text),
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    if len(tokens) > vocab_size:
        raise BadRequest(
            f"--vocab_size {vocab_size}: the characters of the text, at the start of a word and inside of one,"
            f" are {len(tokens)} tokens already; ask for more"
        )
    return tokens


def _lines(sources: list[Source], dataset: HubDataset | None, text: TextSettings) -> Iterator[list[str]]:
    found = False
    for batch in batches(sources, dataset):
        lines = canonical_text(batch, text).text.split("\n")
        found = found or any(lines)
        yield lines
    if not found:
        raise BadRequest("--input: no text in it, so there is no vocabulary to learn")


def write_vocabulary(tokens: list[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_synced(path, "".join(f"{token}\n" for token in tokens).encode())
