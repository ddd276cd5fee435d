"""What a run was asked for: argv -> one frozen Settings, all problems of the request reported together."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from central.files import is_special
from central.habana_flags import translate
from central.runtime import watchdog
from central.runtime.exits import BadRequest

LEAST_LENGTH = 5  # tokens of a row: [CLS] a [SEP] b [SEP]
WITHOUT_EFFECT = ("loss_scale", "init_loss_scale", "hmp_opt_level", "num_train_epochs")


@dataclass(frozen=True)
class Settings:
    input_dir: Path
    config_file: Path
    bert_model: str
    output_dir: Path
    init_checkpoint: Path | None
    vocab_file: Path | None
    eval_dir: Path | None
    phase: int
    max_seq_length: int
    max_predictions_per_seq: int
    train_batch_size: int  # per rank and optimizer step
    grad_accum_steps: int
    lr: float
    max_steps: int
    steps_this_run: int  # 0 for all
    warmup_proportion: float
    seed: int
    resume: bool
    resume_step: int | None
    phase1_end_step: int
    save_steps: int
    save_total_limit: int
    skip_checkpoint: bool
    hang_timeout: float  # s
    eval_steps: int  # 0: at checkpoints
    log_steps: int
    json_summary: Path
    progress_bar: bool
    tensorboard: bool
    do_train: bool
    dynamic_masking: bool
    checkpoint_activations: bool
    flat_exchange: bool
    bf16_exchange: bool
    device_name: str
    mode: str
    data_type: str
    fused_lamb: bool
    fused_sdpa: bool

    @property
    def micro_batch_size(self) -> int:
        return self.train_batch_size // self.grad_accum_steps

    @property
    def optimizer(self) -> str:
        return "fused_lamb" if self.fused_lamb else "lamb"

    @property
    def objective(self) -> str:
        return "mlm_nsp"

    @property
    def stop_step(self) -> int:
        return min(self.max_steps, self.steps_this_run) if self.steps_this_run > 0 else self.max_steps

    @property
    def results_dir(self) -> Path:
        return self.json_summary.parent

    def to_json(self) -> dict:
        return {key: str(value) if isinstance(value, Path) else value for key, value in vars(self).items()}


class _Parser(argparse.ArgumentParser):
    """One that names what is wrong; argparse's own would print the usage of 60 options above it."""

    def error(self, message):
        raise BadRequest(f"{message}: see --help")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    # what to train, on what
    add("--input_dir", required=True, help="folder of *training*.hdf5 shards")
    add("--config_file", required=True, help="JSON with BERT's keys")
    add("--bert_model", default="bert-large-uncased", help="name for the records")
    add("--vocab_file", help="vocab.txt (default: the one in --input_dir)")
    add("--init_checkpoint", help="weights to start from: our folder, a Hugging Face folder, or a .pt")
    add("--max_seq_length", type=int, default=512, help="longest row, tokens")
    add("--max_predictions_per_seq", type=int, default=80, help="masked tokens of a row")
    add("--dynamic_masking", action="store_true", help="draw masks anew at every step")
    # how
    add("--do_train", action="store_true", help="without it the start point is evaluated once")
    add("--train_batch_size", type=int, default=32, help="sequences per rank and optimizer step")
    add("--gradient_accumulation_steps", type=int, default=1, help="micro-steps of an optimizer step")
    add("--learning_rate", type=float, default=5e-5, help="highest rate of the schedule")
    add("--max_steps", type=float, default=1000, help="optimizer steps of this phase")
    add("--steps_this_run", type=int, default=-1, help="stop at this step of the phase (-1: at --max_steps)")
    add("--warmup_proportion", type=float, default=0.01, help="fraction of --max_steps")
    add("--seed", type=int, default=42)
    add("--phase2", action="store_true", help="second phase (long rows), continues the first")
    add("--phase1_end_step", type=int, default=7038, help="steps of phase 1; only for a .pt that does not say")
    add("--checkpoint_activations", action="store_true", help="compute activations again in the backward pass")
    # where
    add("--use_habana", action="store_true", help="device hpu")
    add("--no_cuda", action="store_true", help="device cpu (neither of the two: cuda if there, else cpu)")
    add("--local_rank", type=int, default=-1, help="accepted; ranks are told by the launcher's variables")
    add("--use_env", action="store_true", help="accepted; ranks are always read from the environment")
    add("--use_lazy_mode", action="store_true", help="hpu: gather operations into graphs")
    add("--torch_compile", action="store_true")
    add("--use_fused_lamb", action="store_true", help="hpu: Habana's LAMB")
    add("--fused_sdpa", action="store_true", help="hpu: Habana's attention (Gaudi 2 and later)")
    for name in ("--hmp", "--bf16", "--amp"):
        add(name, action="store_true", help="bf16 autocast; weights and optimizer stay fp32")
    add("--fp16", action="store_true", help="refused")
    add("--hmp_bf16", default="", help="hpu: file with ops to run in bf16")
    add("--hmp_fp32", default="", help="hpu: file with ops to run in fp32")
    add("--hmp_opt_level", default="O1", help="no effect")
    add("--hmp_verbose", action="store_true", help="no effect")
    add("--loss_scale", type=float, default=0.0, help="no effect")
    add("--init_loss_scale", type=int, default=1048576, help="no effect")
    add("--num_train_epochs", type=float, default=3.0, help="no effect: --max_steps decides")
    add("--allreduce_post_accumulation", action="store_true", help="one flat all-reduce per step, not DDP's buckets")
    add("--allreduce_post_accumulation_fp16", action="store_true", help="exchange gradients in bf16")
    # checkpoints
    add("--output_dir", required=True, help="folder of ckpt_<global step> folders")
    add("--resume_from_checkpoint", action="store_true")
    add("--resume_step", type=int, default=-1, help="global step to resume at (-1: the newest)")
    add("--num_steps_per_checkpoint", type=int, default=100, help="optimizer steps")
    add("--save_total_limit", type=int, default=3, help="newest checkpoints kept, besides the last of each phase")
    add("--skip_checkpoint", action="store_true", help="save nothing")
    # reports
    add("--eval_dir", help="folder of *test*.hdf5 shards (default: --input_dir if it has some)")
    add("--eval_steps", type=int, default=0, help="optimizer steps between evaluations (0: at checkpoints)")
    add("--log_freq", type=float, default=1.0, help="optimizer steps between reports")
    add("--json-summary", default="results/dllogger.json", help="log in dllogger's format; pictures go beside it")
    add(
        "--hang_timeout",
        type=float,
        default=watchdog.DEFAULT_TIMEOUT,
        help="seconds beyond the longest step so far without progress, after which a rank counts as hung (0: never)",
    )
    add("--disable_progress_bar", action="store_true")
    add("--tensorboard", action="store_true", help="also write TensorBoard files beside the log")
    return parser


def parse(argv: list[str]) -> tuple[Settings, list[str]]:
    """Settings, and lines to say once. Raises BadRequest with every problem that argv alone shows."""
    parser = build_parser()
    followed = zip(argv, [*argv[1:], None])
    words = [f"{word}=" if word.startswith("--") and following == "" else word for word, following in followed if word]
    kept = [word for word in words if not (word.startswith("--") and word.endswith("="))]
    notes = [f"{word[:-1]} has no value: its default is used" for word in words if word not in kept]
    kept, of_later_releases = translate(kept)
    args = parser.parse_args(kept)
    notes += of_later_releases
    given = [name for name in WITHOUT_EFFECT if getattr(args, name) != parser.get_default(name)]
    notes += [f"--{name} has no effect here" for name in given]
    if args.fused_sdpa and not args.use_habana:
        notes.append("--fused_sdpa has no effect here: it is Habana's")
    problems = _problems(args)
    if problems:
        raise BadRequest(problems)
    return _settings(args), notes


def _problems(args) -> list[str]:
    problems = []
    if args.fp16:
        problems.append("--fp16: not supported, use --hmp (bf16 autocast) instead")
    if args.use_habana and args.no_cuda:
        problems.append("--use_habana and --no_cuda ask for two devices: leave out one")
    for name in (
        "train_batch_size",
        "gradient_accumulation_steps",
        "max_steps",
        "num_steps_per_checkpoint",
        "max_predictions_per_seq",
    ):
        if not getattr(args, name) >= 1:
            problems.append(f"--{name} {getattr(args, name)}: give 1 or more")
    if args.gradient_accumulation_steps >= 1 and args.train_batch_size % args.gradient_accumulation_steps:
        problems.append(
            f"--train_batch_size {args.train_batch_size} is not a multiple of --gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps}"
        )
    if args.max_steps % 1:  # of inf and nan, too
        problems.append(f"--max_steps {args.max_steps}: give a whole number")
    if not 0 <= args.warmup_proportion < 1:
        problems.append(f"--warmup_proportion {args.warmup_proportion}: give a fraction, 0 <= fraction < 1")
    if not 0 < args.learning_rate < float("inf"):
        problems.append(f"--learning_rate {args.learning_rate}: give a positive number")
    if not 0 <= args.hang_timeout < float("inf"):
        problems.append(f"--hang_timeout {args.hang_timeout}: give seconds, or 0 for never")
    if args.save_total_limit < 1:
        problems.append(f"--save_total_limit {args.save_total_limit}: give 1 or more (--skip_checkpoint saves nothing)")
    if not 0 < args.log_freq < float("inf"):
        problems.append(f"--log_freq {args.log_freq}: give a positive number of steps")
    if not 0 <= args.seed < 2**32:
        problems.append(f"--seed {args.seed}: give a whole number from 0, below 2**32")
    for name in ("input_dir", "config_file", "vocab_file", "init_checkpoint", "eval_dir"):
        path = getattr(args, name)
        if path is not None and not Path(path).exists():
            problems.append(f"--{name} {path}: not found")
        elif path is not None and is_special(path):
            problems.append(f"--{name} {path}: not a regular file, so it might never end: give a file or folder")
    if is_special(args.json_summary):
        problems.append(f"--json-summary {args.json_summary}: not a regular file: give a file in a folder for results")
    if args.max_seq_length < LEAST_LENGTH:
        problems.append(f"--max_seq_length {args.max_seq_length}: at least {LEAST_LENGTH}, for [CLS] a [SEP] b [SEP]")
    return problems


def _settings(args) -> Settings:
    def path(value):
        return Path(value) if value is not None else None

    return Settings(
        input_dir=Path(args.input_dir),
        config_file=Path(args.config_file),
        bert_model=args.bert_model,
        output_dir=Path(args.output_dir),
        init_checkpoint=path(args.init_checkpoint),
        vocab_file=path(args.vocab_file),
        eval_dir=path(args.eval_dir),
        phase=2 if args.phase2 else 1,
        max_seq_length=args.max_seq_length,
        max_predictions_per_seq=args.max_predictions_per_seq,
        train_batch_size=args.train_batch_size,
        grad_accum_steps=args.gradient_accumulation_steps,
        lr=args.learning_rate,
        max_steps=int(args.max_steps),
        steps_this_run=max(0, args.steps_this_run),
        warmup_proportion=args.warmup_proportion,
        seed=args.seed,
        resume=args.resume_from_checkpoint,
        resume_step=args.resume_step if args.resume_step >= 0 else None,
        phase1_end_step=args.phase1_end_step,
        save_steps=args.num_steps_per_checkpoint,
        save_total_limit=args.save_total_limit,
        skip_checkpoint=args.skip_checkpoint,
        eval_steps=max(0, args.eval_steps),
        log_steps=max(1, round(args.log_freq)),
        hang_timeout=args.hang_timeout,
        json_summary=Path(args.json_summary),
        progress_bar=not args.disable_progress_bar,
        tensorboard=args.tensorboard,
        do_train=args.do_train,
        dynamic_masking=args.dynamic_masking,
        checkpoint_activations=args.checkpoint_activations,
        flat_exchange=args.allreduce_post_accumulation,
        bf16_exchange=args.allreduce_post_accumulation_fp16,
        device_name="hpu" if args.use_habana else "cpu" if args.no_cuda else "auto",
        mode="compile" if args.torch_compile else "lazy" if args.use_lazy_mode else "eager",
        data_type="bf16" if args.hmp or args.bf16 or args.amp else "fp32",
        fused_lamb=args.use_fused_lamb,
        fused_sdpa=args.fused_sdpa,
    )
