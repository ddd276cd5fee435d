"""What is learned: the losses of an objective, what they are divided by, and what is told of them.

Loop, metrics, evaluation, data and reports know an objective by this interface alone. One more that is made of losses
there are is a line in OBJECTIVES; a new loss is a `Loss` here and its head in `modeling.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pretraining.batches import Rows

COLUMNS = ("input_ids", "input_mask", "segment_ids")  # of a shard, which every objective reads


@dataclass(frozen=True)
class Panel:
    """One of the pictures over steps: a number of the reports or evaluations, and its baseline."""

    label: str
    number: str
    baseline: str = ""
    baseline_label: str = ""


@dataclass(frozen=True)
class Loss:
    """A loss whose head the model has by the same name; a batch gives its sum and how many answers were right."""

    name: str
    columns: tuple[str, ...]  # of a shard that it needs beside COLUMNS
    count: Callable[[Rows], int]  # what the sum is divided by: the number of answers
    baseline: Callable[[Rows, np.ndarray], float]  # of held-out rows, by counts of training ids
    baseline_name: str  # in an evaluation
    summary: str  # of an evaluation, on the terminal
    panel: Panel
    final: tuple[str, ...] = ()  # numbers of the last evaluation that the line of the whole run has


@dataclass(frozen=True)
class Objective:
    """One or more losses, each divided by its own count over the global batch, added up."""

    losses: tuple[Loss, ...]
    architecture: str  # Hugging Face's class for a model with these heads

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(loss.name for loss in self.losses)

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row must have."""
        return (*COLUMNS, *(column for loss in self.losses for column in loss.columns))

    @property
    def panels(self) -> tuple[Panel, ...]:
        names = " + ".join(loss.name.upper() for loss in self.losses)
        return (Panel(f"loss ({names})", "average_loss"), *(loss.panel for loss in self.losses))

    @property
    def evaluated(self) -> str:
        """A number that every evaluation has, and nothing else."""
        return f"eval_{self.losses[0].name}_loss"

    def counts(self, rows: Rows) -> tuple[int, ...]:
        """What the sums of these rows are divided by, a number a loss."""
        return tuple(loss.count(rows) for loss in self.losses)

    def means(self, sums: Sequence[float], counts: Sequence[float]) -> dict[str, float]:
        """Losses and accuracies by name, of the model's sums: the losses, then the right answers of each."""
        names, divisors = self.heads, [max(count, 1) for count in counts]
        losses, right = sums[: len(names)], sums[len(names) :]
        found = {f"{name}_loss": total / count for name, total, count in zip(names, losses, divisors)}
        return found | {f"{name}_accuracy": total / count for name, total, count in zip(names, right, divisors)}

    def baselines(self, rows: Rows, token_counts: np.ndarray) -> dict[str, float]:
        return {loss.baseline_name: loss.baseline(rows, token_counts) for loss in self.losses}

    def summary(self, numbers: dict[str, float]) -> str:
        """An evaluation in words."""
        return ", ".join(loss.summary.format(**numbers) for loss in self.losses)

    def final(self, numbers: dict[str, float]) -> dict[str, float]:
        names = [name for loss in self.losses for name in loss.final]
        return {name: numbers[name] for name in numbers if name in names}


def unigram_loss(rows: Rows, counts: np.ndarray) -> float:
    """Mean cross-entropy of the masked ids under add-one counts of the training ids."""
    masked = rows.masked_ids[rows.masked_positions != 0]
    probabilities = (counts[masked] + 1) / (counts.sum() + len(counts))
    return float(-np.log(probabilities).mean()) if len(masked) else 0.0


def nsp_majority(rows: Rows, counts: np.ndarray | None = None) -> float:
    """Next-sentence accuracy of giving every sequence the commoner label."""
    labels = rows.next_sentence_labels[rows.next_sentence_weights != 0]
    random_share = float(np.mean(labels)) if len(labels) else 0.0
    return max(random_share, 1 - random_share)


MLM = Loss(
    "mlm",
    ("masked_lm_positions", "masked_lm_ids"),
    lambda rows: rows.num_masked,
    unigram_loss,
    "eval_unigram_loss",
    "MLM loss {eval_mlm_loss:.4f} (unigram {eval_unigram_loss:.4f}), MLM accuracy {eval_mlm_accuracy:.3f}",
    Panel("held-out MLM loss", "eval_mlm_loss", "eval_unigram_loss", "unigram baseline"),
)
NSP = Loss(
    "nsp",
    ("next_sentence_labels",),
    lambda rows: rows.num_sequences,
    nsp_majority,
    "eval_nsp_majority",
    "NSP accuracy {eval_nsp_accuracy:.3f} (majority {eval_nsp_majority:.3f})",
    Panel("held-out NSP accuracy", "eval_nsp_accuracy", "eval_nsp_majority", "majority"),
    ("eval_nsp_accuracy", "eval_nsp_majority"),
)

OBJECTIVES = {"mlm_nsp": Objective((MLM, NSP), "BertForPreTraining")}
