"""From logits to answers, and from answers to SQuAD's scores. Pure functions.

The scores follow the published evaluation rules of SQuAD 1.1 and 2.0: lower case, no punctuation, no articles, single
blanks; the best match over all reference answers; for 2.0 the empty answer counts where there is none, and where no
reference has words left.
"""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from qa_examples import Question

from central.finetuning.features import Features

PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Candidate:
    """A stretch of the context as an answer, or none (start == end)."""

    start_logit: float
    end_logit: float
    start: int = 0  # characters of the context
    end: int = 0

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit


@dataclass(frozen=True)
class Answers:
    """By question id: the answer, the best candidates, and how much better no answer scores than the best one."""

    predictions: dict[str, str]
    nbest: dict[str, list[dict]]
    null_odds: dict[str, float]


def answers_of(
    questions: Sequence[Question],
    windows: Features,
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    n_best_size: int = 20,
    max_answer_length: int = 30,
    version_2: bool = False,
    null_threshold: float = 0.0,
) -> Answers:
    """Answers from logits [windows, S]; a question's windows compete. With `version_2` the answer may be none."""
    belonging = defaultdict(list)
    for window, question in enumerate(cast(np.ndarray, windows.extras["question"])):
        belonging[int(question)].append(window)
    found = Answers({}, {}, {})
    for number, question in enumerate(questions):
        candidates, nulls = [], []
        for window in belonging[number]:
            begin, offsets = int(windows.extras["context_start"][window]), windows.extras["offsets"][window]
            stretch = slice(begin, begin + len(offsets))
            starts, ends = start_logits[window, stretch], end_logits[window, stretch]
            candidates += best_spans(starts, ends, offsets, n_best_size, max_answer_length)
            silent = int(windows.extras["no_answer"][window])
            nulls.append(Candidate(float(start_logits[window, silent]), float(end_logits[window, silent])))
        best = sorted(candidates, key=lambda candidate: -candidate.score)[:n_best_size]
        text = question.context[best[0].start : best[0].end] if best else ""
        if version_2:
            null = min(nulls, key=lambda candidate: candidate.score)
            odds = null.score - best[0].score if best else float("inf")
            found.null_odds[question.id] = odds
            text = "" if odds > null_threshold else text
            best = sorted([*best, null], key=lambda candidate: -candidate.score)[:n_best_size]
        found.predictions[question.id] = text
        found.nbest[question.id] = _with_probabilities(best, question.context)
    return found


def best_spans(
    starts: np.ndarray, ends: np.ndarray, offsets: np.ndarray, n_best_size: int, max_answer_length: int
) -> list[Candidate]:
    """The best spans among the `n_best_size` best first and last tokens of one window's context."""
    first = np.argsort(-starts, kind="stable")[:n_best_size]
    last = np.argsort(-ends, kind="stable")[:n_best_size]
    length = last[None, :] - first[:, None] + 1
    i, j = np.nonzero((length >= 1) & (length <= max_answer_length))
    order = np.argsort(-(starts[first[i]] + ends[last[j]]), kind="stable")[:n_best_size]
    return [
        Candidate(float(starts[a]), float(ends[b]), int(offsets[a, 0]), int(offsets[b, 1]))
        for a, b in zip(first[i[order]], last[j[order]])
    ]


def _with_probabilities(candidates: Sequence[Candidate], context: str) -> list[dict]:
    """Candidates as rows of the n-best file; probabilities are a softmax over them."""
    scores = np.array([candidate.score for candidate in candidates] or [0.0])
    weights = np.exp(scores - scores.max())
    return [
        {
            "text": context[candidate.start : candidate.end],
            "probability": float(weight),
            "start_logit": candidate.start_logit,
            "end_logit": candidate.end_logit,
        }
        for candidate, weight in zip(candidates, weights / weights.sum())
    ]


# ---- scores


def normalised(answer: str) -> str:
    """What two answers must share to be the same."""
    text = answer.lower().translate(PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, reference: str) -> float:
    return float(normalised(prediction) == normalised(reference))


def f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words; 0 where one side has none."""
    said, true = normalised(prediction).split(), normalised(reference).split()
    shared = sum((Counter(said) & Counter(true)).values())
    return 2 * shared / (len(said) + len(true)) if shared else 0.0


def best_match(
    score: Callable[[str, str], float], prediction: str, references: Sequence[str], version_2: bool = False
) -> float:
    """The best score over the references; in 2.0 over those with words, and without any silence is the answer."""
    if version_2:
        references = [reference for reference in references if normalised(reference)]
        if not references:
            return float(not normalised(prediction))
    return max((score(prediction, reference) for reference in references), default=0.0)


def squad_scores(questions: Sequence[Question], answers: Answers, version_2: bool = False) -> dict[str, float]:
    """Exact match and F1 in percent. For 2.0 also over questions with and without answer, and at the best threshold."""
    exact, words = (
        np.array([best_match(score, answers.predictions[q.id], q.answers, version_2) for q in questions])
        for score in (exact_match, f1)
    )
    result = {"exact_match": 100 * float(exact.mean()), "f1": 100 * float(words.mean())}
    if not version_2:
        return result
    answerable = np.array([bool(q.answers) for q in questions])
    for name, chosen in (("HasAns", answerable), ("NoAns", ~answerable)):
        if chosen.any():
            result |= {
                f"{name}_exact": 100 * float(exact[chosen].mean()),
                f"{name}_f1": 100 * float(words[chosen].mean()),
            }
    odds = np.array([answers.null_odds[q.id] for q in questions])
    spoken = [_spoken(answers, q) for q in questions]
    for name, score in (("exact", exact_match), ("f1", f1)):
        each = np.array(
            [best_match(score, text, q.answers, version_2) if q.answers else 0.0 for text, q in zip(spoken, questions)]
        )
        best, threshold = best_threshold(each, answerable, odds)
        result |= {f"best_{name}": 100 * best, f"best_{name}_threshold": threshold}
    return result


def _spoken(answers: Answers, question: Question) -> str:
    """The best answer with words, whatever the null threshold made of it."""
    return next((row["text"] for row in answers.nbest[question.id] if row["text"]), "")


def best_threshold(scores: np.ndarray, answerable: np.ndarray, odds: np.ndarray) -> tuple[float, float]:
    """The highest mean score over all null thresholds, and the threshold.

    `scores` are those of the spoken answers; an unanswerable question scores 1 where its odds are above the threshold.
    """
    order = np.argsort(odds, kind="stable")
    # Speaking on the k questions of lowest odds: their scores, and 1 for each unanswerable one left silent.
    gain = np.where(answerable, scores, -1.0)[order]
    totals = np.cumsum(np.concatenate([[(~answerable).sum()], gain]))  # added up in the published order
    best = int(np.argmax(totals))
    return float(totals[best] / len(scores)), float(odds[order[best - 1]]) if best else 0.0
