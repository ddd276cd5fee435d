"""Training a WordPiece vocabulary on the user's own text."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from central.runtime.exits import BadRequest
from pretraining.data.documents import TextSettings, canonical_text
from pretraining.data.hdf5 import write_synced
from pretraining.data.sources import HubDataset, Source, batches
from pretraining.data.wordpiece import SPECIAL_TOKENS, split_punctuation

MOST_CHARACTERS = 1000  # in the alphabet; rarer ones become [UNK]


def train_vocabulary(
    sources: list[Source], dataset: HubDataset | None, text: TextSettings, vocab_size: int, do_lower_case: bool
) -> list[str]:
    """`vocab_size` tokens or fewer (a small text has no more), [PAD] first; BadRequest when its characters are more.

    The text is read twice. The trainer numbers characters as it meets them, in another order each time, and breaks ties
    by number; with the alphabet told beforehand the same text gives the same vocabulary.
    """
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(lowercase=do_lower_case)

    def normalised() -> Iterator[str]:
        return map(tokenizer.normalizer.normalize_str, _texts(sources, dataset, text))

    counts, inside = _count_characters(normalised())
    alphabet = sorted(sorted(counts, key=lambda character: (-counts[character], character))[:MOST_CHARACTERS])
    first = [*SPECIAL_TOKENS, *alphabet, *(f"##{character}" for character in alphabet if character in inside)]
    if not alphabet:
        raise BadRequest("--input: no text in it, so there is no vocabulary to learn")
    if len(first) > vocab_size:
        raise BadRequest(
            f"--vocab_size {vocab_size}: the characters of the text, at the start of a word and inside of one,"
            f" are {len(first)} tokens already; ask for more"
        )
    rare = dict.fromkeys(map(ord, counts.keys() - set(alphabet)))
    tokenizer.train_from_iterator(
        (text.translate(rare).split("\n") for text in normalised()),
        vocab_size=vocab_size,
        special_tokens=first,
        show_progress=False,
    )
    return sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)


def _texts(sources: list[Source], dataset: HubDataset | None, text: TextSettings) -> Iterator[str]:
    return (canonical_text(batch, text).text for batch in batches(sources, dataset))


def _count_characters(texts: Iterator[str]) -> tuple[Counter[str], set[str]]:
    """(how often each occurs, white space aside; those that occur inside of a word)."""
    counts, inside, seen = Counter(), set(), set()
    for text in texts:
        counts.update(text)
        new = set(text.split()) - seen
        seen |= new
        inside.update(*(part[1:] for word in new for part in split_punctuation(word)))
    return Counter({character: count for character, count in counts.items() if not character.isspace()}), inside


def write_vocabulary(tokens: list[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_synced(path, "".join(f"{token}\n" for token in tokens).encode())
