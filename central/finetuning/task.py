"""What a fine-tuning task brings; everything else is the same for all of them and stands in script.py.

A new task is a subclass of `Task` in a file of its own beside its entry script, which is a few lines.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from central.finetuning import features, output_folder, pretrained
from central.finetuning.arguments import DataArguments, Request
from central.finetuning.features import Features
from central.finetuning.tables import Table, load_splits
from central.runtime.rank import StopRequest


@dataclass(frozen=True)
class Run:
    """One run of a script."""

    request: Request
    stop: StopRequest
    checkpoint: Path | None  # to resume from

    @property
    def output_dir(self) -> Path:
        return Path(str(self.request.training.output_dir))

    @property
    def resumes(self) -> bool:
        """Whether the run goes on in its output folder; a checkpoint that lies elsewhere is only read."""
        wanted = self.request.training.resume_from_checkpoint not in (None, "", "False", "false")
        return wanted and (self.checkpoint is None or output_folder.lies_in(self.checkpoint, self.output_dir))

    def say(self, line: str) -> None:
        """One line for the user, from rank 0."""
        if self.request.training.process_index == 0:
            print(line, flush=True)

    def load_tables(self, **settings: Any) -> dict[str, Table]:
        """The tables of the splits that this run needs; `settings` are those of `load_splits`."""
        data, training = self.request.data, self.request.training
        return load_splits(
            files=data.files,
            dataset_name=data.dataset_name,
            config_name=data.dataset_config_name,
            wanted=[
                *["train"] * training.do_train,
                *["validation", "validation_mismatched"] * training.do_eval,
                *["test", "test_mismatched"] * training.do_predict,
            ],
            cache_dir=self.request.model.cache_dir,
            **settings,
        )

    def labels_of_model(self, name: str) -> tuple[str, ...]:
        """Label names in the order of a model's outputs, LABEL_0 and so on without others; none of a regression."""
        config = pretrained.load_config(self.request.model, name)
        if config.problem_type == "regression" or config.num_labels == 1:
            return ()
        return tuple(str(config.id2label[i]) for i in range(config.num_labels))

    def tokenised(
        self, table: Table, tokenizer: PreTrainedTokenizerBase, make: Callable[[], Features], **settings: Any
    ) -> Features:
        """Features of a table, from the cache where they are there: one rank of a node makes them for all."""
        training = self.request.training
        key = {"data": table.sha256, "rows": len(table), "tokenizer": features.tokenizer_key(tokenizer), **settings}
        path = features.cache_file(self.request.model.cache_dir, **key)
        with training.main_process_first(local=True):
            overwrite = self.request.data.overwrite_cache and training.local_process_index == 0
            return features.cached(path, make, overwrite)


@dataclass(frozen=True)
class Results:
    """What became of a split: its scores, and files by name: lines (.txt), rows (.jsonl) or one object (.json)."""

    scores: dict[str, float] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)


class Task(ABC):
    """A task on the data of one run: made from the run and the model's name, it has read `tables` and has a `name`."""

    arguments: ClassVar[type[DataArguments]] = DataArguments  # the options of its script
    auto_class: ClassVar[Any]  # of transformers: the model with its head
    pipeline: ClassVar[str]  # Hugging Face's name of the kind of task
    padding: ClassVar[Mapping[str, int]] = {}  # of inputs that are padded with another value than 0
    has_pairs: bool = False  # whether an example has two texts

    name: str  # in the model card and in names of files
    tables: dict[str, Table]  # by split

    data: Any  # of the type `arguments`

    def __init__(self, run: Run, model_name: str):
        self.run, self.data = run, run.request.data

    @property
    @abstractmethod
    def score_names(self) -> tuple[str, ...]:
        """The scores of the validation split by which a model can be chosen, beside its loss."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What the head needs in the model's configuration."""

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check the tokenizer, and set how it is used here."""
        for line in features.room_for_text(tokenizer, self.data.max_seq_length, self.has_pairs):
            self.run.say(line)

    @abstractmethod
    def features(self, split: str, tokenizer: PreTrainedTokenizerBase) -> Features:
        """What the model reads of a split, with the targets where they are known."""

    def samples(self, split: str, features: Features) -> int:
        """How many examples a split has, as the metrics say it."""
        return len(features)

    @staticmethod
    def weight(part: Mapping[str, torch.Tensor]) -> int | torch.Tensor:
        """How much a part of a batch counts in the loss of the batch: its mean is over so many targets."""
        return len(part["input_ids"])

    @staticmethod
    def loss(loss: torch.Tensor, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The loss to train on, given the model's own."""
        return loss

    @abstractmethod
    def results(self, split: str, features: Features, outputs: Any, targets: Any) -> Results:
        """Scores and files of a split, given logits and targets in the order of its rows.

        `targets` is None where the features have none.
        """

    def warning(self, scores: Mapping[str, float]) -> str | None:
        """What to say where the scores of the validation split are those of a model that has learned nothing."""
        return None

    @abstractmethod
    def usage(self, folder: str) -> str:
        """Python code for the model card that uses the model saved in `folder`."""


def label_settings(labels: Sequence[str]) -> dict[str, Any]:
    """What the configuration of a model says about labels, in the order of its outputs."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def has_label_names(known: Sequence[str]) -> bool:
    """Whether a model's labels are more than numbered."""
    return not all(re.fullmatch(r"LABEL_\d+", name) for name in known)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
