"""The command line of the fine-tuning scripts: the reference's words, Hugging Face's of any age, and ours.

`parse(argv, data_arguments)` is the one place where names that transformers 5 no longer has become `TrainingArguments`.
"""

import argparse
import contextlib
import io
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from central import options
from central.files import is_special
from central.habana_flags import OFF, ON, translate
from central.runtime import cpu_bf16, hpu
from central.runtime.device import Device, keep_few_kernels, open_device
from central.runtime.exits import BadRequest
from central.runtime.process_group import init_process_group
from central.runtime.rank import Rank
from central.runtime.watchdog import DEFAULT_TIMEOUT

DDP_BUCKET_MB = 230  # the reference's: one exchange for BERT-base, a few for BERT-large

UNKNOWN_SHARE = 0.1  # more [UNK] than this in ordinary text: tokenizer and vocabulary do not belong together
not_negative = options.real(lambda value: value >= 0, "a number from 0")
many = options.whole(1, 2**31, expected="a whole number from 1, below 2**31")
NUMBERS = {  # what a value of TrainingArguments must be where transformers takes any
    "adam_beta1": options.fraction,
    "adam_beta2": options.fraction,
    "adam_epsilon": options.real(lambda value: value >= 1e-20, "a number from 1e-20"),  # less is 0 to a weight
    "data_seed": options.seed_number,
    "dataloader_num_workers": options.whole(0, 1024, expected="a whole number from 0, below 1024"),
    "dataloader_prefetch_factor": many,
    "ddp_bucket_cap_mb": many,
    "ddp_timeout": many,
    "eval_accumulation_steps": many,
    "eval_delay": not_negative,
    "eval_steps": not_negative,
    "gradient_accumulation_steps": many,
    "label_smoothing_factor": options.fraction,
    "learning_rate": options.positive,
    "logging_steps": not_negative,
    "max_grad_norm": options.real(lambda value: value >= 0, "a number from 0, which clips nothing"),
    "max_steps": options.whole(1, 2**31, or_else=-1, expected="a whole number from 1, or -1 for --num_train_epochs"),
    "neftune_noise_alpha": not_negative,
    "num_train_epochs": options.real(lambda value: value < 2**31, "a number below 2**31"),
    "per_device_eval_batch_size": many,
    "per_device_train_batch_size": many,
    "seed": options.seed_number,
    "weight_decay": not_negative,
}
HALF_PRECISION = "half precision here is bfloat16: use --bf16, or --hmp on hpu"
FIXED = {  # TrainingArguments that have one value here, and why
    "batch_eval_metrics": (False, "scores need all outputs: leave it out"),
    "debug": ([], "looks at numbers only, and masks are none: leave it out"),
    "eval_do_concat_batches": (True, "scores need the outputs in one piece: leave it out"),
    "fp16": (False, HALF_PRECISION),
    "fp16_full_eval": (False, HALF_PRECISION),
    "label_names": (None, "the targets are those of the task: leave it out"),
    "use_liger_kernel": (False, "has no kernels for these models: leave it out"),
    "prediction_loss_only": (False, "scores and predictions need the model's outputs: leave it out"),
}
SHARDED = ("deepspeed", "fsdp", "fsdp_config", "parallelism_config")  # words that ask for models in pieces
KERNELS_KEPT = 1024  # on cpu: a few dozen shapes of parts come again and again, with a dozen kernels each
# Names of older transformers that live on under another name, with their value or (NAME=VALUE) one of ours, or not.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "bf16_backend": None,
    "half_precision_backend": None,
    "fp16_backend": None,
    "fp16_opt_level": None,
    "save_safetensors": None,
    "jit_mode_eval": None,
    "use_ipex": None,
    "use_mps_device": None,
    "group_by_length": None,  # batches are computed in parts by length anyhow
    "use_fast_tokenizer": None,
    "preprocessing_num_workers": None,  # the tokenizer uses the cores that are there
    "hmp_opt_level": None,
    "hmp_verbose": None,
    "adafactor": "optim=adafactor",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "use_auth_token": "token",
    "trust_remote_code": None,  # code of a model is never run
    "push_to_hub_organization": None,
    "include_inputs_for_metrics": None,
    "include_tokens_per_second": None,
    "past_index": None,
    "torchdynamo": None,
    "ray_scope": None,
    "dispatch_batches": None,
    "ddp_backend": None,  # the device's own
    "split_batches": None,
    "sharded_ddp": None,
    "mp_parameters": None,
    "tpu_num_cores": None,
    "tpu_metrics_debug": None,
    "fsdp_min_num_params": None,
    "use_legacy_prediction_loop": None,
}


def _flag(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class ReferenceFlags:
    """Words of the reference, and one of ours, that have no field in TrainingArguments."""

    no_cuda: bool = _flag(False, "run on the CPU")
    use_habana: bool = _flag(False, "run on Gaudi")
    use_lazy_mode: bool = _flag(False, "Gaudi gathers operations into graphs, instead of running each at once")
    hmp: bool = _flag(False, "matrix products in bfloat16, on any device")
    use_fused_adam: bool = _flag(False, "Habana's AdamW on Gaudi")
    use_fused_clip_norm: bool = _flag(False, "Habana's clipping of gradients on Gaudi")
    fused_sdpa: bool = _flag(False, options.FUSED_SDPA[1])
    use_hpu_graphs_for_inference: bool = _flag(False, options.INFERENCE_GRAPHS[1])
    overwrite_output_dir: bool = _flag(False, "rename a used --output_dir, and begin with an empty one")
    # The op lists are read by central.runtime.environment, before torch is imported.
    hmp_bf16: str = _flag("", "file of the operations that Gaudi runs in bfloat16")
    hmp_fp32: str = _flag("", "file of the operations that Gaudi keeps in fp32")
    logging_dir: str = _flag("", "folder of TensorBoard's files")  # transformers takes it from the environment
    warmup_ratio: float = _flag(0.0, "share of all steps spent warming up; what --warmup_steps below 1 means")
    hang_timeout: float = _flag(DEFAULT_TIMEOUT, options.HANG_TIMEOUT[1])


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "name, Hub id, local folder, or --output_dir of a pre-training"})
    config_name: str | None = field(default=None, metadata={"help": "configuration, if not the model's own"})
    tokenizer_name: str | None = field(default=None, metadata={"help": "tokenizer, if not the model's own"})
    cache_dir: str | None = field(default=None, metadata={"help": "where downloads and tokenised features are kept"})
    model_revision: str = field(default="main", metadata={"help": "branch, tag or commit on the Hub"})
    token: str | None = field(default=None, metadata={"help": "access token of the Hub"})
    ignore_mismatched_sizes: bool = field(default=False, metadata={"help": "make a head of another size anew"})


@dataclass
class DataArguments:
    dataset_name: str | None = field(default=None, metadata={"help": "name, Hub id or local folder"})
    dataset_config_name: str | None = field(default=None, metadata={"help": "configuration of the Hub dataset"})
    train_file: str | None = field(default=None, metadata={"help": "tsv, csv, json, jsonl, parquet, or gz of these"})
    validation_file: str | None = field(default=None, metadata={"help": "as --train_file"})
    test_file: str | None = field(default=None, metadata={"help": "as --train_file"})
    max_seq_length: int = field(default=128, metadata={"help": "longer texts are cut"})
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "pad all to --max_seq_length, compute whole batches"}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "train on the first N only"})
    max_eval_samples: int | None = field(default=None, metadata={"help": "evaluate the first N only"})
    max_predict_samples: int | None = field(default=None, metadata={"help": "predict the first N only"})
    overwrite_cache: bool = field(default=False, metadata={"help": "tokenise anew"})
    max_unknown_share: float = field(
        default=UNKNOWN_SHARE, metadata={"help": "refuse texts with more [UNK] among their words with letters"}
    )

    @property
    def files(self) -> dict[str, str | None]:
        """The local file of each split."""
        return {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}

    @property
    def limits(self) -> dict[str, int | None]:
        """How many examples of each split are used; None: all."""
        return {"train": self.max_train_samples, "validation": self.max_eval_samples, "test": self.max_predict_samples}


@dataclass(frozen=True)
class Request:
    """A command line, understood."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    flags: ReferenceFlags
    device: Device


def parse(argv: Sequence[str], data_arguments: type[DataArguments], rank: Rank) -> Request:
    """Understand a command line; every rank does, rank 0 says what was taken in another way than written.

    Raises BadRequest with all problems, or SystemExit 2 from argparse.
    """
    _refuse_special_files(argv)
    words, flags, notes = modernise(argv)
    given = {word.partition("=")[0][2:].replace("-", "_") for word in words if word.startswith("--")}
    if sharded := [f"--{name}" for name in SHARDED if name in given]:
        raise BadRequest(f"{', '.join(sharded)}: each rank holds the whole model here: leave it out")
    if rank.is_main:
        for note in notes:
            print(note, flush=True)
    foreign = sorted(name for name in os.environ if name.startswith("ACCELERATE_"))
    for name in foreign:  # else accelerate would take precision, compilation or accumulation from there
        del os.environ[name]
    if foreign and rank.is_main:
        print(f"{', '.join(foreign)}: in the environment, not used: the command line decides", flush=True)
    keep_few_kernels(KERNELS_KEPT)
    name = "hpu" if flags.use_habana else "cpu" if _wants_cpu(words, flags) else "auto"
    try:
        device = open_device(name, "lazy" if flags.use_lazy_mode else "eager", "bf16" if flags.hmp else "fp32", rank)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    init_process_group(device, rank)  # transformers takes the group that it finds
    classes: Any = (ModelArguments, data_arguments, TrainingArguments)
    parser = HfArgumentParser(classes, allow_abbrev=False)
    _add_flags(parser.add_argument_group("the reference's and this project's own"))  # for --help; taken out above
    parser.set_defaults(
        output_dir="",  # transformers would invent one
        warmup_steps=max(0.0, flags.warmup_ratio),  # what is wrong with it is told with the rest
        use_cpu=device.uses_host_memory,
        bf16=flags.hmp,
        optim="adamw_torch_fused" if device.has_fused_adamw else "adamw_torch",
        ddp_find_unused_parameters=False,
        ddp_bucket_cap_mb=DDP_BUCKET_MB,
        logging_nan_inf_filter=False,  # a host sync each step on hpu; the trainer stops at the first non-finite update
        eval_accumulation_steps=1 if device.fixed_shapes else None,  # arrays that grow on the device are new graphs
        dataloader_pin_memory=device.pins_batches,
        disable_tqdm=not sys.stderr.isatty(),
    )
    with contextlib.redirect_stderr(io.StringIO()) as said:  # the usage text of 150 options hides the one that is wrong
        try:
            model, data, training, *_, rest = parser.parse_args_into_dataclasses(
                words, return_remaining_strings=True, look_for_args_file=False
            )
        except SystemExit as stop:
            if not stop.code:  # --help
                raise
            raise BadRequest(said.getvalue().strip().rsplit("error: ", 1)[-1]) from None
        except OverflowError:
            raise BadRequest("--logging_steps, --save_steps and --eval_steps: give finite numbers") from None
        except (ValueError, ImportError, TypeError, OSError) as error:  # of values, and of files that these name
            raise BadRequest(" ".join(str(error).split())) from None
    if flags.logging_dir:
        os.environ["TENSORBOARD_LOGGING_DIR"] = flags.logging_dir
    problems = [f"unknown argument {word!r}: see --help" for word in rest]
    problems += _problems(data, training, flags)
    if problems:
        raise BadRequest(problems)
    if device.uses_host_memory and (training.bf16 or training.bf16_full_eval):
        cpu_bf16.use_fp32_arithmetic()
    mode = "compile" if training.torch_compile else device.mode
    device = replace(device, mode=mode, data_type="bf16" if training.bf16 else "fp32")
    if rank.is_main:
        for remark in device.remarks():
            print(remark, flush=True)
    return Request(model, data, training, flags, device)


def _refuse_special_files(argv: Sequence[str]) -> None:
    """Raise BadRequest for devices, pipes and sockets, whichever option names them: reading one might never end."""
    named = [word.partition("=") if word.startswith("--") else (argv[i - 1], "=", word) for i, word in enumerate(argv)]
    problems = [
        f"{flag} {path}: is no regular file (a device, pipe or socket): write its content to a file first"
        for flag, _, path in named
        if path and is_special(path)
    ]
    if problems:
        raise BadRequest(problems)


def modernise(argv: Sequence[str]) -> tuple[list[str], ReferenceFlags, list[str]]:
    """Words for TrainingArguments, the reference's switches, and what to tell the user."""
    words, notes, empty = [], [], []
    for word in argv:
        match = re.fullmatch(r"--([\w-]+)=", word)
        if match:
            empty.append(f"--{match[1]}")
        else:
            words.append(word)
    if empty:
        notes.append(f"{', '.join(empty)}: empty, taken as the default")
    words, of_later_releases = translate(words)
    notes += of_later_releases
    words, dropped = _rename(["--report_to=tensorboard" if word == "--tensorboard" else word for word in words])
    if dropped:
        notes.append(f"{', '.join(dropped)}: accepted, no effect here")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    _add_flags(parser)
    # `--resume_from_checkpoint` alone means the newest checkpoint of --output_dir
    words = [
        "--resume_from_checkpoint=True"
        if word == "--resume_from_checkpoint" and (i + 1 == len(words) or words[i + 1].startswith("-"))
        else word
        for i, word in enumerate(words)
    ]
    try:
        found, words = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise BadRequest(f"--{str(error.argument_name).strip('-')}: {error.message}") from error
    flags = ReferenceFlags(**vars(found))
    if flags.fused_sdpa and not flags.use_habana:
        notes.append("--fused_sdpa: torch's own attention, as this is not a Gaudi")
    if flags.use_hpu_graphs_for_inference and not (flags.use_habana and flags.use_lazy_mode):
        notes.append("--use_hpu_graphs_for_inference: no effect here, such graphs belong to hpu's lazy mode")
    return words, flags, notes


def _add_flags(parser: argparse._ActionsContainer) -> None:
    """An option for every field of ReferenceFlags."""
    for flag in fields(ReferenceFlags):
        name, help = f"--{flag.name}", flag.metadata["help"]
        if isinstance(flag.default, bool):
            parser.add_argument(
                name, nargs="?", const=True, default=False, type=_truth, metavar="true|false", help=help
            )
        else:
            kind = type(flag.default)
            parser.add_argument(name, default=flag.default, type=kind, metavar=kind.__name__.upper(), help=help)


def _rename(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Old names by new ones; those that mean nothing any more fall out with their value."""
    kept, dropped, value_of_dropped = [], [], False
    for word in words:
        name, equals, value = word.partition("=")
        if not word.startswith("--"):
            if not value_of_dropped:
                kept.append(word)
            value_of_dropped = False
            continue
        name = name[2:].replace("-", "_")
        value_of_dropped = False
        if name not in RENAMED:
            kept.append(word)
            continue
        new = RENAMED[name]
        if new and "=" not in new:
            kept.append(f"--{new}{equals}{value}")
        else:
            value_of_dropped = not equals
            if new:
                kept.append(f"--{new}")
            else:
                dropped.append(f"--{name}")
    return kept, dropped


def _truth(word: str) -> bool:
    if word.lower() in (*ON, *OFF):
        return word.lower() in ON
    raise argparse.ArgumentTypeError(f"{word!r} is not true or false")


def _wants_cpu(words: Sequence[str], flags: ReferenceFlags) -> bool:
    asked = any(word in ("--use_cpu", "--use_cpu=True", "--use_cpu=true") for word in words)
    return flags.no_cuda or asked


def _problems(data: DataArguments, training: TrainingArguments, flags: ReferenceFlags) -> list[str]:
    problems = []
    if flags.no_cuda and flags.use_habana:
        problems.append("--no_cuda means cpu and --use_habana means hpu: give one of the two")
    if flags.use_lazy_mode and not flags.use_habana:
        problems.append("--use_lazy_mode needs --use_habana")
    if flags.fused_sdpa and flags.use_habana and hpu.is_first_gaudi():
        problems.append("the first Gaudi has no fused attention: leave out --fused_sdpa")
    if not training.output_dir:
        problems.append("--output_dir is missing: where should the results go?")
    elif not (options.in_one_line(training.output_dir) and options.is_utf8(training.output_dir)):
        problems.append(f"--output_dir {training.output_dir!r}: give a path without line ends in it, in UTF-8")
    if not (training.do_train or training.do_eval or training.do_predict):
        problems.append("nothing to do: give --do_train, --do_eval or --do_predict")
    for split, path in data.files.items():
        if path and not Path(path).exists():
            problems.append(f"--{split}_file {path}: no such file")
    for name, value in vars(data).items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            problems.append(f"--{name} {value}: must be at least 1")
    for name, value in (*vars(data).items(), *vars(training).items()):
        may_be_infinite = name == "null_score_diff_threshold"
        is_finite = not isinstance(value, float) or math.isfinite(value) or (may_be_infinite and math.isinf(value))
        if not is_finite:
            problems.append(f"--{name} {value}: must be a finite number")
    if data.max_unknown_share < 0 or data.max_unknown_share > 1:
        problems.append(f"--max_unknown_share {data.max_unknown_share}: must be a share, from 0 to 1")
    for name, kind in NUMBERS.items():
        value = getattr(training, name)
        try:
            if value is not None and math.isfinite(value):
                kind(str(value))
        except ValueError as error:
            problems.append(f"--{name} {value}: {str(error).replace('expected', 'must be', 1)}")
    for name, (only, why) in FIXED.items():
        if getattr(training, name) != only:
            problems.append(f"--{name} {getattr(training, name)}: {why}")
    if training.save_strategy == "best" and training.eval_strategy == "no":
        problems.append("--save_strategy best saves after evaluations, and there is none: give --eval_strategy")
    available = get_available_reporting_integrations()
    for name in training.report_to or ():
        if name not in available:
            there = ", ".join(available) or "none"
            problems.append(f"--report_to {name}: is not installed, or nothing to report to; what is here: {there}")
    how: Any = training.gradient_checkpointing_kwargs or {}  # also those of activation_checkpointing_kwargs
    if not isinstance(how, dict) or set(how) - {"use_reentrant"}:
        problems.append(f'--gradient_checkpointing_kwargs {how}: give {{"use_reentrant": true}} or false')
    if not 0 <= flags.warmup_ratio < 1:
        problems.append(f"--warmup_ratio {flags.warmup_ratio}: must be a number from 0, below 1")
    if not 0 <= flags.hang_timeout < float("inf"):
        problems.append(f"--hang_timeout {flags.hang_timeout}: give seconds, or 0 for never")
    if training.max_steps < 0 and training.num_train_epochs <= 0:
        problems.append("training of no steps: --num_train_epochs must be above 0")
    return problems
