"""Questions about paragraphs: read from SQuAD's nested JSON or flat rows, checked, and cut into windows of tokens."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from central.finetuning.features import Features, Ragged, shortened
from central.finetuning.tables import Table, listed, parse_json
from central.runtime.exits import BadRequest

CHUNK = 1000  # questions tokenised at a time
SHORTEST_QUESTION = 16  # tokens that a question may always have


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    context: str
    answers: tuple[str, ...]  # none where the paragraph does not answer it
    starts: tuple[int, ...]  # first character of each answer in the context
    where: str  # place in the file, for messages


def questions_of(table: Table) -> list[Question]:
    """All questions of a table. Raises BadRequest for a table of another form, and for ids that occur twice."""
    if "paragraphs" in table.columns:
        questions = _nested(table)
    elif {"question", "context"} <= set(table.columns):
        questions = [_question(row, table.where(i)) for i, row in enumerate(_rows(table))]
    else:
        raise BadRequest(
            f"{table.source}: needs SQuAD's nested form (data, paragraphs, qas), or columns question, context and "
            f"answers; has {', '.join(table.columns)}"
        )
    counts = Counter(question.id for question in questions)
    twice = [f"{question.id} at {question.where}" for question in questions if counts[question.id] > 1]
    if twice:
        raise BadRequest(f"{table.source}: ids that occur more than once: {listed(twice)}")
    return questions


def _rows(table: Table) -> list[dict]:
    return [dict(zip(table.columns, values)) for values in zip(*table.columns.values())]


def _nested(table: Table) -> list[Question]:
    questions = []
    for title, paragraphs in zip(table.columns.get("title", [""] * len(table)), table.columns["paragraphs"]):
        where = f"{table.source}, article {title!r}"
        try:
            for number, paragraph in enumerate(paragraphs, 1):
                where = f"{table.source}, article {title!r}, paragraph {number}"
                for count, row in enumerate(paragraph["qas"], 1):
                    questions.append(_question({"context": paragraph["context"], **row}, f"{where}, question {count}"))
        except (KeyError, TypeError) as error:
            raise BadRequest(f"{where}: not in SQuAD's form ({error!r})") from None
    return questions


def _question(row: dict, where: str) -> Question:
    """One question from a row with `answers` as SQuAD, the Hub or a JSON text in a CSV have them."""
    try:
        context, text = row["context"], row["question"]
        answers = [] if _truth(row.get("is_impossible")) else _answers(row.get("answers") or [])
    except (KeyError, TypeError, ValueError) as error:
        raise BadRequest(f"{where}: not in SQuAD's form ({error!r})") from None
    if not all(isinstance(each, str) for each in (context, text, *(answer for answer, _ in answers))):
        raise BadRequest(f"{where}: question, context and answers must be text")
    answers = [_without_blanks(*answer) for answer in answers if answer[0].strip()]  # SQuAD 2.0 by some: "" is none
    return Question(
        id=where if row.get("id") in (None, "") else str(row["id"]),
        text=text.lstrip(),  # some begin with a dozen spaces, which are tokens to some tokenizers
        context=context,
        answers=tuple(answer for answer, _ in answers),
        starts=tuple(start for _, start in answers),
        where=where,
    )


def _truth(value: object) -> bool:
    """A yes or no as JSON has it, or as text in a table; none is no. Raises ValueError for anything else."""
    text = str(value).strip().lower()
    if text in ("true", "1"):
        return True
    if text in ("false", "0", "none", "nan", ""):
        return False
    raise ValueError(f"is_impossible is {value!r}, neither true nor false")


def _answers(answers: str | dict | list) -> list[tuple[str, int]]:
    """Text and first character of each answer."""
    found = parse_json(answers) if isinstance(answers, str) else answers
    if isinstance(found, dict):
        return [(text, _place(start)) for text, start in zip(found["text"], found["answer_start"], strict=True)]
    return [(answer["text"], _place(answer["answer_start"])) for answer in found]


def _place(start: int | float | str) -> int:
    """The number of a character. Raises ValueError for anything else: 1e999, 3.5, true."""
    if isinstance(start, bool) or (isinstance(start, float) and not start.is_integer()):
        raise ValueError(f"answer_start is {start}")
    return int(start)


def _without_blanks(answer: str, start: int) -> tuple[str, int]:
    """An answer without blanks at its edges, which no token begins or ends with."""
    return answer.strip(), start + len(answer) - len(answer.lstrip())


def usable_for_training(questions: Sequence[Question]) -> tuple[list[Question], list[str]]:
    """The questions one can learn from, and lines on those left out, which BERT's own script leaves out too."""
    empty = [q for q in questions if not q.text.strip() or not q.context.strip()]
    skipped = {q.id for q in empty}
    wrong = [q for q in questions if q.id not in skipped and q.answers and not _answer_is_there(q)]
    lines = []
    if empty:
        lines.append(f"{len(empty)} questions skipped, empty question or context: {listed(_names(empty))}")
    if wrong:
        lines.append(f"{len(wrong)} questions skipped, answer not at its answer_start: {listed(_names(wrong))}")
    skipped |= {q.id for q in wrong}
    return [q for q in questions if q.id not in skipped], lines


def _names(questions: Sequence[Question]) -> list[str]:
    return [f"{q.id} at {q.where}" for q in questions]


def _answer_is_there(question: Question) -> bool:
    answer, start = question.answers[0], question.starts[0]
    return start >= 0 and bool(answer) and question.context[start : start + len(answer)] == answer


def refuse_unanswerable(questions: Sequence[Question]) -> None:
    """SQuAD 1.1 has an answer to every question."""
    without = [q for q in questions if not q.answers]
    if without:
        raise BadRequest(
            f"{len(without)} questions have no answer ({listed(_names(without))}): add --version_2_with_negative"
        )


def windows(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    doc_stride: int,
    with_answers: bool,
) -> tuple[Features, int]:
    """Windows of `max_seq_length` tokens over each context, neighbours sharing `doc_stride`; and questions cut short.

    A question has at most `longest_question` tokens, and neighbours share at most half of what it leaves to the
    context, so that the windows of a context stay few. Inputs: token ids and, `with_answers`, the first and last
    token of the first answer, or twice [CLS] where a window does not hold it. Extras: the question a window belongs
    to, its first context token, the characters of its context tokens as pairs, and the token that stands for no
    answer. Raises BadRequest for a stride that leaves no room.
    """
    usable = max_seq_length - tokenizer.num_special_tokens_to_add(pair=True)
    room = usable - doc_stride - 1
    if room < SHORTEST_QUESTION:
        widest = doc_stride + room - SHORTEST_QUESTION
        remedy = f"at most {widest}" if widest > 0 else f"--max_seq_length at least {max_seq_length - widest + 1}"
        raise BadRequest(
            f"--doc_stride {doc_stride} leaves {max(room, 0)} of --max_seq_length {max_seq_length} tokens for a "
            f"question: {remedy}"
        )
    longest = longest_question(tokenizer, max_seq_length)
    inputs: dict[str, list[np.ndarray]] = {name: [] for name in tokenizer.model_input_names if name != "attention_mask"}
    extras: dict[str, list] = {"question": [], "context_start": [], "offsets": [], "no_answer": []}
    spans, cut = [], 0
    for first in range(0, len(questions), CHUNK):
        chunk = questions[first : first + CHUNK]
        texts, lengths, shorter = _shortened([q.text for q in chunk], tokenizer, longest)
        cut += shorter
        for stride, rows in _by_stride(lengths, usable, doc_stride).items():
            encoded = tokenizer(
                [texts[row] for row in rows],
                [chunk[row].context for row in rows],
                truncation="only_second",
                max_length=max_seq_length,
                stride=stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                return_attention_mask=False,
            )
            for name in inputs:
                inputs[name] += [np.asarray(ids, np.int32) for ids in encoded[name]]
            for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
                number = first + rows[row]
                sequence = encoded.sequence_ids(window)
                begin = sequence.index(1) if 1 in sequence else len(sequence)
                found = encoded["offset_mapping"][window][begin : begin + sequence.count(1)]
                offsets = np.array(found, np.int32).reshape(-1, 2)
                extras["question"].append(number)
                extras["context_start"].append(begin)
                extras["offsets"].append(offsets)
                ids = encoded["input_ids"][window]  # [CLS] comes last in XLNet; a tokenizer may have none
                no_answer = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
                extras["no_answer"].append(no_answer)
                if with_answers:
                    spans.append(_span(questions[number], offsets, begin) or (no_answer, no_answer))
    columns: dict[str, Ragged | np.ndarray] = {name: Ragged.of(rows) for name, rows in inputs.items()}
    if with_answers:
        positions = np.array(spans, np.int64).reshape(-1, 2)
        columns |= {"start_positions": positions[:, 0], "end_positions": positions[:, 1]}
    return Features(
        columns,
        {
            "question": np.array(extras["question"], np.int64),
            "context_start": np.array(extras["context_start"], np.int64),
            "offsets": Ragged.of(extras["offsets"]),
            "no_answer": np.array(extras["no_answer"], np.int64),
        },
    ), cut


def longest_question(tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> int:
    """Tokens that a question may have: half of a window."""
    return max(SHORTEST_QUESTION, (max_seq_length - tokenizer.num_special_tokens_to_add(pair=True)) // 2)


def lost_answers(questions: Sequence[Question], windows: Features) -> list[str]:
    """Places of questions whose first answer no window holds whole: too long for one, or without a token."""
    marked = windows.inputs["start_positions"] != windows.extras["no_answer"]
    held = {*windows.extras["question"][marked].tolist()}
    return _names([q for number, q in enumerate(questions) if q.answers and number not in held])


def _shortened(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, longest: int
) -> tuple[list[str], list[int], int]:
    """Questions of at most `longest` tokens, their lengths, and how many had more."""
    kept = [shortened(tokenizer, text, longest) for text in texts]
    encoded = tokenizer(kept, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    for i, length in enumerate(lengths):
        if length > longest:
            kept[i] = kept[i][: encoded["offset_mapping"][i][longest - 1][1]]
    return kept, [min(length, longest) for length in lengths], sum(length > longest for length in lengths)


def _by_stride(lengths: Sequence[int], usable: int, doc_stride: int) -> dict[int, list[int]]:
    """The rows of questions by the tokens that their windows share: at most half of the context in one."""
    rows = defaultdict(list)
    for row, length in enumerate(lengths):
        rows[min(doc_stride, (usable - length) // 2)].append(row)
    return rows


def _span(question: Question, offsets: np.ndarray, begin: int) -> tuple[int, int] | None:
    """First and last token of the first answer in a window, None where the window does not hold all of it.

    Tokens may share a character: byte-level BPE has several for one. All that touch the answer belong to it.
    """
    if not question.answers or not len(offsets):
        return None
    start, end = question.starts[0], question.starts[0] + len(question.answers[0])
    if start < offsets[0, 0] or end > offsets[-1, 1]:
        return None
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
    return (begin + first, begin + last) if first <= last else None
