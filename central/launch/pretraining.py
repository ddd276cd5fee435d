"""`demo_bert.py pretraining`: its options, and the words its two phases give to run_pretraining.py."""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence

from central.errors import BadRequest
from central.files import ROOT, checkpoint_step, names_in, shards_of
from central.launch import batch
from central.launch.options import BATCHES, DATA, MODEL, RUNNING, SAVING, SCHEDULE, Common, Run
from central.models import MODELS
from central.options import (
    EXCHANGE_16_BITS,
    EXCHANGE_ONCE,
    LEARNING_RATE,
    MAX_SEQ_LENGTH,
    MAX_STEPS,
    RESUME,
    SAVE_STEPS,
    SEED,
    STEPS_THIS_RUN,
    WARMUP,
    Pair,
    count,
    count_or_zero,
    handed_on,
    maybe,
    option,
    path,
    path_or,
    phase_number,
    switch,
    text,
)

SCRIPT = "pretraining/run_pretraining.py"
MAX_PREDICTIONS_PER_SEQ = {1: 20, 2: 80}
OP_LISTS = ("ops_bf16_bert_pt.txt", "ops_fp32_bert_pt.txt")
TRAINABLE = tuple(name for name, model in MODELS.items() if model.config)
# Of a model to go on from: what is fetched from the Hub.
MODEL_FILES = ("config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt", "tokenizer_config.json")

DESCRIPTION = """Pre-train BERT with LAMB in two phases: short sequences, then long ones.
The model is a name, which is trained from the beginning, or a folder or Hub id, from whose weights training goes on.
An option with two values takes one for each phase, and with --phase one is enough; `None` leaves a folder or
checkpoint out."""
EXAMPLES = """example: a tiny model on the CPU, both phases
  python demo_bert.py pretraining --model_name_or_path tiny --data_type fp32 --device cpu \\
      --data_dir data/seq_len_128/corpus data/seq_len_512/corpus --output_dir /tmp/tiny --accumulate_gradients \\
      --train_batch_size 256 64 --batch_size 32 8 --max_steps 200 50"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Settings of a pre-training run; pairs hold a value for each phase."""

    model_name_or_path: str = option(
        path_or(*MODELS), f"{', '.join(TRAINABLE)}; or go on from a folder or a Hub id", group=MODEL
    )
    config_file: str | None = option(path, "BERT configuration (JSON) in place of the named size's", None, group=MODEL)
    init_checkpoint: Pair = option(maybe(path), "weights to start a phase from", (None, None), group=MODEL)
    data_dir: Pair = option(
        maybe(path),
        "folders of HDF5 files, or the --output_dir of prepare.py (required)",
        (None, None),
        "-p",
        group=DATA,
        hand_on="input_dir",
        serves_both=True,
    )
    task_name: str = option(text, "name of the corpus, for the record", "bookswiki", "-t", group=DATA)
    max_seq_length: Pair = option(*MAX_SEQ_LENGTH, (128, 512), "-s", group=DATA, hand_on="max_seq_length")
    train_batch_size: Pair = option(
        count, "sequences in an optimizer step, over all ranks", (65536, 32768), group=BATCHES
    )
    batch_size: Pair = option(count, "sequences one rank sees at once", (64, 8), "-b", group=BATCHES)
    accumulate_gradients: bool = option(switch, "reach --train_batch_size in several micro-steps", False, group=BATCHES)
    allreduce_post_accumulation: bool = option(
        *EXCHANGE_ONCE, False, group=BATCHES, hand_on="allreduce_post_accumulation"
    )
    allreduce_post_accumulation_fp16: bool = option(
        *EXCHANGE_16_BITS, False, group=BATCHES, hand_on="allreduce_post_accumulation_fp16"
    )
    learning_rate: Pair = option(*LEARNING_RATE, (6e-3, 4e-3), "-r", group=SCHEDULE, hand_on="learning_rate")
    max_steps: Pair = option(*MAX_STEPS, (7038, 1563), group=SCHEDULE, hand_on="max_steps")
    warmup: Pair = option(*WARMUP, (0.2843, 0.128), "-wp", group=SCHEDULE, hand_on="warmup_proportion")
    phase: int | None = option(phase_number, "run this phase only; unset: both", None, group=SCHEDULE)
    seed: int = option(*SEED, 12439, group=SCHEDULE, hand_on="seed")
    save_steps: Pair = option(*SAVE_STEPS, (200, 200), "-st", group=SAVING, hand_on="num_steps_per_checkpoint")
    steps_this_run: Pair = option(*STEPS_THIS_RUN, (-1, -1), group=SCHEDULE, hand_on="steps_this_run")
    resume_from_checkpoint: bool = option(*RESUME, False, group=SAVING)
    resume_step: Pair = option(maybe(count_or_zero), "step of the checkpoint to go on from", (None, None), group=SAVING)
    create_logfile: bool = option(switch, "write the output of the run to results/train.log, too", False, group=SAVING)
    max_restarts: int = option(
        count_or_zero, "restarts of a failed phase, from its newest checkpoint", 0, group=RUNNING
    )

    @property
    def phases(self) -> tuple[int, ...]:
        return (self.phase,) if self.phase else (1, 2)

    @property
    def log_path(self) -> str | None:
        return os.path.join(self.results_dir, "train.log") if self.create_logfile else None

    @property
    def restarts(self) -> int:
        return self.max_restarts


def sources_of_flags() -> list[str]:
    """The files that say which flags the training script takes."""
    return [os.path.join(ROOT, "pretraining", "settings.py")]


def located(settings: Settings, fetch: Callable[[str, Sequence[str]], str]) -> Settings:
    """The settings with the folders that they mean: of a root of data those of the phases, of a Hub id its copy here.

    `fetch` downloads files of an id of the Hub, and returns their folder.
    """
    pairs = zip(settings.data_dir, settings.max_seq_length)
    folders = tuple(folder and data_folder(folder, length) for folder, length in pairs)
    model = settings.model_name_or_path
    if model not in MODELS and not os.path.isdir(model):
        model = fetch(model, MODEL_FILES)
    return dataclasses.replace(settings, data_dir=folders, model_name_or_path=model)


def data_folder(folder: str, max_seq_length: int) -> str:
    """The folder with shards of this length below a root that prepare.py made; any other folder as it is.

    Raises BadRequest where there are several.
    """
    found = sorted(
        os.path.join(where, corpus)
        for where in (os.path.join(folder, name) for name in names_in(folder))
        if re.search(rf"seq_len_{max_seq_length}(?!\d)", os.path.basename(where))
        for corpus in names_in(where)
        if shards_of(names_in(os.path.join(where, corpus)), "training")
    )
    if len(found) > 1:
        raise BadRequest(
            f"--data_dir {folder} holds several folders of sequences of {max_seq_length} tokens: name one of "
            + ", ".join(found)
        )
    return found[0] if found else folder


def problems(settings: Settings, world_size: int) -> list[str]:
    """What cannot run, without looking at any file."""
    found = []
    if settings.model_name_or_path in MODELS and settings.model_name_or_path not in TRAINABLE:
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


def notes(settings: Settings, world_size: int) -> list[str]:
    """The batch arithmetic of each phase."""
    return [f"phase {phase}: {phase_batch(settings, phase, world_size)}" for phase in settings.phases]


def phase_batch(settings: Settings, phase: int, world_size: int) -> batch.Batch:
    """The batch of a phase; ValueError where it does not divide."""
    at = phase - 1
    return batch.split(
        settings.train_batch_size[at], world_size, settings.batch_size[at], settings.accumulate_gradients
    )


def runs(settings: Settings, *, root: str, world_size: int, device: str, mode: str) -> list[Run]:
    """Each phase that runs: the script and its arguments."""
    common = _common_words(settings, root, device, mode)

    def words(phase: int, again: bool) -> tuple[str, ...]:
        return (*common, *_phase_words(settings, phase, world_size, again), *settings.script_args)

    return [Run(f"phase {phase}", words(phase, False), words(phase, True)) for phase in settings.phases]


def summary_words(settings: Settings, root: str) -> None:
    """Pre-training sums nothing up."""


def config_file(settings: Settings, root: str) -> str | None:
    """The BERT configuration: the one given, else that of the named size or of the model to go on from."""
    if settings.config_file or settings.model_name_or_path not in MODELS:
        return settings.config_file or os.path.join(settings.model_name_or_path, "config.json")
    named = MODELS[settings.model_name_or_path].config
    return os.path.join(root, "pretraining", named) if named else None


def start_of(settings: Settings, phase: int) -> str | None:
    """The weights that a phase starts from: the checkpoint given, else for the first one the model to go on from."""
    given = settings.init_checkpoint[phase - 1]
    model = settings.model_name_or_path
    return given or (model if model not in MODELS and phase == settings.phases[0] else None)


def _common_words(settings: Settings, root: str, device: str, mode: str) -> list[str]:
    model = settings.model_name_or_path
    name = MODELS[model].trained_as if model in MODELS else os.path.basename(os.path.abspath(model))
    bf16, fp32 = (os.path.join(root, name) for name in OP_LISTS)
    return [
        os.path.join(root, SCRIPT),
        "--do_train",
        f"--bert_model={name}",
        *(["--hmp", f"--hmp_bf16={bf16}", f"--hmp_fp32={fp32}"] if settings.data_type == "bf16" else []),
        *(["--use_lazy_mode"] if mode == "lazy" else []),
        *(["--torch_compile"] if mode == "compile" else []),
        f"--config_file={config_file(settings, root)}",
        *{"hpu": ["--use_habana"], "cpu": ["--no_cuda"], "cuda": []}[device],
        f"--json-summary={settings.results_dir}/dllogger.json",
        f"--output_dir={settings.results_dir}/checkpoints",
        "--use_fused_lamb",
        *handed_on(settings),
    ]


def _phase_words(settings: Settings, phase: int, world_size: int, again: bool) -> list[str]:
    steps = phase_batch(settings, phase, world_size)
    return [
        f"--train_batch_size={steps.per_rank}",
        f"--max_predictions_per_seq={MAX_PREDICTIONS_PER_SEQ[phase]}",
        *([f"--gradient_accumulation_steps={steps.grad_accum_steps}"] if settings.accumulate_gradients else []),
        *handed_on(settings, phase),
        *_start_words(settings, phase, again),
        *(["--phase2"] if phase == 2 else []),
    ]


def _start_words(settings: Settings, phase: int, again: bool) -> list[str]:
    """Where a phase starts: from a checkpoint given, from the run's own, or from nothing.

    `again`: where it failed, so from the run's newest. A step to resume at would be gone back to; beside an initial
    checkpoint it tells that checkpoint's step, and stays.
    """
    checkpoint, resume_step = start_of(settings, phase), settings.resume_step[phase - 1]
    if again and not checkpoint:
        resume_step = None
    if checkpoint and resume_step is None:
        resume_step = checkpoint_step(checkpoint)
    resume = again or bool(checkpoint) or phase == 2 or settings.resume_from_checkpoint or resume_step is not None
    return [
        *(["--resume_from_checkpoint"] if resume else []),
        *([f"--init_checkpoint={checkpoint}"] if checkpoint else []),
        *([f"--phase1_end_step={settings.max_steps[0]}"] if phase == 2 and not checkpoint else []),
        *(["--resume_step", str(resume_step)] if resume_step is not None else []),
    ]
