"""The task of run_qa.py: answers to questions about paragraphs, as stretches of these: SQuAD 1.1 and 2.0."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import qa_examples
import qa_postprocess
import torch
from qa_postprocess import Answers
from torch.nn import functional as F
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from central.finetuning import pretrained
from central.finetuning.arguments import DataArguments
from central.finetuning.features import Features
from central.finetuning.tables import HUB_DATASETS, listed
from central.finetuning.task import Results, Run, Task
from central.runtime.exits import BadRequest

NEARLY_NOTHING = 5.0  # F1 in percent: words that any stretch of text shares with an answer
SAMPLE = 200  # questions looked at to see whether tokenizer and text belong together
USAGE = '''
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder!r})
model = AutoModelForQuestionAnswering.from_pretrained({folder!r})

def answer(question, context, longest=30):
    """The best stretch of at most `longest` tokens; the context must fit into the model."""
    encoded = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    characters = encoded.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        found = model(**encoded)
    scores = found.start_logits[0, :, None] + found.end_logits[0, None, :]
    inside = torch.tensor([part == 1 for part in encoded.sequence_ids(0)])
    spans = torch.ones_like(scores, dtype=torch.bool).triu().tril(longest - 1) & inside[:, None] & inside
    first, last = divmod(scores.masked_fill(~spans, float("-inf")).argmax().item(), len(inside))
    return context[characters[first][0] : characters[last][1]]

print(answer("Where is it?", "It is in France."))
'''


@dataclass
class QuestionArguments(DataArguments):
    max_seq_length: int = field(default=384, metadata={"help": "tokens of a window: question and part of the context"})
    doc_stride: int = field(default=128, metadata={"help": "tokens that neighbouring windows share"})
    version_2_with_negative: bool = field(default=False, metadata={"help": "some questions have no answer"})
    null_score_diff_threshold: float = field(default=0.0, metadata={"help": "no answer where it scores this much more"})
    n_best_size: int = field(default=20, metadata={"help": "candidates kept of each window and question"})
    max_answer_length: int = field(default=30, metadata={"help": "tokens of the longest answer"})


class QuestionAnswering(Task):
    """`questions` are those of each split that are used."""

    arguments = QuestionArguments
    data: QuestionArguments
    auto_class = AutoModelForQuestionAnswering
    pipeline = "question-answering"

    def __init__(self, run: Run, model_name: str):
        """Questions one cannot learn from are counted and left out."""
        super().__init__(run, model_name)
        if self.data.dataset_name in HUB_DATASETS:  # SQuAD 2.0 by name means questions without answers
            self.data.version_2_with_negative |= self.data.dataset_name == "squad_v2"
        self.name = "squad_v2" if self.data.version_2_with_negative else "squad"
        self.tables = run.load_tables()
        limits = self.data.limits
        self.questions = {
            split: qa_examples.questions_of(table)[: limits[split.removesuffix("_mismatched")]]
            for split, table in self.tables.items()
        }
        for split, questions in self.questions.items():
            if not split.startswith("test") and not self.data.version_2_with_negative:
                qa_examples.refuse_unanswerable(questions)
        if "train" in self.questions:
            self.questions["train"], lines = qa_examples.usable_for_training(self.questions["train"])
            for line in lines:
                run.say(f"{self.tables['train'].source}: {line}")
        for split, questions in self.questions.items():
            if not questions:
                raise BadRequest(f"{self.tables[split].source}: holds no question that can be used")

    @property
    def score_names(self) -> tuple[str, ...]:
        names = ("exact_match", "f1")
        if not self.data.version_2_with_negative:
            return names
        answerable = {bool(question.answers) for question in self.questions.get("validation", ())}
        parts = [f"{part}_{name}" for part in ("HasAns", "NoAns") for name in ("exact", "f1")]
        there = [name for name in parts if (name[0] == "H") in answerable]
        return (*names, *there, "best_exact", "best_f1")

    def config(self) -> dict[str, Any]:
        return {"num_labels": 2}  # first and last token

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        tokenizer.padding_side = "right"  # answers are counted from the first token

    def features(self, split: str, tokenizer: PreTrainedTokenizerBase) -> Features:
        """Windows over the contexts."""
        questions, data, source = self.questions[split], self.data, self.tables[split].source
        with_answers = not split.startswith("test")
        sample = questions[:SAMPLE]
        for texts in ([question.context for question in sample], [question.text for question in sample]):
            pretrained.check_text(tokenizer, texts, lambda i: sample[i].where, data.max_unknown_share, self.run.say)

        def make() -> Features:
            windows, cut = qa_examples.windows(questions, tokenizer, data.max_seq_length, data.doc_stride, with_answers)
            if cut:
                longest = qa_examples.longest_question(tokenizer, data.max_seq_length)
                self.run.say(f"{source}: {cut} questions cut to {longest} tokens, to leave room for the context")
            return windows

        settings = {"max_length": data.max_seq_length, "doc_stride": data.doc_stride, "with_answers": with_answers}
        used = [question.id for question in questions]
        features = self.run.tokenised(self.tables[split], tokenizer, make, used=used, **settings)
        lost = qa_examples.lost_answers(questions, features) if with_answers else []
        if lost:
            self.run.say(
                f"{source}: {len(lost)} answers in no window, longer than one or without a token: {listed(lost)}"
            )
        return features

    def samples(self, split: str, features: Features) -> int:
        return len(self.questions[split])

    @staticmethod
    def loss(loss: torch.Tensor, outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The model's own depends on the padding of its batch; it is made anew."""
        return span_loss(outputs, inputs)

    def results(self, split: str, features: Features, outputs: tuple[np.ndarray, np.ndarray], targets: Any) -> Results:
        """Exact match and F1 where answers are known; files of answers, of the n best, and of null odds."""
        questions, version_2 = self.questions[split], self.data.version_2_with_negative
        answers = qa_postprocess.answers_of(
            questions,
            features,
            *outputs,
            n_best_size=self.data.n_best_size,
            max_answer_length=self.data.max_answer_length,
            version_2=version_2,
            null_threshold=self.data.null_score_diff_threshold,
        )
        is_test = split.startswith("test")
        has_answers = not is_test or any(question.answers for question in questions)
        scores = qa_postprocess.squad_scores(questions, answers, version_2) if has_answers else {}
        return Results(scores, _files(answers, "predict_" if is_test else ""))

    def warning(self, scores: Mapping[str, float]) -> str | None:
        answered = "eval_HasAns_f1" if "eval_HasAns_f1" in scores else "eval_f1"  # silence alone scores half of 2.0
        if scores[answered] >= NEARLY_NOTHING:
            return None
        return (
            f"{answered} {scores[answered]:.2f} is nearly that of no answers at all: the model has learned "
            "nothing yet. Likely causes: too few steps, a --learning_rate too high (try 3e-5) or too low, a model "
            "that is not pretrained, or answers that do not belong to the questions"
        )

    def usage(self, folder: str) -> str:
        return USAGE.format(folder=folder)


def _files(answers: Answers, prefix: str) -> dict[str, Any]:
    files = {f"{prefix}predictions.json": answers.predictions, f"{prefix}nbest_predictions.json": answers.nbest}
    return files | ({f"{prefix}null_odds.json": answers.null_odds} if answers.null_odds else {})


def span_loss(outputs: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of first and last tokens over the tokens of each example, question and special ones included.

    Hugging Face's models take padding for possible answers too, so that their loss grows with every position padded.
    """
    padding = inputs["attention_mask"] == 0  # [B, S]

    def loss(logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:  # [B, S], [B]
        return F.cross_entropy(logits.masked_fill(padding, torch.finfo(logits.dtype).min), positions)

    starts = loss(outputs["start_logits"], inputs["start_positions"])
    return (starts + loss(outputs["end_logits"], inputs["end_positions"])) / 2
