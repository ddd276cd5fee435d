"""What both fine-tuning scripts do around their trainer: begin, train, save, report."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import set_seed

from central.finetuning import features, output_folder, resume
from central.finetuning.arguments import Request
from central.finetuning.features import Features
from central.finetuning.tables import Table
from central.finetuning.trainer import FineTuningTrainer
from central.runtime.rank import StopRequest, watch_parent


@dataclass(frozen=True)
class Run:
    """One run of a script."""

    request: Request
    stop: StopRequest
    checkpoint: Path | None  # to resume from

    @property
    def output_dir(self) -> Path:
        return Path(self.request.training.output_dir)

    @property
    def resumes(self) -> bool:
        """Whether the run goes on in its output folder; a checkpoint that lies elsewhere is only read."""
        wanted = self.request.training.resume_from_checkpoint not in (None, "", "False", "false")
        return wanted and (self.checkpoint is None or output_folder.lies_in(self.checkpoint, self.output_dir))

    def say(self, line: str) -> None:
        """One line for the user, from rank 0."""
        if self.request.training.process_index == 0:
            print(line, flush=True)

    def make_output_dir(self) -> None:
        """An empty output folder for a training that starts; a used one is renamed, not lost."""
        training = self.request.training
        with training.main_process_first(local=False):
            if training.process_index == 0:
                aside = output_folder.move_aside(self.output_dir) if training.do_train and not self.resumes else None
                if aside:
                    self.say(f"{self.output_dir} was in use: renamed {aside}")
                self.output_dir.mkdir(parents=True, exist_ok=True)


def begin(request: Request) -> Run:
    """Seed, signals and checks that need no data. Raises BadRequest for an output folder that cannot be used."""
    training, data = request.training, request.data
    stop = StopRequest()
    watch_parent()
    set_seed(training.seed)
    output_dir = Path(training.output_dir)
    run = Run(request, stop, output_folder.checkpoint_to_resume(training.resume_from_checkpoint, output_dir))
    if training.do_train and run.resumes and run.checkpoint is None:
        run.say(f"no checkpoint in {output_dir}: training starts anew")
    if training.do_train and not run.resumes:
        sources = {f"--{split}_file": path for split, path in data.files.items()}
        sources |= {"--model_name_or_path": request.model.model_name_or_path, "--dataset_name": data.dataset_name}
        output_folder.refuse_use(output_dir, request.flags.overwrite_output_dir, sources)
    return run


def check_resume(run: Run, features: Features | None) -> None:
    """Raise BadRequest where the checkpoint to resume from is of a run on other data or with other settings."""
    if run.request.training.do_train and run.checkpoint:
        resume.refuse_another_run(run.checkpoint, resume.deciding(run.request.training, features))


def tokenised(run: Run, table: Table, tokenizer, make: Callable[[], Features], **settings) -> Features:
    """Features of a table, from the cache where they are there: one rank of a node makes them for all."""
    data, training = run.request.data, run.request.training
    key = {"data": table.sha256, "rows": len(table), "tokenizer": features.tokenizer_key(tokenizer), **settings}
    path = features.cache_file(run.request.model.cache_dir, **key)
    with training.main_process_first(local=True):
        overwrite = data.overwrite_cache and training.local_process_index == 0
        return features.cached(path, make, overwrite)


def train(run: Run, trainer: FineTuningTrainer) -> dict[str, float]:
    """Train, save model, tokenizer and state; returns the training metrics."""
    run.stop.kept = run.checkpoint.name if run.checkpoint else ""
    result = trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
    metrics = {**result.metrics, "train_samples": len(trainer.train_dataset)}
    trainer.save_model()
    report(trainer, "train", metrics)
    trainer.save_state()
    return metrics


def report(trainer: FineTuningTrainer, split: str, metrics: dict[str, float]) -> None:
    """Print metrics and add them to `<split>_results.json` and `all_results.json`."""
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)


def write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_json_lines(path: Path, rows: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
