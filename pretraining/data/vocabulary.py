"""Training a WordPiece vocabulary on the user's own text."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from central.files import write_synced
from central.runtime.exits import BadRequest
from pretraining.data.documents import TextSettings, canonical_text
from pretraining.data.progress import BYTES, Progress
from pretraining.data.sources import HubDataset, Source, batches
from pretraining.data.wordpiece import SPECIAL_TOKENS, Normaliser

ALPHABET_SHARE = 0.9995  # of the text: so much of it the alphabet makes at least
FEW_CHARACTERS = 1000  # so many are taken in any case, while they leave half of the vocabulary to longer pieces
MOST_WORDS = 4_000_000  # distinct words in memory, about 500 MB; beyond it those that occurred once are dropped
SHOWN_CHARACTERS = 10


def train_vocabulary(
    sources: list[Source], dataset: HubDataset | None, text: TextSettings, vocab_size: int, normaliser: Normaliser
) -> tuple[list[str], list[str]]:
    """(`vocab_size` tokens or fewer, as a small text has no more, [PAD] first; notes on characters left out).

    BadRequest when the characters of the text are more tokens than asked for. The trainer numbers characters as it
    meets them, in another order each time, and breaks ties by number: so it is told the alphabet beforehand.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    parts = _count_parts(_texts(sources, dataset, text), normaliser)
    characters, inside = _count_characters(parts)
    if not characters:
        raise BadRequest("--input: no text in it, so there is no vocabulary to learn")
    alphabet = _alphabet(characters, inside, vocab_size)
    first = [*SPECIAL_TOKENS, *_pieces(sorted(alphabet), inside)]
    if len(first) > vocab_size:
        raise BadRequest(
            f"--vocab_size {vocab_size}: the characters of the text, at the start of a word and inside of one,"
            f" are {len(first)} tokens already; ask for more"
        )
    print(f"learning {vocab_size} tokens from {len(parts)} different words", flush=True)  # the learner itself is silent
    rare = dict.fromkeys(map(ord, characters.keys() - alphabet))
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator(_repeated(parts, rare), trainer)
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=lambda token: ids[token])
    return tokens, _notes(characters, alphabet)


def _texts(sources: list[Source], dataset: HubDataset | None, text: TextSettings) -> Iterator[str]:
    progress = Progress("counting words", sum(source.size for source in sources), BYTES)
    for batch in batches(sources, dataset):
        yield canonical_text(batch, text).text
        progress.update(batch.bytes_read)
    progress.close()


def _count_parts(texts: Iterable[str], normaliser: Normaliser) -> Counter[str]:
    """How often the text has each part of a word that pieces are made of."""
    words: Counter[str] = Counter()
    for text in texts:
        words.update(text.split())
        if len(words) > MOST_WORDS:
            words = Counter({word: count for word, count in words.items() if count > 1})
    parts: Counter[str] = Counter()
    for word, count in words.items():
        for part in normaliser.parts(word):
            parts[part] += count
    return parts


def _count_characters(parts: Counter[str]) -> tuple[Counter[str], set[str]]:
    """(how often each occurs; those that occur inside of a part)."""
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for part, count in parts.items():
        inside.update(part[1:])
        for character in part:
            counts[character] += count
    return counts, inside


def _alphabet(characters: Counter[str], inside: set[str], vocab_size: int) -> set[str]:
    """The commonest characters that make ALPHABET_SHARE of the text, more where that costs little."""
    common = sorted(characters, key=lambda character: (-characters[character], character))
    needed, covered, size = 0, 0, len(SPECIAL_TOKENS)
    while covered < ALPHABET_SHARE * characters.total():
        covered += characters[common[needed]]
        needed += 1
    for taken, character in enumerate(common):
        size += 1 + (character in inside)
        if taken >= needed and (taken >= FEW_CHARACTERS or size > vocab_size / 2):
            return set(common[:taken])
    return set(common)


def _pieces(alphabet: list[str], inside: set[str]) -> Iterator[str]:
    yield from alphabet
    yield from (f"##{character}" for character in alphabet if character in inside)


def _repeated(parts: Counter[str], rare: dict[int, None]) -> Iterator[str]:
    """Each part as often as the text has it, without rare characters, in lines of bounded length."""
    for part, count in sorted(parts.items()):
        kept = part.translate(rare)
        while kept and count:
            now = min(count, 10_000)
            yield f"{kept} " * now
            count -= now


def _notes(characters: Counter[str], alphabet: set[str]) -> list[str]:
    rare = Counter({character: count for character, count in characters.items() if character not in alphabet})
    if not rare:
        return []
    common = sorted(rare, key=lambda character: (-rare[character], character))[:SHOWN_CHARACTERS]
    return [
        f"{len(rare)} rare characters, {rare.total() / characters.total():.3%} of the text, are left out and will be"
        f" [UNK], the commonest: {' '.join(common)}"
    ]


def write_vocabulary(tokens: list[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_synced(path, "".join(f"{token}\n" for token in tokens).encode())
