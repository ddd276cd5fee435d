"""What is known before the first step: every file and folder of a request is looked at, and what is wrong is told."""

import os
from dataclasses import dataclass, replace

import numpy as np

from central.files import json_object, lack_of_room, missing_folders, remove_empty
from central.runtime.device import Device
from central.runtime.exits import BadRequest
from central.runtime.rank import Rank
from pretraining import model_stats
from pretraining.dataset import (
    BatchShape,
    Limits,
    Shard,
    ShardReader,
    average_sequences_per_row,
    find_shards,
    open_shards,
)
from pretraining.evaluation import stored_counts
from pretraining.modeling import BertConfig
from pretraining.objective import OBJECTIVES
from pretraining.resume import ResumePoint
from pretraining.settings import Settings
from pretraining.vocabulary import SPECIAL_TOKENS, Vocabulary, find_vocabulary, fingerprint_of

NAMED_SIZES = os.path.dirname(os.path.abspath(__file__))  # configurations here take their vocabulary size from the data
ARCHITECTURE = (  # what weights do not show by their shapes, and what they show
    "hidden_act",
    "num_attention_heads",
    "layer_norm_eps",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)


@dataclass(frozen=True)
class Checked:
    """What the checks before the first step have found out."""

    config: BertConfig
    vocabulary: Vocabulary | None
    limits: Limits
    reader: ShardReader
    shape: BatchShape
    test_shards: list[Shard]
    token_counts: np.ndarray | None  # of the training documents, for the baselines; where a file tells them
    memory_bytes: int
    notes: tuple[str, ...] = ()  # lines to say

    @property
    def special_ids(self) -> dict[str, int]:
        return self.vocabulary.special_ids() if self.vocabulary else SPECIAL_TOKENS


def check_request(settings: Settings, start: ResumePoint, device: Device, rank: Rank) -> Checked:
    """Look at everything that can be known before the first step; raises BadRequest."""
    vocabulary = find_vocabulary(settings.vocab_file, settings.input_dir)
    config = _config(settings, vocabulary)
    limits = Limits(
        config.vocab_size,
        settings.max_seq_length,
        config.max_position_embeddings,
        settings.max_predictions_per_seq,
        columns=OBJECTIVES[settings.objective].columns,
        masks_drawn=settings.dynamic_masking,
    )
    _check_start(start, config, vocabulary)
    shards = open_shards(settings.input_dir, "training", limits)
    test_folder = settings.eval_dir or settings.input_dir
    wants_test = settings.eval_dir is not None or find_shards(test_folder, "test")
    test_shards = open_shards(test_folder, "test", limits) if wants_test else []
    if not settings.do_train and not test_shards:
        raise BadRequest("nothing to do: give --do_train, or an --eval_dir to evaluate the start point on")
    token_counts = stored_counts(settings.input_dir, limits.vocab_size) if test_shards else None
    _check_vocabulary_of([*shards, *test_shards], vocabulary)
    reader = ShardReader(shards, settings.seed, limits)
    notes = reader.check_first()
    average = average_sequences_per_row(settings.input_dir, shards)
    micro_batches = max(1, round(settings.grad_accum_steps / average))
    shape = BatchShape(rank.rank, rank.world_size, settings.micro_batch_size, micro_batches)
    memory = model_stats.check_memory(
        config,
        device,
        settings.micro_batch_size,
        shards[0].seq_len,
        shards[0].num_predictions,
        rank.local_world_size if device.uses_host_memory else 1,
        reader.kept_bytes,
    )
    if rank.is_main:
        _check_output(settings, config)
    return Checked(config, vocabulary, limits, reader, shape, test_shards, token_counts, memory, tuple(notes))


def _config(settings: Settings, vocabulary: Vocabulary | None) -> BertConfig:
    try:
        config = BertConfig.from_json(settings.config_file)
    except ValueError as error:
        raise BadRequest(str(error)) from error
    if vocabulary is None or len(vocabulary.tokens) == config.vocab_size:
        return config
    if os.path.dirname(os.path.abspath(settings.config_file)) == NAMED_SIZES:
        return replace(config, vocab_size=len(vocabulary.tokens))
    raise BadRequest(
        f"{settings.config_file}: vocab_size {config.vocab_size}, but the vocabulary of the data has "
        f"{len(vocabulary.tokens)} tokens: set vocab_size to that, or give the other --vocab_file"
    )


def _check_start(start: ResumePoint, config: BertConfig, vocabulary: Vocabulary | None) -> None:
    """The folder to start from holds a model like `config`, with the vocabulary of the data."""
    if start.path is None or not start.path.is_dir():
        return
    saved = (start.state or {}).get("vocab_sha256") or fingerprint_of(start.path)
    if saved and vocabulary and saved != vocabulary.sha256:
        raise BadRequest(f"{start.path}: made with another vocabulary than the data: give the data's own checkpoint")
    path = start.path / "config.json"
    if not path.is_file():
        return
    try:
        made_with = json_object(path)
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path}: cannot be read ({error}): copy this folder again") from error
    if made_with.get("model_type", "bert") != "bert":
        raise BadRequest(f"{start.path}: a model of type {made_with['model_type']}, not bert: give a BERT")
    for name in ARCHITECTURE:
        if made_with.get(name, getattr(config, name)) != getattr(config, name):
            raise BadRequest(
                f"{start.path}: {name} is {made_with[name]}, --config_file has {getattr(config, name)}: a model of "
                "another size; give the --config_file it was made with"
            )


def _check_vocabulary_of(shards: list[Shard], vocabulary: Vocabulary | None) -> None:
    if vocabulary is None:
        return
    other = [
        shard.path for shard in shards if shard.attributes.get("vocab_sha256", vocabulary.sha256) != vocabulary.sha256
    ]
    if other:
        raise BadRequest(
            f"{other[0]}: made with another vocabulary ({len(other)} of {len(shards)} shards): leave out --vocab_file "
            "to take the vocab.txt beside them, or make them again with this vocabulary"
        )


def _check_output(settings: Settings, config: BertConfig) -> None:
    """The output folders can be written, and checkpoints fit on the disk. Leaves no folder: a writer makes its own."""
    made = [missing_folders(os.fspath(folder)) for folder in (settings.output_dir, settings.results_dir)]
    try:
        _check_room(settings, config)
    finally:
        for folders in filter(None, made):
            remove_empty(folders)


def _check_room(settings: Settings, config: BertConfig) -> None:
    for folder in (settings.output_dir, settings.results_dir):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe_{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise BadRequest(f"{folder}: cannot be written ({error.strerror}): give another --output_dir") from error
    fault = lack_of_room(settings.output_dir, model_stats.count_parameters(config))
    if fault and not settings.skip_checkpoint:
        raise BadRequest(fault)
