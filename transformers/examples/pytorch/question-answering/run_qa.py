"""Fine-tune and evaluate a model on questions about paragraphs: SQuAD 1.1, SQuAD 2.0, or files of the same forms.

python run_qa.py --model_name_or_path base --dataset_name squad --do_train --do_eval --output_dir out/squad
python run_qa.py --model_name_or_path FOLDER --train_file train-v1.1.json.gz --validation_file dev-v1.1.json ...
mpirun -n 2 python run_qa.py ...
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parents[4]),
    str(Path(__file__).resolve().parent),
]  # python -P leaves the second out
from central.runtime import environment, rank

environment.apply_or_exit()  # before torch is imported
rank.export(rank.from_environment())  # before transformers looks for other ranks

import qa_examples
import qa_postprocess
from qa_examples import Question
from qa_postprocess import Answers
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalPrediction

from central.finetuning import pretrained, script
from central.finetuning.arguments import DataArguments, Request, parse
from central.finetuning.features import Features
from central.finetuning.model_card import write_model_card
from central.finetuning.script import Run
from central.finetuning.tables import HUB_DATASETS, Table, listed, load_splits
from central.finetuning.trainer import FineTuningTrainer
from central.runtime.exits import DONE, BadRequest, run

NEARLY_NOTHING = 5.0  # F1 in percent: words that any stretch of text shares with an answer
SAMPLE = 200  # questions looked at to see whether tokenizer and text belong together


@dataclass
class QaArguments(DataArguments):
    max_seq_length: int = field(default=384, metadata={"help": "tokens of a window: question and part of the context"})
    doc_stride: int = field(default=128, metadata={"help": "tokens that neighbouring windows share"})
    version_2_with_negative: bool = field(default=False, metadata={"help": "some questions have no answer"})
    null_score_diff_threshold: float = field(default=0.0, metadata={"help": "no answer where it scores this much more"})
    n_best_size: int = field(default=20, metadata={"help": "candidates kept of each window and question"})
    max_answer_length: int = field(default=30, metadata={"help": "tokens of the longest answer"})


@dataclass(frozen=True)
class Data:
    """The tables of a run, and the questions in them that are used."""

    name: str  # of the task
    tables: dict[str, Table]
    questions: dict[str, list[Question]]


@dataclass
class Scorer:
    """What the trainer calls after an evaluation; keeps the answers for the prediction files."""

    questions: list[Question]
    windows: Features
    args: QaArguments
    answers: Answers | None = None

    def __call__(self, found: EvalPrediction) -> dict[str, float]:
        self.answers = answers_of(self.questions, self.windows, found.predictions, self.args)
        return qa_postprocess.squad_scores(self.questions, self.answers, self.args.version_2_with_negative)


def answers_of(questions: list[Question], windows: Features, logits, args: QaArguments) -> Answers:
    return qa_postprocess.answers_of(
        questions,
        windows,
        *logits,
        n_best_size=args.n_best_size,
        max_answer_length=args.max_answer_length,
        version_2=args.version_2_with_negative,
        null_threshold=args.null_score_diff_threshold,
    )


def parse_args(argv: list[str]) -> Request:
    """The command line; SQuAD 2.0 by name means questions without answers."""
    request = parse(argv, QaArguments, rank.from_environment())
    data = request.data
    if data.dataset_name in HUB_DATASETS:
        data.version_2_with_negative |= data.dataset_name == "squad_v2"
    return request


def load_data(this: Run) -> Data:
    """The questions of the splits this run needs; those one cannot learn from are counted and left out."""
    data, training = this.request.data, this.request.training
    tables = load_splits(
        files=data.files,
        dataset_name=data.dataset_name,
        config_name=data.dataset_config_name,
        wanted=["train"] * training.do_train + ["validation"] * training.do_eval + ["test"] * training.do_predict,
        cache_dir=this.request.model.cache_dir,
    )
    questions = {split: qa_examples.questions_of(table)[: data.limits[split]] for split, table in tables.items()}
    for split in questions:
        if split != "test" and not data.version_2_with_negative:
            qa_examples.refuse_unanswerable(questions[split])
    if training.do_train:
        questions["train"], lines = qa_examples.usable_for_training(questions["train"])
        for line in lines:
            this.say(f"{tables['train'].source}: {line}")
    for split in questions:
        if not questions[split]:
            raise BadRequest(f"{tables[split].source}: holds no question that can be used")
    return Data("squad_v2" if data.version_2_with_negative else "squad", tables, questions)


def build_model(this: Run, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model with a head that marks first and last token, and its tokenizer."""
    args = this.request.model
    config = pretrained.load_config(args, name, this.request.data.max_seq_length, num_labels=2)
    tokenizer = pretrained.load_tokenizer(args, name, this.say)
    tokenizer.padding_side = "right"  # answers are counted from the first token
    model = pretrained.load_model(AutoModelForQuestionAnswering, args, name, config, tokenizer, this.say)
    return model, tokenizer


def tokenise(this: Run, data: Data, split: str, tokenizer: PreTrainedTokenizerBase) -> Features:
    """Windows over the contexts of one split."""
    questions, args, source = data.questions[split], this.request.data, data.tables[split].source
    with_answers = split != "test"
    sample = questions[:SAMPLE]
    for texts in ([question.context for question in sample], [question.text for question in sample]):
        pretrained.check_text(tokenizer, texts, lambda i: sample[i].where, args.max_unknown_share, this.say)

    def make() -> Features:
        windows, cut = qa_examples.windows(questions, tokenizer, args.max_seq_length, args.doc_stride, with_answers)
        if cut:
            longest = qa_examples.longest_question(tokenizer, args.max_seq_length)
            this.say(f"{source}: {cut} questions cut to {longest} tokens, to leave room for the context")
        return windows

    settings = {"max_length": args.max_seq_length, "doc_stride": args.doc_stride, "with_answers": with_answers}
    used = [question.id for question in questions]
    features = script.tokenised(this, data.tables[split], tokenizer, make, used=used, **settings)
    lost = qa_examples.lost_answers(questions, features) if with_answers else []
    if lost:
        this.say(f"{source}: {len(lost)} answers in no window, longer than one or without a token: {listed(lost)}")
    return features


def evaluate(this: Run, trainer: FineTuningTrainer, scorer: Scorer) -> dict[str, float]:
    """Exact match and F1 of the validation split; writes `predictions.json`, n-best and null odds."""
    metrics = {**trainer.evaluate(), "eval_samples": len(scorer.questions)}
    script.report(trainer, "eval", metrics)
    answered = "eval_HasAns_f1" if "eval_HasAns_f1" in metrics else "eval_f1"  # silence alone scores half of 2.0
    if metrics[answered] < NEARLY_NOTHING:
        this.say(
            f"warning: {answered} {metrics[answered]:.2f} is nearly that of no answers at all: the model has learned "
            "nothing yet. Likely causes: too few steps, a --learning_rate too high (try 3e-5) or too low, a model "
            "that is not pretrained, or answers that do not belong to the questions"
        )
    if trainer.is_world_process_zero():
        write_answers(this, scorer.answers, "")
    return metrics


def predict(this: Run, data: Data, trainer: FineTuningTrainer, windows: Features) -> None:
    """Answers of the test split, in `predict_predictions.json` and its companions."""
    questions, args = data.questions["test"], this.request.data
    output = trainer.predict(windows, metric_key_prefix="predict")
    answers = answers_of(questions, windows, output.predictions, args)
    metrics = {**output.metrics, "predict_samples": len(questions)}
    if any(question.answers for question in questions):
        scores = qa_postprocess.squad_scores(questions, answers, args.version_2_with_negative)
        metrics |= {f"predict_{name}": value for name, value in scores.items()}
    script.report(trainer, "predict", metrics)
    if trainer.is_world_process_zero():
        write_answers(this, answers, "predict_")


def write_answers(this: Run, answers: Answers, prefix: str) -> None:
    script.write_json(this.output_dir / f"{prefix}predictions.json", answers.predictions)
    script.write_json(this.output_dir / f"{prefix}nbest_predictions.json", answers.nbest)
    if answers.null_odds:
        script.write_json(this.output_dir / f"{prefix}null_odds.json", answers.null_odds)


def main(argv: list[str]) -> int:
    request = parse_args(argv)
    this = script.begin(request)
    model_name = pretrained.locate(request.model.model_name_or_path)
    data = load_data(this)
    model, tokenizer = build_model(this, model_name)
    features = {split: tokenise(this, data, split, tokenizer) for split in data.tables}
    script.check_resume(this, features.get("train"))
    this.make_output_dir()
    scorer = (
        Scorer(data.questions["validation"], features["validation"], request.data) if request.training.do_eval else None
    )
    trainer = FineTuningTrainer(
        model=model,
        args=request.training,
        processing_class=tokenizer,
        train_dataset=features.get("train"),
        eval_dataset=features.get("validation"),
        compute_metrics=scorer,
        flags=request.flags,
        pad_to_max_length=request.data.pad_to_max_length,
        max_seq_length=request.data.max_seq_length,
        stop=this.stop,
    )
    metrics = {}
    if request.training.do_train:
        metrics |= script.train(this, trainer)
    if request.training.do_eval:
        metrics |= evaluate(this, trainer, scorer)
    if request.training.do_predict:
        predict(this, data, trainer, features["test"])
    if trainer.is_world_process_zero():
        write_model_card(this, data.name, data.tables, model, metrics, trainer.record.began_at[1:])
    trainer.end()
    return DONE


if __name__ == "__main__":
    sys.exit(run(main))
