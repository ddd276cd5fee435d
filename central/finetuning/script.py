"""The one `main` of the fine-tuning scripts: begin, read, train, evaluate, predict, report. The task is given."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import EvalPrediction

from central import files
from central.errors import first_line
from central.finetuning import output_folder, pretrained, resume
from central.finetuning.arguments import Request, parse
from central.finetuning.features import Features
from central.finetuning.model_card import write_model_card
from central.finetuning.task import Results, Run, Task
from central.finetuning.trainer import FineTuningTrainer, refuse_another_trainer
from central.runtime import rank
from central.runtime.exits import DONE, OF_THE_DISK, BadRequest, Diverged, Preempted, errno_of, refusal
from central.runtime.rank import StopRequest, watch_parent


def main(task_class: type[Task], argv: list[str]) -> int:
    """Run a task as its command line says; the exit status."""
    refuse_another_trainer()
    transformers.logging.disable_progress_bar()  # of files written, which a log file keeps; training shows its own
    request = parse(argv, task_class.arguments, rank.from_environment())
    training = request.training
    run = begin(request)
    model_name = pretrained.locate(request.model.model_name_or_path)
    task = task_class(run, model_name)
    refuse_other_scores(task, training.metric_for_best_model)
    model, tokenizer = build_model(run, task, model_name)
    features = {split: task.features(split, tokenizer) for split in task.tables}
    check_resume(run, features.get("train"))
    scorer = Scorer(task, features)
    trainer = build_trainer(run, task, model, tokenizer, features, scorer)
    with refusals_explained(run):
        make_output_dir(run)
        metrics = train(run, trainer) if training.do_train else {}
        if training.do_eval:
            metrics |= evaluate(run, trainer, scorer)
        if training.do_predict:
            predict(run, trainer, scorer)
        if trainer.is_world_process_zero():
            write_model_card(run, task, model, metrics, trainer.record.began_at[1:])
            run.say(where_all_is(run, scorer.written))
    trainer.end()
    return DONE


def begin(request: Request) -> Run:
    """Seed, signals and checks that need no data. Raises BadRequest for an output folder that cannot be used."""
    training, data = request.training, request.data
    stop = StopRequest()
    watch_parent()
    set_seed(training.seed)
    output_dir = Path(str(training.output_dir))
    run = Run(request, stop, output_folder.checkpoint_to_resume(training.resume_from_checkpoint, output_dir))
    if training.do_train and run.resumes and run.checkpoint is None:
        run.say(f"no checkpoint in {output_dir}: training starts anew")
    if training.do_train and not run.resumes:
        sources = {f"--{split}_file": path for split, path in data.files.items()}
        sources |= {"--model_name_or_path": request.model.model_name_or_path, "--dataset_name": data.dataset_name}
        output_folder.refuse_use(output_dir, request.flags.overwrite_output_dir, sources)
    return run


def refuse_other_scores(task: Task, wanted: str | None) -> None:
    """Raise BadRequest where the best model shall be that of a score which the task does not have."""
    known = ("loss", *task.score_names)
    if wanted and wanted.removeprefix("eval_") not in known:
        raise BadRequest(f"--metric_for_best_model {wanted}: is none of the scores of this task: {', '.join(known)}")


def build_model(run: Run, task: Task, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model with the task's head, and its tokenizer."""
    args = run.request.model
    config = pretrained.load_config(args, name, run.request.data.max_seq_length, **task.config())
    tokenizer = pretrained.load_tokenizer(args, name, run.say)
    task.prepare(tokenizer)
    return pretrained.load_model(task.auto_class, args, name, config, tokenizer, run.say), tokenizer


def check_resume(run: Run, features: Features | None) -> None:
    """Raise BadRequest where the checkpoint to resume from is damaged, or of another run."""
    if features is not None and run.checkpoint:
        resume.refuse_damage(run.checkpoint)
        resume.refuse_another_run(run.checkpoint, resume.deciding(run.request.training, features))


def build_trainer(
    run: Run,
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    features: Mapping[str, Features],
    scorer: "Scorer",
) -> FineTuningTrainer:
    """The trainer, with all that a training begins with made once. Raises BadRequest for arguments that it refuses."""
    request = run.request
    missing = files.missing_folders(str(run.output_dir))
    try:
        trainer = FineTuningTrainer(
            model=model,
            args=request.training,
            processing_class=tokenizer,
            train_dataset=features.get("train"),
            eval_dataset=features.get("validation"),
            compute_metrics=scorer,
            task=task,
            device=request.device,
            flags=request.flags,
            pad_to_max_length=request.data.pad_to_max_length,
            max_seq_length=request.data.max_seq_length,
            stop=run.stop,
        )
        if request.training.do_train:
            trainer.rehearse()
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError, OSError) as error:
        if missing:  # transformers has made the output folder
            files.remove_empty(missing)
        if isinstance(error, BadRequest) or refusal(error):
            raise
        reason = " ".join(str(error).split())  # of packages that alone know their options
        raise BadRequest(f"transformers does not start with these arguments: {reason}") from error
    return trainer


@contextmanager
def refusals_explained(run: Run) -> Iterator[None]:
    """What the disk of the output folder refuses, or who took the folder away, is told with what stays in it."""
    try:
        yield
    except Exception as error:
        is_taken_away = not run.output_dir.is_dir()
        if isinstance(error, BadRequest | Diverged | Preempted) or not (
            errno_of(error) in OF_THE_DISK or is_taken_away
        ):
            raise
        why = refusal(error) or f"removed or replaced while the run wrote there ({first_line(error)})"
        newest = output_folder.newest_trainer_checkpoint(run.output_dir)
        stays = f"{newest.name} is whole: --resume_from_checkpoint goes on from it" if newest else "nothing is saved"
        raise BadRequest(f"--output_dir {run.output_dir}: {why}; {stays}") from error


def make_output_dir(run: Run) -> None:
    """An empty output folder for a training that starts; a used one is renamed, not lost."""
    training = run.request.training
    with training.main_process_first(local=False):
        if training.process_index == 0:
            aside = output_folder.move_aside(run.output_dir) if training.do_train and not run.resumes else None
            if aside:
                run.say(f"{run.output_dir} was in use: renamed {aside}")
            run.output_dir.mkdir(parents=True, exist_ok=True)


class Scorer:
    """What the trainer calls after an evaluation or prediction that has targets; keeps the results of the last one."""

    def __init__(self, task: Task, features: Mapping[str, Features]):
        self.task, self.features = task, features
        self.split = "validation"  # the one at hand
        self.results: Results | None = None
        self.written: list[str] = []  # names of the files of results

    def __call__(self, found: EvalPrediction) -> dict[str, float]:
        features = self.features[self.split]
        self.results = self.task.results(self.split, features, found.predictions, found.label_ids)
        return self.results.scores


def train(run: Run, trainer: FineTuningTrainer) -> dict[str, float]:
    """Train, save model, tokenizer and state; returns the training metrics."""
    run.stop.kept = run.checkpoint.name if run.checkpoint else ""
    result = trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
    metrics = {**result.metrics, "train_samples": len(cast(Features, trainer.train_dataset))}
    trainer.save_model()
    report(trainer, "train", metrics)
    trainer.save_state()
    return metrics


def evaluate(run: Run, trainer: FineTuningTrainer, scorer: Scorer) -> dict[str, float]:
    """Scores of the validation split, and of MNLI's second one, with the files that the task makes of them."""
    metrics: dict[str, float] = {}
    for split in _splits(scorer, "validation"):
        scorer.split = split
        features = scorer.features[split]
        found = {**trainer.evaluate(cast(Any, features)), "eval_samples": scorer.task.samples(split, features)}
        metrics |= _named(found, split)
        write_files(run, trainer, scorer)
    report(trainer, "eval", metrics)
    if warning := scorer.task.warning(metrics):
        run.say(f"warning: {warning}")
    return metrics


def predict(run: Run, trainer: FineTuningTrainer, scorer: Scorer) -> None:
    """Predictions of the test split, and of MNLI's second one, with scores where the targets are known."""
    metrics: dict[str, float] = {}
    for split in _splits(scorer, "test"):
        scorer.split, scorer.results = split, None
        features = scorer.features[split]
        output = trainer.predict(features, metric_key_prefix="predict")
        if scorer.results is None:
            scorer.results = scorer.task.results(split, features, output.predictions, None)
        scores = {f"predict_{name}": value for name, value in scorer.results.scores.items()}
        found = {**scores, **(output.metrics or {}), "predict_samples": scorer.task.samples(split, features)}
        metrics |= _named(found, split)
        write_files(run, trainer, scorer)
    report(trainer, "predict", metrics)


def _splits(scorer: Scorer, kind: str) -> list[str]:
    return [split for split in (kind, f"{kind}_mismatched") if split in scorer.features]


def _named(metrics: dict[str, float], split: str) -> dict[str, float]:
    """The metrics of a split; those of MNLI's mismatched ones end in `_mm`."""
    return {f"{name}_mm": value for name, value in metrics.items()} if split.endswith("mismatched") else metrics


def report(trainer: FineTuningTrainer, split: str, metrics: dict[str, float]) -> None:
    """Print metrics and add them to `<split>_results.json` and `all_results.json`."""
    trainer.log_metrics(split, metrics)
    if trainer.is_world_process_zero():
        folder = Path(str(trainer.args.output_dir))
        files.write_json(folder / f"{split}_results.json", metrics)
        files.write_json(folder / "all_results.json", {**files.known_in(folder / "all_results.json"), **metrics})


def write_files(run: Run, trainer: FineTuningTrainer, scorer: Scorer) -> None:
    """The files of the last results, from rank 0."""
    if scorer.results and trainer.is_world_process_zero():
        for name, content in scorer.results.files.items():
            write(run.output_dir / name, content)
            scorer.written.append(name)


def where_all_is(run: Run, predictions: list[str]) -> str:
    """The line that ends a run: what lies where."""
    parts = ["the model (model.safetensors) and its tokenizer"] * run.request.training.do_train
    parts += ["its card (README.md)", "scores (all_results.json)"]
    parts += [f"predictions ({', '.join(predictions)})"] * bool(predictions)
    return f"in {run.output_dir}: {', '.join(parts)}"


def write(file: Path, content: Any) -> None:
    """A file of lines (.txt), of JSON rows (.jsonl) or of one JSON object (.json)."""
    if file.suffix == ".json":
        lines = [json.dumps(content, indent=2, ensure_ascii=False)]
    elif file.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in content]
    else:
        lines = content
    files.write_synced(file, "".join(f"{line}\n" for line in lines).encode())
