"""Flags of Habana's later releases in our words: one table for both trainings and for what sets their environment.

They are those of run_pretraining.py and run_squad.py up to release 1.23, and of optimum-habana's Trainer.
"""

import os
from collections.abc import Mapping, Sequence

from central.gaudi_environment import COMPILED_AUTOGRAD, LAZY_MODE

# Switches that have another name here. A value of false leaves them out.
RENAMED = {
    "autocast": "--hmp",
    "use_autocast": "--hmp",
    "use_autocast_on_fp32": "--hmp",
    "use_lazy_mode": "--use_lazy_mode",
    "use_torch_compile": "--torch_compile",
    "use_jit_trace": "--torch_compile",
    "enable_tensorboard_logging": "--tensorboard",
}
# What decides in place of a flag that means nothing here.
WITHOUT_EFFECT = {
    "enable_packed_data_mode": "each shard says itself whether it is packed",
    "avg_seq_per_pack": "it is counted or read from the metadata beside the shards",
    "use_zero_optimizer": "every rank keeps the whole state of the optimizer",
    "use_hpu_graphs": "training takes no HPU graphs",
    "use_hpu_graphs_for_training": "training takes no HPU graphs",
    "disable_tensor_cache_hpu_graphs": "training takes no HPU graphs",
    "max_hpu_graphs": "training takes no HPU graphs",
    "no_compiled_autograd": f"{COMPILED_AUTOGRAD} decides",
    "compiled_autograd": f"{COMPILED_AUTOGRAD} decides",
    "use_compiled_autograd": f"{COMPILED_AUTOGRAD} decides",
    "compile_dynamic": "compiled shapes are always static",
    "cache_size_limit": "compiled shapes are always static",
    "profile": "there is no profiler here",
    "profile_steps": "there is no profiler here",
    "tensorboard_logdir": "there is no profiler here",
    "log_memory_usage": "the last report of a run has its peak_memory_bytes",
    "tqdm_smoothing": "the bar is not smoothed",
    "distribution_strategy": "ranks exchange gradients by DDP, or once a step by --allreduce_post_accumulation",
    "non_blocking_data_copy": "copies to the card do not wait for it",
    "pipelining_fwd_bwd": "lazy mode decides where a graph ends",
    "gaudi_config_name": "flags and variables decide",
    "throughput_warmup_steps": "speed is reported for all steps",
    "adjust_throughput": "speed is reported for all steps",
    "per_param_grad_clipping": "the norm of all gradients is clipped",
    "sdp_on_bf16": "the operation lists decide what runs in bf16",
}
GAUDI = "hpu"
ON, OFF = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


def device_asked(device: str, use_habana: bool, no_cuda: bool) -> str:
    """The device that --device, or one of the reference's flags in its place, names; ValueError where two are named."""
    flags = {"--use_habana": GAUDI if use_habana else None, "--no_cuda": "cpu" if no_cuda else None}
    named = {flag: name for flag, name in flags.items() if name}
    if device != "auto":
        named[f"--device {device}"] = device
    if len(set(named.values())) > 1:
        raise ValueError(f"{' and '.join(named)} ask for two devices: leave out one")
    return next(iter(named.values()), "auto")


def is_gaudi(device: str) -> bool:
    return device == GAUDI


def translate(words: Sequence[str], environ: Mapping[str, str] = os.environ) -> tuple[list[str], list[str]]:
    """Words of a training script with the flags above in our words or left out, and a line on each left out.

    In a line of a later release PT_HPU_LAZY_MODE=1 asks for lazy mode, where no flag names a mode.
    """
    kept, notes = [], {}
    words, before = list(words), list(words)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else ""
        if name not in RENAMED and name not in WITHOUT_EFFECT:
            kept.append(word)
            continue
        follows = bool(words) and not equals and not words[0].startswith("-")
        if name in RENAMED:
            if follows and words[0].lower() in (*ON, *OFF):
                value = words.pop(0)
            if value.lower() not in OFF:
                kept.append(RENAMED[name] + (f"={value}" if value and value.lower() not in ON else ""))
            continue
        if follows:
            value = words.pop(0)
        if name == "enable_packed_data_mode" or value.lower() not in OFF:
            notes[flag] = f"{flag} has no effect here: {WITHOUT_EFFECT[name]}"
    is_later = kept != before
    names_no_mode = not any(word.startswith(("--use_lazy_mode", "--torch_compile")) for word in (*before, *kept))
    if is_later and names_no_mode and "--use_habana" in kept and environ.get(LAZY_MODE) == "1":
        kept.append("--use_lazy_mode")
        notes[LAZY_MODE] = f"{LAZY_MODE}=1 is taken as --use_lazy_mode, as in the releases of these flags"
    return kept, list(notes.values())
