"""`demo_bert.py pretraining`: its options, and the words its two phases give to run_pretraining.py."""

import os
import re

from central.launch import batch
from central.launch.options import (
    BATCHES,
    DATA,
    MODEL,
    REQUIRED,
    RUNNING,
    SAVING,
    SCHEDULE,
    Common,
    choice,
    count,
    count_or_all,
    count_or_zero,
    fraction,
    maybe,
    option,
    path,
    phase_number,
    positive,
    seed_number,
    switch,
    text,
)
from central.models import MODELS

SCRIPT = "pretraining/run_pretraining.py"
MAX_PREDICTIONS_PER_SEQ = {1: 20, 2: 80}
OP_LISTS = ("ops_bf16_bert_pt.txt", "ops_fp32_bert_pt.txt")
TRAINABLE = tuple(name for name, model in MODELS.items() if model.config)

DESCRIPTION = """Pre-train BERT with LAMB in two phases: short sequences, then long ones.
An option with two values takes one for each phase; `None` leaves a folder or checkpoint out."""
EXAMPLES = """example: a tiny model on the CPU, both phases
  python demo_bert.py pretraining --model_name_or_path tiny --data_type fp32 --device cpu \\
      --data_dir data/seq_len_128/corpus data/seq_len_512/corpus --output_dir /tmp/tiny --accumulate_gradients \\
      --train_batch_size 256 64 --batch_size 32 8 --max_steps 200 50"""


class Settings(Common):
    """Settings of a pre-training run; pairs hold a value for each phase."""

    model_name_or_path: str = option(MODEL, choice(*MODELS), REQUIRED, "size of the BERT to train")
    config_file: str | None = option(MODEL, path, None, "BERT configuration (JSON) in place of the named size's")
    init_checkpoint: tuple = option(MODEL, maybe(path), (None, None), "weights to start a phase from")
    data_dir: tuple = option(DATA, maybe(path), (None, None), "folders of HDF5 files (required)", "-p")
    task_name: str = option(DATA, text, "bookswiki", "name of the corpus, for the record", "-t")
    max_seq_length: tuple = option(DATA, count, (128, 512), "tokens in a sequence", "-s")
    train_batch_size: tuple = option(BATCHES, count, (65536, 32768), "sequences in an optimizer step, over all ranks")
    batch_size: tuple = option(BATCHES, count, (64, 8), "sequences one rank sees at once", "-b")
    accumulate_gradients: bool = option(BATCHES, switch, False, "reach --train_batch_size in several micro-steps")
    allreduce_post_accumulation: bool = option(BATCHES, switch, False, "exchange gradients once a step, without DDP")
    allreduce_post_accumulation_fp16: bool = option(BATCHES, switch, False, "exchange them in 16 bits")
    learning_rate: tuple = option(SCHEDULE, positive, (6e-3, 4e-3), "peak learning rate", "-r")
    max_steps: tuple = option(SCHEDULE, count, (7038, 1563), "optimizer steps of the schedule")
    steps_this_run: tuple = option(SCHEDULE, count_or_all, (-1, -1), "optimizer step to stop at; -1: the last")
    warmup: tuple = option(SCHEDULE, fraction, (0.2843, 0.128), "part of the steps spent warming up, below 1", "-wp")
    phase: int | None = option(SCHEDULE, phase_number, None, "run this phase only; unset: both")
    seed: int = option(SCHEDULE, seed_number, 12439, "seed of weights, data order and dropout")
    save_steps: tuple = option(SAVING, count, (200, 200), "optimizer steps between checkpoints", "-st")
    resume_from_checkpoint: bool = option(SAVING, switch, False, "go on from the newest checkpoint in --output_dir")
    resume_step: tuple = option(SAVING, maybe(count_or_zero), (None, None), "step of the checkpoint to go on from")
    create_logfile: bool = option(SAVING, switch, False, "write the output of the run to results/train.log, too")
    max_restarts: int = option(RUNNING, count_or_zero, 0, "restarts of a failed phase, from its newest checkpoint")

    @property
    def phases(self):
        return (self.phase,) if self.phase else (1, 2)

    @property
    def results_dir(self):
        return os.path.join(self.output_dir, "results")

    @property
    def lock_name(self):
        return ".lock"

    @property
    def log_path(self):
        return os.path.join(self.results_dir, "train.log") if self.create_logfile else None


def problems(settings, world_size) -> list[str]:
    """What cannot run, without looking at any file."""
    found = []
    if settings.model_name_or_path not in TRAINABLE:
        found.append(
            f"--model_name_or_path {settings.model_name_or_path}: pre-training trains BERT, not RoBERTa;"
            f" choose from {', '.join(TRAINABLE)}"
        )
    for phase in settings.phases:
        if not settings.data_dir[phase - 1]:
            found.append(f"--data_dir: no folder for phase {phase}; give two, or --phase {3 - phase}")
        try:
            phase_batch(settings, phase, world_size)
        except ValueError as error:
            found.append(f"phase {phase}: {error}")
    return found


def notes(settings, world_size) -> list[str]:
    """The batch arithmetic of each phase."""
    return [f"phase {phase}: {phase_batch(settings, phase, world_size)}" for phase in settings.phases]


def phase_batch(settings, phase, world_size) -> batch.Batch:
    """The batch of a phase; ValueError where it does not divide."""
    at = phase - 1
    return batch.split(
        settings.train_batch_size[at], world_size, settings.batch_size[at], settings.accumulate_gradients
    )


def script_words(settings, *, root, world_size, device, mode) -> list[tuple[str, list[str]]]:
    """(name, words) of each phase that runs: the script and its arguments."""
    common = _common_words(settings, root, device, mode)
    return [
        (f"phase {phase}", [*common, *_phase_words(settings, phase, world_size), *settings.script_args])
        for phase in settings.phases
    ]


def summary_words(settings, root) -> None:
    """Pre-training sums nothing up."""


def config_file(settings, root) -> str | None:
    """The BERT configuration: the one given, else that of the named size."""
    named = MODELS[settings.model_name_or_path].config
    return settings.config_file or (os.path.join(root, "pretraining", named) if named else None)


def _common_words(settings, root, device, mode):
    model = MODELS[settings.model_name_or_path]
    bf16, fp32 = (os.path.join(root, name) for name in OP_LISTS)
    return [
        os.path.join(root, SCRIPT),
        "--do_train",
        f"--bert_model={model.trained_as}",
        *(["--hmp", f"--hmp_bf16={bf16}", f"--hmp_fp32={fp32}"] if settings.data_type == "bf16" else []),
        *(["--use_lazy_mode"] if mode == "lazy" else []),
        *(["--torch_compile"] if mode == "compile" else []),
        f"--config_file={config_file(settings, root)}",
        *{"hpu": ["--use_habana"], "cpu": ["--no_cuda"], "cuda": []}[device],
        *(["--allreduce_post_accumulation"] if settings.allreduce_post_accumulation else []),
        *(["--allreduce_post_accumulation_fp16"] if settings.allreduce_post_accumulation_fp16 else []),
        f"--json-summary={settings.results_dir}/dllogger.json",
        f"--output_dir={settings.results_dir}/checkpoints",
        f"--seed={settings.seed}",
        "--use_fused_lamb",
        *(["--fused_sdpa"] if settings.fused_sdpa else []),
        *([f"--hang_timeout={settings.hang_timeout}"] if settings.hang_timeout is not None else []),
    ]


def _phase_words(settings, phase, world_size):
    at = phase - 1
    steps = phase_batch(settings, phase, world_size)
    return [
        f"--input_dir={settings.data_dir[at]}",
        f"--train_batch_size={steps.per_rank}",
        f"--max_seq_length={settings.max_seq_length[at]}",
        f"--max_predictions_per_seq={MAX_PREDICTIONS_PER_SEQ[phase]}",
        f"--max_steps={settings.max_steps[at]}",
        f"--warmup_proportion={settings.warmup[at]}",
        f"--num_steps_per_checkpoint={settings.save_steps[at]}",
        f"--learning_rate={settings.learning_rate[at]}",
        *([f"--gradient_accumulation_steps={steps.grad_accum_steps}"] if settings.accumulate_gradients else []),
        f"--steps_this_run={settings.steps_this_run[at]}",
        *_start_words(settings, phase),
        *(["--phase2"] if phase == 2 else []),
    ]


def _start_words(settings, phase):
    """Where a phase starts: from a checkpoint given, from the run's own, or from nothing."""
    checkpoint, resume_step = settings.init_checkpoint[phase - 1], settings.resume_step[phase - 1]
    if checkpoint and resume_step is None:
        resume_step = step_of(checkpoint)
    resume = bool(checkpoint) or phase == 2 or settings.resume_from_checkpoint or resume_step is not None
    return [
        *(["--resume_from_checkpoint"] if resume else []),
        *([f"--init_checkpoint={checkpoint}"] if checkpoint else []),
        *([f"--phase1_end_step={settings.max_steps[0]}"] if phase == 2 and not checkpoint else []),
        *(["--resume_step", str(resume_step)] if resume_step is not None else []),
    ]


def step_of(checkpoint) -> int | None:
    """The step in a checkpoint's name, such as ckpt_7038.pt or ckpt_7038; None where it has none."""
    match = re.fullmatch(r"ckpt_(\d+)(?:\.pt)?", os.path.basename(checkpoint.rstrip("/")))
    return int(match[1]) if match else None
