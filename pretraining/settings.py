"""What a run was asked for: argv -> one frozen Settings, all problems of the request reported together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from central import options
from central.errors import BadRequest
from central.files import is_special
from central.habana_flags import device_asked, is_gaudi, translate
from central.options import choice, count, option, options_of, positive, row_length, switch, text, values, whole
from central.runtime.device import DEVICES
from central.runtime.watchdog import DEFAULT_TIMEOUT
from pretraining.objective import OBJECTIVES
from pretraining.optimizer import OPTIMIZERS

DATA, TRAINING, DEVICE, SAVING, REPORTS = "what to train, on what", "how", "where", "checkpoints", "reports"
ACCEPTED = "accepted"  # flags of the reference that change nothing here


# Types, beside those of central.options


integer = whole(expected="a whole number")
limit = whole(1, expected="a whole number from 1 (--skip_checkpoint saves nothing)")
real = options.real(lambda value: True, "a number")


@values("N")
def step_interval(word: str) -> int:
    """A number of steps, rounded to whole ones."""
    return max(1, round(positive(word)))


@values("N")
def count_or_zero(word: str) -> int:
    """A whole number; 0 for any below."""
    return max(0, integer(word))


def name_in(table: Mapping[str, object]) -> Callable[[str], str]:
    """A name of a table, as it is when the word is read."""

    @values("|".join(table))
    def name(word: str) -> str:
        return choice(*table)(word)

    return name


@values("PATH")
def found(word: str) -> Path:
    """A file or folder that is there."""
    path = folder(word)
    if not path.exists():
        raise ValueError("not found")
    if is_special(path):
        raise ValueError("not a regular file, so it might never end: give a file or folder")
    return path


@values("PATH")
def file_to_write(word: str) -> Path:
    if is_special(word):
        raise ValueError("not a regular file: give a file in a folder for results")
    return folder(word)


@values("PATH")
def folder(word: str) -> Path:
    return Path(options.path(word))


@dataclass(frozen=True, kw_only=True)
class Settings:
    input_dir: Path = option(found, "folder of *training*.hdf5 shards", group=DATA)
    config_file: Path = option(found, "JSON with BERT's keys", group=DATA)
    bert_model: str = option(text, "name for the records", "bert-large-uncased", group=DATA)
    vocab_file: Path | None = option(found, "vocab.txt; else the one in --input_dir", None, group=DATA)
    init_checkpoint: Path | None = option(
        found, "weights to start from: our folder, a Hugging Face folder, or a .pt", None, group=DATA
    )
    max_seq_length: int = option(row_length, "longest row, tokens", 512, group=DATA)
    max_predictions_per_seq: int = option(count, "masked tokens of a row", 80, group=DATA)
    dynamic_masking: bool = option(switch, "draw masks anew at every step", False, group=DATA)
    objective: str = option(name_in(OBJECTIVES), "what is learned", "mlm_nsp", group=DATA)

    do_train: bool = option(switch, "without it the start point is evaluated once", False, group=TRAINING)
    train_batch_size: int = option(count, "sequences per rank and optimizer step", 32, group=TRAINING)
    grad_accum_steps: int = option(
        count, "micro-steps of an optimizer step", 1, flag="gradient_accumulation_steps", group=TRAINING
    )
    optimizer_name: str = option(
        name_in(OPTIMIZERS), "what turns gradients into updates", "lamb", flag="optimizer", group=TRAINING
    )
    lr: float = option(*options.LEARNING_RATE, 5e-5, flag="learning_rate", group=TRAINING)
    max_steps: int = option(*options.MAX_STEPS, 1000, group=TRAINING)
    steps_this_run: int = option(
        count_or_zero, "stop at this step of the phase; 0 or below: at --max_steps", 0, group=TRAINING
    )
    warmup_proportion: float = option(*options.WARMUP, 0.01, group=TRAINING)
    seed: int = option(*options.SEED, 42, group=TRAINING)
    phase2: bool = option(switch, "second phase (long rows), continues the first", False, group=TRAINING)
    phase1_end_step: int = option(integer, "steps of phase 1; only for a .pt that does not say", 7038, group=TRAINING)
    checkpoint_activations: bool = option(
        switch, "compute activations again in the backward pass", False, group=TRAINING
    )

    device: str = option(choice("auto", *DEVICES), "auto: the GPU that is there, else the CPU", "auto", group=DEVICE)
    use_habana: bool = option(switch, "--device hpu", False, group=DEVICE)
    no_cuda: bool = option(switch, "--device cpu", False, group=DEVICE)
    use_lazy_mode: bool = option(switch, "hpu: gather operations into graphs", False, group=DEVICE)
    torch_compile: bool = option(switch, "compile the model", False, group=DEVICE)
    fused_lamb: bool = option(switch, "hpu: Habana's LAMB", False, flag="use_fused_lamb", group=DEVICE)
    fused_sdpa: bool = option(*options.FUSED_SDPA, False, group=DEVICE)
    hmp: bool = option(switch, "bf16 autocast; weights and optimizer stay fp32", False, group=DEVICE)
    bf16: bool = option(switch, "the same as --hmp", False, group=DEVICE)
    amp: bool = option(switch, "the same as --hmp", False, group=DEVICE)
    hmp_bf16: str | None = option(text, "hpu: file with ops to run in bf16", None, group=DEVICE)
    hmp_fp32: str | None = option(text, "hpu: file with ops to run in fp32", None, group=DEVICE)
    flat_exchange: bool = option(*options.EXCHANGE_ONCE, False, flag="allreduce_post_accumulation", group=DEVICE)
    bf16_exchange: bool = option(
        *options.EXCHANGE_16_BITS, False, flag="allreduce_post_accumulation_fp16", group=DEVICE
    )

    output_dir: Path = option(folder, "folder of ckpt_<global step> folders", group=SAVING)
    resume: bool = option(*options.RESUME, False, flag="resume_from_checkpoint", group=SAVING)
    resume_at: int = option(
        integer, "global step to resume at; below 0: the newest", -1, flag="resume_step", group=SAVING
    )
    save_steps: int = option(*options.SAVE_STEPS, 100, flag="num_steps_per_checkpoint", group=SAVING)
    save_total_limit: int = option(limit, "newest checkpoints kept, besides the last of each phase", 3, group=SAVING)
    skip_checkpoint: bool = option(switch, "save nothing", False, group=SAVING)

    eval_dir: Path | None = option(
        found, "folder of *test*.hdf5 shards; else --input_dir if it has some", None, group=REPORTS
    )
    eval_steps: int = option(count_or_zero, "optimizer steps between evaluations; 0: at checkpoints", 0, group=REPORTS)
    log_steps: int = option(step_interval, "optimizer steps between reports", 1, flag="log_freq", group=REPORTS)
    json_summary: Path = option(
        file_to_write,
        "log in dllogger's format; pictures go beside it",
        Path("results/dllogger.json"),
        flag="json-summary",
        group=REPORTS,
    )
    hang_timeout: float = option(*options.HANG_TIMEOUT, DEFAULT_TIMEOUT, group=REPORTS)
    disable_progress_bar: bool = option(switch, "plain lines on a terminal, too", False, group=REPORTS)
    tensorboard: bool = option(switch, "also write TensorBoard files beside the log", False, group=REPORTS)

    local_rank: int = option(integer, "ranks are told by the launcher's variables", -1, group=ACCEPTED)
    use_env: bool = option(switch, "ranks are always read from the environment", False, group=ACCEPTED)
    fp16: bool = option(switch, "refused", False, group=ACCEPTED)
    hmp_verbose: bool = option(switch, "no effect", False, group=ACCEPTED)
    hmp_opt_level: str = option(text, "no effect", "O1", group=ACCEPTED)
    loss_scale: float = option(real, "no effect", 0.0, group=ACCEPTED)
    init_loss_scale: int = option(integer, "no effect", 1048576, group=ACCEPTED)
    num_train_epochs: float = option(real, "no effect: --max_steps decides", 3.0, group=ACCEPTED)

    @property
    def phase(self) -> int:
        return 2 if self.phase2 else 1

    @property
    def device_name(self) -> str:
        return device_asked(self.device, self.use_habana, self.no_cuda)

    @property
    def mode(self) -> str:
        return "compile" if self.torch_compile else "lazy" if self.use_lazy_mode else "eager"

    @property
    def data_type(self) -> str:
        return "bf16" if self.hmp or self.bf16 or self.amp else "fp32"

    @property
    def optimizer(self) -> str:
        return "fused_lamb" if self.fused_lamb else self.optimizer_name

    @property
    def resume_step(self) -> int | None:
        return self.resume_at if self.resume_at >= 0 else None

    @property
    def micro_batch_size(self) -> int:
        return self.train_batch_size // self.grad_accum_steps

    @property
    def stop_step(self) -> int:
        return min(self.max_steps, self.steps_this_run) if self.steps_this_run > 0 else self.max_steps

    @property
    def results_dir(self) -> Path:
        return self.json_summary.parent

    def to_json(self) -> dict[str, Any]:
        """What was asked for, by field, and what follows from it; without the flags that change nothing."""
        names = [name for name, found in options_of(Settings).items() if found.group != ACCEPTED]
        names += ["phase", "device_name", "mode", "data_type"]
        known = {name: getattr(self, name) for name in names}
        return {name: str(value) if isinstance(value, Path) else value for name, value in known.items()}


def parse(argv: list[str]) -> tuple[Settings, list[str]]:
    """Settings, and lines to say once. Raises BadRequest with every problem that argv alone shows."""
    parser = options.settings_parser(
        Settings, prog="run_pretraining.py", description="Pre-train BERT on HDF5 shards, alone or as one rank of many."
    )
    followed = zip(argv, [*argv[1:], None])
    words = [f"{word}=" if word.startswith("--") and following == "" else word for word, following in followed if word]
    kept = [word for word in words if not (word.startswith("--") and word.endswith("="))]
    notes = [f"{word[:-1]} has no value: its default is used" for word in words if word not in kept]
    kept, of_later_releases = translate(kept)
    if options.wants_help(kept):
        print(parser.format_help())
        raise SystemExit(0)
    refused = ["--fp16: not supported, use --hmp (bf16 autocast) instead"] if "--fp16" in kept else []
    try:
        settings = options.parse(Settings, kept, parser)
    except BadRequest as error:
        raise BadRequest([*error.problems, *refused]) from error
    notes += of_later_releases
    for name, of_flag in options_of(Settings).items():
        if of_flag.help.startswith("no effect") and getattr(settings, name) != of_flag.default:
            notes.append(f"--{name} has no effect here")
    if problems := refused + _problems(settings):
        raise BadRequest(problems)
    if settings.fused_sdpa and not is_gaudi(settings.device_name):
        notes.append("--fused_sdpa has no effect here: it is Habana's")
    return settings, notes


def _problems(settings: Settings) -> list[str]:
    """What does not go together."""
    problems = []
    try:
        _ = settings.device_name
    except ValueError as error:
        problems.append(str(error))
    if settings.train_batch_size % settings.grad_accum_steps:
        problems.append(
            f"--train_batch_size {settings.train_batch_size} is not a multiple of --gradient_accumulation_steps "
            f"{settings.grad_accum_steps}"
        )
    return problems
