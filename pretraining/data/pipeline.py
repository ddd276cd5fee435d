"""The two halves of the whole run: text to stored tokens, stored tokens to HDF5 of all phases. Both go on where they stopped."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from central.runtime.exits import BadRequest
from pretraining.data.documents import TextSettings
from pretraining.data.progress import Progress
from pretraining.data.shards import (
    FORMAT,
    TRAINING,
    Phase,
    Shard,
    ShardSettings,
    check_finished,
    choose_num_shards,
    counts_file,
    draw_shards,
    write_shard,
)
from pretraining.data.sources import Batch, HubDataset, Source, batches
from pretraining.data.tokens import HASH_SAMPLE, Part, PartSummary, summary, tokenize_batch
from pretraining.data.wordpiece import Vocabulary, read_vocabulary
from pretraining.data.workers import Workers

SHOWN_NOTES = 20
BYTES_PER_POSITION = 2.2  # of an HDF5 file, for each of sequences x max_seq_length; measured 1.9 to 2.0
SEQUENCE_SHARE = 0.7  # of a target's tokens that a sequence uses up: a random second half gives its sentences back


@dataclass(frozen=True)
class Request:
    """One run: what is read, how it is cut and masked, where it goes. `settings.num_shards` 0 means by size."""

    sources: tuple[Source, ...]
    dataset: HubDataset | None
    text: TextSettings
    settings: ShardSettings
    output_dir: Path
    corpus: str

    @property
    def tokens_folder(self) -> Path:
        return self.output_dir / f"tokens_{self.corpus}"

    def corpus_folder(self, phase: Phase) -> Path:
        """Where the files of a phase go: the reference's names."""
        s = self.settings
        name = (
            f"hdf5_lower_case_{int(s.do_lower_case)}_seq_len_{phase.max_seq_length}"
            f"_max_pred_{phase.max_predictions_per_seq}_masked_lm_prob_{s.masked_lm_prob}"
            f"_random_seed_{s.random_seed}_dupe_factor_{s.dupe_factor}"
        )
        return self.output_dir / name / self.corpus

    def outputs(self, shard: Shard) -> tuple[Path, ...]:
        """The shard's file of each phase."""
        return tuple(self.corpus_folder(phase) / f"{self.corpus}_{shard.name}.hdf5" for phase in self.settings.phases)


@dataclass(frozen=True)
class Corpus:
    """All that was tokenised."""

    parts: list[PartSummary]
    sha256: str
    duplicate_share: float  # of sentences that occurred before, estimated

    @property
    def documents(self) -> int:
        return sum(part.documents for part in self.parts)

    @property
    def sentences(self) -> int:
        return sum(part.sentences for part in self.parts)

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)


def tokenize(request: Request, workers: Workers) -> Corpus:
    """Tokenise what is not tokenised yet."""
    folder = request.tokens_folder
    vocabulary = read_vocabulary(request.settings.vocab_file, request.settings.do_lower_case)
    _open_folder(request, vocabulary)
    total = sum(source.size for source in request.sources)
    progress = Progress("tokenising", total, "MB", 1e6)
    parts: dict[int, PartSummary] = {}
    for part in workers.map(tokenize_batch, _new_batches(request, parts, progress)):
        parts[part.number] = part
    progress.update(total)
    progress.close()
    ordered = [parts[number] for number in sorted(parts)]
    _show_notes([note for part in ordered for note in part.notes], folder)
    corpus = describe_corpus(folder, ordered)
    if not corpus.tokens:
        raise BadRequest("--input: no text in it, so there is nothing to make sequences of")
    return corpus


def _new_batches(request: Request, parts: dict[int, PartSummary], progress: Progress) -> Iterator[tuple]:
    """Tasks for the batches that have no part yet; the summaries of the others go to `parts`."""
    folder, settings = request.tokens_folder, request.settings
    for batch in batches(list(request.sources), request.dataset):
        if Part(folder, batch.number).is_done:
            parts[batch.number] = summary(Part(folder, batch.number))
        else:
            yield batch, folder, settings.vocab_file, settings.do_lower_case, request.text
        progress.update(batch.bytes_read)


def describe_corpus(folder: Path, parts: list[PartSummary]) -> Corpus:
    hashes = [Part(folder, part.number).index()["sentence_hashes"] for part in parts]
    sampled = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    duplicate_share = 1 - len(np.unique(sampled)) / len(sampled) if len(sampled) else 0.0
    digest = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    return Corpus(parts, digest, duplicate_share)


def _open_folder(request: Request, vocabulary: Vocabulary) -> None:
    """Keep the parts of an unfinished run of the same request; begin anew when anything differs."""
    folder = request.tokens_folder
    described = {
        "sources": [
            (source.path, source.kind, source.size, Path(source.path).stat().st_mtime_ns) for source in request.sources
        ],
        "dataset": repr(request.dataset),
        "text": repr(request.text),
        "vocabulary": vocabulary.sha256,
        "do_lower_case": vocabulary.do_lower_case,
    }
    text = json.dumps(described, indent=1)
    record = folder / "request.json"
    if record.exists() and record.read_text(encoding="utf-8") != text:
        print(f"{folder}: tokens of another request, made anew")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob("*.tmp"):
        unfinished.unlink()
    if not record.exists():
        record.write_text(text, encoding="utf-8")


def _show_notes(notes: list[str], folder: Path) -> None:
    for note in notes[:SHOWN_NOTES]:
        print(f"note: {note}")
    if len(notes) > SHOWN_NOTES:
        (folder / "notes.txt").write_text("\n".join(notes) + "\n", encoding="utf-8")
        print(f"note: {len(notes) - SHOWN_NOTES} more in {folder / 'notes.txt'}")


def write_hdf5(request: Request, settings: ShardSettings, corpus: Corpus, workers: Workers) -> None:
    """Write the shards that are not there yet, then what belongs to each corpus folder."""
    vocabulary = read_vocabulary(settings.vocab_file, settings.do_lower_case)
    common = _common_attributes(settings, corpus, vocabulary)
    shards = list(
        draw_shards(
            request.tokens_folder, corpus.parts, settings.num_shards, settings.test_fraction, settings.random_seed
        )
    )
    _check_outputs(request, shards, common)
    _check_space(request, settings, corpus)
    for phase in settings.phases:
        _write_vocabulary(request.corpus_folder(phase), vocabulary)
    unfinished = [shard for shard in shards if not _is_done(request, shard)]
    if len(unfinished) < len(shards):
        print(f"{len(shards) - len(unfinished)} of {len(shards)} shards are there already")
    progress = Progress("writing", len(unfinished), "shards")
    tasks = ((shard, request.tokens_folder, request.outputs(shard), settings, common) for shard in unfinished)
    for number, _ in enumerate(workers.map(write_shard, tasks), 1):
        progress.update(number)
    progress.close()
    counts = sum(np.load(counts_file(request.tokens_folder, shard.name)) for shard in shards if shard.split == TRAINING)
    for phase in settings.phases:
        np.save(request.corpus_folder(phase) / "token_counts.npy", counts.astype(np.int64))


def _common_attributes(settings: ShardSettings, corpus: Corpus, vocabulary: Vocabulary) -> dict[str, object]:
    """Attributes that all files of this request share."""
    return {
        "format": FORMAT,
        "random_seed": settings.random_seed,
        "vocab_sha256": vocabulary.sha256,
        "vocab_size": len(vocabulary),
        "do_lower_case": int(settings.do_lower_case),
        "masked_lm_prob": settings.masked_lm_prob,
        "short_seq_prob": settings.short_seq_prob,
        "whole_word_masking": int(settings.whole_word_masking),
        "test_fraction": settings.test_fraction,
        "num_shards": settings.num_shards,
        "corpus_sha256": corpus.sha256,
        "duplicate_sentence_share": corpus.duplicate_share,
    }


def _is_done(request: Request, shard: Shard) -> bool:
    return counts_file(request.tokens_folder, shard.name).exists() and all(
        path.exists() for path in request.outputs(shard)
    )


def _check_outputs(request: Request, shards: list[Shard], common: dict[str, object]) -> None:
    """Refuse a folder with files of another request; drop what a killed run left unfinished."""
    problems = []
    expected = {path for shard in shards for path in request.outputs(shard)}
    for phase in request.settings.phases:
        folder = request.corpus_folder(phase)
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob("*.tmp"):
            unfinished.unlink()
        for path in sorted(folder.glob("*.hdf5")):
            fault = check_finished(path, common) if path in expected else f"{path}: not of this request"
            if fault:
                problems.append(f"{fault}; remove {folder}, or choose another --corpus or --output_dir")
    if problems:
        raise BadRequest(problems)


def _check_space(request: Request, settings: ShardSettings, corpus: Corpus) -> None:
    needed = 0.0
    for phase in settings.phases:
        sequences = corpus.tokens * settings.dupe_factor / (phase.max_seq_length * SEQUENCE_SHARE) + corpus.documents
        there = sum(path.stat().st_size for path in request.corpus_folder(phase).glob("*.hdf5"))
        needed += max(0.0, sequences * phase.max_seq_length * BYTES_PER_POSITION - there)
    free = shutil.disk_usage(request.output_dir).free
    print(f"HDF5 files: about {needed / 1e9:.3g} GB to write, {free / 1e9:.4g} GB free")
    if needed > free:
        raise BadRequest(
            f"--output_dir {request.output_dir}: about {needed / 1e9:.3g} GB needed, {free / 1e9:.3g} GB free"
        )


def _write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """Leave what a tokenizer of Hugging Face needs, so that checkpoints can carry it."""
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary.tokens), encoding="utf-8")
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": vocabulary.do_lower_case,
        "model_max_length": 512,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def remove_tokens(request: Request) -> None:
    """Drop the token store once nothing needs it any more."""
    shutil.rmtree(request.tokens_folder)
