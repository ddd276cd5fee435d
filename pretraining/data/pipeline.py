"""The whole run: text to stored tokens, tokens to the HDF5 files of all phases. Each half goes on where it stopped."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from central.files import parse_json, write_synced
from central.runtime.exits import BadRequest
from pretraining.data import report
from pretraining.data.documents import TextSettings
from pretraining.data.files import (
    RECORD,
    changed_fields,
    check_space,
    own_folder,
    remove_unfinished,
)
from pretraining.data.formats import BOOK, TAR, TEXT, ZIP
from pretraining.data.progress import BYTES, Progress
from pretraining.data.report import Histogram, TextNumbers, refusals, usage_of
from pretraining.data.shards import (
    FORMAT,
    TEST,
    TRAINING,
    Phase,
    Shard,
    ShardSettings,
    array_bytes,
    check_finished,
    choose_num_shards,
    counts_file,
    draw_shards,
    shard_attributes,
    write_shard,
)
from pretraining.data.sources import HubDataset, Source, batches, describe_sources, show_notes, text_bytes
from pretraining.data.tokens import Part, PartSummary, summary, tokenize_batch
from pretraining.data.wordpiece import Usage, Vocabulary, VocabularyFile
from pretraining.data.workers import Workers
from pretraining.vocabulary import vocabulary_text

COMPLETE = "complete.json"  # in a token store: all parts are there
TOKENS_VERSION = 5  # of the token store: goes up when the same request gives other tokens
SPECIAL_TOKENS_PER_SEQUENCE = 3  # [CLS] and two [SEP]
BYTES_PER_POSITION = 2.0  # of an HDF5 file, for each of sequences x max_seq_length; measured 1.8 to 1.97
TOKEN_BYTES = 0.6  # of the token store, for each byte of English text; two bytes an id
SEQUENCE_SHARE = 0.7  # of its length that a sequence uses up: a random second half gives its sentences back


@dataclass(frozen=True)
class Request:
    """One run: what is read, how it is cut and masked, where it goes. `settings.num_shards` 0 means by size."""

    sources: tuple[Source, ...]
    dataset: HubDataset | None
    text: TextSettings
    settings: ShardSettings
    output_dir: Path
    corpus: str
    keep_tokens: bool = False
    allow: tuple[str, ...] = ()  # names of report.REFUSED

    @property
    def tokens_folder(self) -> Path:
        return self.output_dir / f"tokens_{self.corpus}"

    @property
    def vocabulary(self) -> Vocabulary:
        return self.settings.vocabulary_file.read()

    def corpus_folder(self, phase: Phase) -> Path:
        """Where the files of a phase go: the reference's names."""
        s = self.settings
        name = (
            f"hdf5_lower_case_{int(s.vocabulary_file.do_lower_case)}_seq_len_{phase.max_seq_length}"
            f"_max_pred_{phase.max_predictions_per_seq}_masked_lm_prob_{s.masked_lm_prob}"
            f"_random_seed_{s.random_seed}_dupe_factor_{s.dupe_factor}"
        )
        return self.output_dir / name / self.corpus

    @property
    def corpus_folders(self) -> list[Path]:
        return [self.corpus_folder(phase) for phase in self.settings.phases]

    def outputs(self, shard: Shard) -> tuple[Path, ...]:
        """The shard's file of each phase."""
        return tuple(folder / f"{self.corpus}_{shard.name}.hdf5" for folder in self.corpus_folders)


@dataclass(frozen=True)
class Corpus:
    """All that was tokenised."""

    parts: list[PartSummary]
    sha256: str
    text: TextNumbers

    @property
    def documents(self) -> int:
        return self.text.documents

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)


class TokensGone(BadRequest):
    """The tokens were removed after an earlier run, and a shard needs them."""


def prepare(request: Request, workers: Workers) -> None:
    """The whole run."""
    corpus = tokenize(request, workers)
    try:
        write_hdf5(request, corpus, workers)
    except TokensGone:
        write_hdf5(request, tokenize(request, workers, need_tokens=True), workers)


def stored_corpus(request: Request) -> Corpus:
    """What the step `shard` left."""
    folder = request.tokens_folder
    record = _record(folder)
    parts = _stored_parts(folder) if record.get("version") == TOKENS_VERSION else None
    if parts is None:
        raise BadRequest(f"{folder}: no finished tokens of this version in it; run `prepare.py shard` first")
    if record.get("vocabulary") != request.vocabulary.sha256:
        raise BadRequest(
            f"--vocab_file {request.settings.vocabulary_file.path}: the tokens in {folder} are of another vocabulary"
        )
    return _describe(request, parts)


def _record(folder: Path) -> dict[str, Any]:
    """The request that a token store was made for; empty where it cannot be read."""
    try:
        record = parse_json((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def tokenize(request: Request, workers: Workers, need_tokens: bool = False) -> Corpus:
    """Tokenise what is not tokenised yet; of a finished run the numbers are enough, unless tokens are needed."""
    folder = request.tokens_folder
    own_folder(folder, _description(request), may_empty=True)
    parts = None if need_tokens else _stored_parts(folder)
    if parts is None:
        check_space(folder, "tokens", _tokens_size(request))
        parts = _tokenize(request, workers)
        write_synced(folder / COMPLETE, json.dumps({"parts": len(parts)}).encode())
    show_notes([note for part in parts for note in part.notes], folder)
    corpus = _describe(request, parts)
    if not corpus.tokens:
        raise BadRequest("--input: no text in it, so there is nothing to make sequences of")
    print(
        f"{corpus.documents} documents, {corpus.text.sentences} sentences, {corpus.tokens} tokens;"
        f" {corpus.text.duplicate_share:.1%} of the sentences occurred before"
    )
    return corpus


def _tokenize(request: Request, workers: Workers) -> list[PartSummary]:
    total = sum(source.size for source in request.sources)
    progress = Progress("tokenising", total, BYTES)
    parts: dict[int, PartSummary] = {}

    def new_batches() -> Iterator[tuple]:
        for batch in batches(list(request.sources), request.dataset):
            part = Part(request.tokens_folder, batch.number)
            if part.is_done:
                parts[batch.number] = summary(part)
            else:
                yield batch, part.folder, request.settings.vocabulary_file, request.text
            progress.update(batch.bytes_read)

    for part in workers.map(tokenize_batch, new_batches()):
        parts[part.number] = part
    progress.close()
    return [parts[number] for number in sorted(parts)]


def _stored_parts(folder: Path) -> list[PartSummary] | None:
    """The parts of a finished run; None where it did not finish, or something of it was cut."""
    try:
        record: Any = parse_json((folder / COMPLETE).read_text(encoding="utf-8"))
        count = int(record["parts"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    if not 0 < count <= len(list(folder.glob("part_*.npz"))):
        return None
    parts = [Part(folder, number) for number in range(count)]
    return [summary(part) for part in parts] if all(part.whole_index() for part in parts) else None


def _describe(request: Request, parts: list[PartSummary]) -> Corpus:
    """What is in all parts; each index is in memory by itself."""
    documents, sentences, usage, hashes = [], [], Usage.none(), [np.empty(0, np.uint64)]
    for part in parts:
        index = Part(request.tokens_folder, part.number).index()
        documents.append(Histogram.of(index["document_sentences"]))
        sentences.append(Histogram(index["sentence_values"], index["sentence_counts"]))
        usage += usage_of(index)
        hashes.append(index["sentence_hashes"])
    sampled = np.concatenate(hashes)
    duplicate_share = 1 - len(np.unique(sampled)) / len(sampled) if len(sampled) else 0.0
    digest = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    text = TextNumbers(
        Histogram.total(documents),
        Histogram.total(sentences),
        usage,
        duplicate_share,
        sum(part.left_out for part in parts),
        request.vocabulary.strips_accents,
        any(kind in (TEXT, BOOK, TAR, ZIP) for _, kind, *_ in _record(request.tokens_folder)["sources"]),
    )
    return Corpus(parts, digest, text)


def _description(request: Request) -> dict[str, object]:
    """What the tokens depend on, by names that stay: a request with the same description goes on where it stopped."""
    vocabulary = request.vocabulary
    return {
        "sources": describe_sources(request.sources),
        "version": TOKENS_VERSION,
        "dataset": changed_fields(request.dataset),
        "text": changed_fields(request.text),
        "vocabulary": vocabulary.sha256,
        "do_lower_case": vocabulary.do_lower_case,
        "strip_accents": vocabulary.strips_accents,
    }


def write_hdf5(request: Request, corpus: Corpus, workers: Workers) -> None:
    """Write the shards that are not there yet, then what belongs to each corpus folder."""
    folder, asked = request.tokens_folder, request.settings.num_shards
    longest = max(phase.max_seq_length for phase in request.settings.phases)
    if corpus.tokens < longest - SPECIAL_TOKENS_PER_SEQUENCE:
        raise BadRequest(
            f"--input: {corpus.tokens} tokens in all, too few for one sequence of {longest}: give more text, "
            "or a shorter --max_seq_length"
        )
    refused = refusals(corpus.text, longest - SPECIAL_TOKENS_PER_SEQUENCE, request.allow)
    if refused:
        raise BadRequest(refused)
    num_shards = choose_num_shards(asked, corpus.documents, corpus.tokens)
    if asked > num_shards:
        print(f"--num_shards {asked}: {num_shards} made, so that each has two documents")
    settings = replace(request.settings, num_shards=num_shards)
    common = _common_attributes(request, settings, corpus)
    shards = list(draw_shards(folder, corpus.parts, num_shards, settings.test_fraction, settings.random_seed))
    _check_outputs(request, shards, common)
    unfinished = [shard for shard in shards if not _is_done(request, shard)]
    if len(unfinished) < len(shards):
        print(f"{len(shards) - len(unfinished)} of {len(shards)} shards are there already")
    if unfinished:
        if not all(Part(folder, part.number).is_done for part in corpus.parts):
            raise TokensGone(f"{folder}: the tokens were removed after the last run; run `prepare.py shard` again")
        check_space(request.output_dir, "HDF5 files", _hdf5_size(request, corpus))
    progress = Progress("writing", len(unfinished), "shards")
    tasks = ((shard, folder, request.outputs(shard), settings, common) for shard in unfinished)
    for number, _ in enumerate(workers.map(write_shard, tasks), 1):
        progress.update(number)
    progress.close()
    counts = sum(np.load(counts_file(folder, shard.name)) for shard in shards if shard.split == TRAINING)
    made = _report(request, corpus, shards)
    for corpus_folder in request.corpus_folders:
        write_synced(corpus_folder / report.FILE, report.write(made))
        _write_vocabulary(corpus_folder, request.settings.vocabulary_file)
        write_synced(corpus_folder / "token_counts.npy", array_bytes(counts.astype(np.int64)))
        print(corpus_folder)
    print("\n".join(report.lines(made)))
    for warning in report.warnings(made):
        print(f"warning: {warning}")
    if not request.keep_tokens:
        for part in corpus.parts:
            Part(folder, part.number).remove_tokens()


def _report(request: Request, corpus: Corpus, shards: list[Shard]) -> dict:
    """The report of the corpus, with the numbers of every phase from what its files say of themselves."""
    phases = {}
    for phase, folder in zip(request.settings.phases, request.corpus_folders, strict=True):
        phases[str(phase.max_seq_length)] = {
            split: report.phase_report(
                [
                    shard_attributes(folder / f"{request.corpus}_{shard.name}.hdf5", report.SHARD_ATTRIBUTES)
                    for shard in shards
                    if shard.split == split
                ]
            )
            for split in (TRAINING, TEST)
        }
    held_out = [shard.tokens for shard in shards if shard.split == TEST]  # of each document
    never_trained_on = report.held_out_report(
        sum(map(len, held_out)),
        sum(int(tokens.sum()) for tokens in held_out),
        corpus.tokens,
        request.settings.test_fraction,
    )
    return report.text_report(corpus.text) | {"held_out": never_trained_on, "phases": phases}


def _common_attributes(request: Request, settings: ShardSettings, corpus: Corpus) -> dict[str, object]:
    """Attributes that all files of a request share."""
    return {
        "format": FORMAT,
        "random_seed": settings.random_seed,
        "vocab_sha256": request.vocabulary.sha256,
        "vocab_size": len(request.vocabulary),
        "do_lower_case": int(request.vocabulary.do_lower_case),
        "strip_accents": int(request.vocabulary.strips_accents),
        "masked_lm_prob": settings.masked_lm_prob,
        "short_seq_prob": settings.short_seq_prob,
        "whole_word_masking": int(settings.whole_word_masking),
        "test_fraction": settings.test_fraction,
        "num_shards": settings.num_shards,
        "corpus_sha256": corpus.sha256,
        "duplicate_sentence_share": corpus.text.duplicate_share,
    }


def _is_done(request: Request, shard: Shard) -> bool:
    counts = counts_file(request.tokens_folder, shard.name)
    return counts.exists() and all(path.exists() for path in request.outputs(shard))


def _check_outputs(request: Request, shards: list[Shard], common: dict[str, object]) -> None:
    """Refuse a folder with files of another request; drop what a killed run was writing."""
    problems = []
    expected = {path for shard in shards for path in request.outputs(shard)}
    for folder in request.corpus_folders:
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        for path in sorted(folder.glob("*.hdf5")):
            fault = check_finished(path, common) if path in expected else f"{path}: not of this request"
            if fault:
                problems.append(f"{fault}; remove {folder}, or choose another --corpus or --output_dir")
    if problems:
        raise BadRequest(problems)


def _tokens_size(request: Request) -> float:
    """Bytes that the token store will take, from the size of the files."""
    return text_bytes(request.sources) * TOKEN_BYTES * request.vocabulary.id_type(0).itemsize / 2


def _hdf5_size(request: Request, corpus: Corpus) -> float:
    """Bytes that the files of all phases still will take."""
    needed = 0.0
    for phase in request.settings.phases:
        sequences = corpus.tokens * request.settings.dupe_factor / (phase.max_seq_length * SEQUENCE_SHARE)
        there = sum(path.stat().st_size for path in request.corpus_folder(phase).glob("*.hdf5"))
        needed += max(0.0, sequences * phase.max_seq_length * BYTES_PER_POSITION - there)
    return needed


def _write_vocabulary(folder: Path, vocabulary: VocabularyFile) -> None:
    """Leave what a tokenizer of Hugging Face needs, so that checkpoints can carry it: the file as it is."""
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": vocabulary.do_lower_case,
        "model_max_length": 512,
        "tokenize_chinese_chars": True,
        "strip_accents": vocabulary.strip_accents,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    }
    write_synced(folder / "vocab.txt", vocabulary_text(vocabulary.path).encode())
    write_synced(folder / "tokenizer_config.json", (json.dumps(config, indent=2) + "\n").encode())
