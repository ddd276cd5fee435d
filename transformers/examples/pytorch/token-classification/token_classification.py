"""The task of run_ner.py: a label for every word, such as the names in a sentence (B-PER I-PER O)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from central.finetuning import pretrained
from central.finetuning.arguments import DataArguments
from central.finetuning.features import Features, Ragged
from central.finetuning.tables import Table, listed, parse_json
from central.finetuning.task import Results, Run, Task, has_label_names, label_settings, softmax
from central.runtime.exits import BadRequest

IGNORED = -100  # the target of a token that does not begin a word: torch's cross-entropy passes over it
OUTSIDE = "O"
SAMPLE = 200  # sentences looked at to see whether tokenizer and text belong together
USAGE = """
from transformers import pipeline

find = pipeline("token-classification", model={folder!r}, aggregation_strategy="first")
print(find("The words of a sentence."))  # the entities with their probabilities
"""


@dataclass
class TokenArguments(DataArguments):
    text_column_name: str = field(default="tokens", metadata={"help": "column of the words: a list in every row"})
    label_column_name: str = field(default="ner_tags", metadata={"help": "column of their labels: a list as long"})
    max_seq_length: int = field(default=128, metadata={"help": "words beyond are cut, and predicted as O"})


class TokenClassification(Task):
    """`words` and `tags` are those of each split; `labels` are in the order of the model's outputs."""

    arguments = TokenArguments
    data: TokenArguments
    auto_class = AutoModelForTokenClassification
    pipeline = "token-classification"
    padding = {"labels": IGNORED}

    def __init__(self, run: Run, model_name: str):
        super().__init__(run, model_name)
        self.name = "ner"
        limits = self.data.limits
        self.tables = {
            split: table.head(limits[split.removesuffix("_mismatched")]) for split, table in run.load_tables().items()
        }
        words, tags = self.data.text_column_name, self.data.label_column_name
        self.words = {split: lists(table, words) for split, table in self.tables.items()}
        self.tags = {
            split: lists(table, tags) if tags in table.columns or not split.startswith("test") else None
            for split, table in self.tables.items()
        }
        known = run.labels_of_model(model_name)
        trained = {tag for row in self.tags.get("train") or () for tag in row}
        self.labels = (
            known if not trained or (has_label_names(known) and trained <= {*known}) else tuple(sorted(trained))
        )
        for split, rows in self.tags.items():
            if rows is not None:
                refuse_other_tags(self.tables[split], self.words[split], rows, self.labels)
        run.say(f"words from {words!r}; labels from {tags!r} ({', '.join(self.labels)})")

    @property
    def score_names(self) -> tuple[str, ...]:
        return ("precision", "recall", "f1", "accuracy")

    def config(self) -> dict[str, Any]:
        return label_settings(self.labels)

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().prepare(tokenizer)
        tokenizer.padding_side = "right"  # words are counted from the first token
        try:
            tokenizer([["word"]], is_split_into_words=True)
        except (AssertionError, ValueError):
            raise BadRequest(
                'the tokenizer takes no words one by one: set "add_prefix_space": true in its tokenizer_config.json'
            ) from None

    def features(self, split: str, tokenizer: PreTrainedTokenizerBase) -> Features:
        """Tokens of the words; the first token of each has its label. Extras: the word of each token, or -1."""
        table, words, tags, length = self.tables[split], self.words[split], self.tags[split], self.data.max_seq_length
        sample = [" ".join(row) for row in words[:SAMPLE]]
        pretrained.check_text(tokenizer, sample, table.where, self.data.max_unknown_share, self.run.say)

        def make() -> Features:
            encoded = tokenizer(
                words, is_split_into_words=True, truncation=True, max_length=length, return_attention_mask=False
            )
            firsts = [_first_tokens(encoded.word_ids(row)) for row in range(len(words))]
            return Features({name: Ragged.of(rows) for name, rows in encoded.items()}, {"word": Ragged.of(firsts)})

        columns = [self.data.text_column_name]
        features = self.run.tokenised(table, tokenizer, make, columns=columns, max_length=length, kind=self.name)
        without = [table.where(row) for row in range(len(words)) if features.extras["word"][row].max(initial=-1) < 0]
        if without:
            raise BadRequest(f"sentences without a single token: {listed(without)}")
        cut = sum(features.extras["word"][row].max(initial=-1) + 1 < len(each) for row, each in enumerate(words))
        if cut:
            self.run.say(f"{table.source}: {cut} of {len(words)} sentences are cut to {length} tokens")
        if tags is not None:
            numbers = {label: i for i, label in enumerate(self.labels)}
            features.inputs["labels"] = Ragged.of(
                [
                    [IGNORED if word < 0 else numbers[row[word]] for word in features.extras["word"][i]]
                    for i, row in enumerate(tags)
                ]
            )
        return features

    @staticmethod
    def weight(part: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return (part["labels"] != IGNORED).sum()

    def results(self, split: str, features: Features, outputs: np.ndarray, targets: Any) -> Results:
        """Scores where the labels are known; of a test split the labels of each sentence, and their probabilities."""
        found = [self._of_words(features, outputs, row, len(words)) for row, words in enumerate(self.words[split])]
        said, tags = [[OUTSIDE if i < 0 else self.labels[i] for i, _ in row] for row in found], self.tags[split]
        scores = {} if tags is None else entity_scores(tags, said)
        if not split.startswith("test"):
            return Results(scores)
        rows = [
            {"index": i, "tokens": words, "labels": labels, "probabilities": [share for _, share in row]}
            for i, (words, labels, row) in enumerate(zip(self.words[split], said, found))
        ]
        lines = [" ".join(labels) for labels in said]
        return Results(scores, {"predictions.txt": lines, "predictions.jsonl": rows})

    def _of_words(self, features: Features, logits: np.ndarray, row: int, count: int) -> list[tuple[int, float]]:
        """(number of the label, its probability) of each word of a row; (-1, 0) for one that was cut."""
        answers = [(-1, 0.0)] * count
        for token, word in enumerate(features.extras["word"][row]):
            if word >= 0:
                shares = softmax(logits[row, token])
                answers[word] = (int(shares.argmax()), float(shares.max()))
        return answers

    def warning(self, scores: Mapping[str, float]) -> str | None:
        if scores["eval_f1"] > 0:
            return None
        return (
            "no entity was found right: the model has learned nothing yet. Likely causes: too few steps, a "
            "--learning_rate too high (try 5e-5) or too low, or a model that is not pretrained"
        )

    def usage(self, folder: str) -> str:
        return USAGE.format(folder=folder)


def lists(table: Table, column: str) -> list[list[str]]:
    """A column of lists, or of their JSON text, as text. Raises BadRequest with the rows that hold none."""
    if column not in table.columns:
        raise BadRequest(
            f"{table.source}: no column {column!r} among {', '.join(table.columns)}: --text_column_name, "
            "--label_column_name"
        )
    rows, bad = [], []
    for number, value in enumerate(table.columns[column]):
        try:
            value = parse_json(value) if isinstance(value, str) else value
        except ValueError:
            value = None
        if not isinstance(value, list | tuple) or not all(isinstance(each, str | int) for each in value) or not value:
            bad.append(table.where(number))
            continue
        rows.append([str(each) for each in value])
    if bad:
        raise BadRequest(f"column {column!r}: needs a list of words or labels in every row: {listed(bad)}")
    return rows


def refuse_other_tags(
    table: Table, words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], labels: Sequence[str]
) -> None:
    """Raise BadRequest for rows with other labels, or with another number of labels than of words."""
    longer = [table.where(i) for i, (row, each) in enumerate(zip(words, tags)) if len(row) != len(each)]
    other = [f"{table.where(i)}: {tag!r}" for i, row in enumerate(tags) for tag in row if tag not in {*labels}]
    problems = [f"as many labels as words are needed: {listed(longer)}"] if longer else []
    problems += [f"label is not one of {', '.join(labels)}: {listed(other)}"] if other else []
    if problems:
        raise BadRequest(problems)


def _first_tokens(word_ids: Sequence[int | None]) -> list[int]:
    """The word that each token begins, -1 for one that begins none."""
    before = [None, *word_ids]
    return [-1 if word is None or word == last else word for word, last in zip(word_ids, before)]


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(type, first word, word after the last) of each entity, as the CoNLL evaluation reads IOB tags.

    An entity begins at B-, or at an I- of another type than the tag before; a tag without - is a type of its own.
    """
    begin, kind = 0, ""
    for i, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, name = tag.rpartition("-")
        here = "" if tag == OUTSIDE else name
        if kind and (here != kind or prefix == "B"):
            yield kind, begin, i
        if here and (here != kind or prefix == "B"):
            begin = i
        kind = here


def entity_scores(tags: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities, accuracy of words, and that of the commonest label."""
    true, found = ({(i, *entity) for i, row in enumerate(rows) for entity in entities(row)} for rows in (tags, said))
    right = len(true & found)
    labels, answers = (np.array([tag for row in rows for tag in row]) for rows in (tags, said))
    return {
        "precision": right / len(found) if found else 0.0,
        "recall": right / len(true) if true else 0.0,
        "f1": 2 * right / (len(true) + len(found)) if right else 0.0,
        "accuracy": float((labels == answers).mean()),
        "majority_class": float(np.unique(labels, return_counts=True)[1].max() / len(labels)),
    }
