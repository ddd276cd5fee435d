"""The two subcommands that train: their modules, what their options share, and how the launcher reads them."""

import dataclasses
import importlib
import os
from collections.abc import Iterable, Sequence
from types import ModuleType

from central import options
from central.errors import BadRequest, nearest
from central.options import FUSED_SDPA, HANG_TIMEOUT, choice, cores, count, count_or_zero, option, path, switch

SUBCOMMANDS = ("pretraining", "finetuning")
# Headings of the help, in its order.
GROUPS = MODEL, DATA, BATCHES, SCHEDULE, SAVING, DEVICE, RANKS, RUNNING = (
    *("Model", "Data", "Batches", "Schedule", "Checkpoints and results"),
    *("Device", "Ranks and hosts", "Running"),
)
DEVICES = ("auto", "hpu", "cuda", "cpu")
MODES = ("lazy", "eager", "graph", "compile")
MPIS = ("auto", "openmpi4", "openmpi5")

# Flags of other trainers, and what to give here.
FOREIGN = {
    "--num_train_epochs": "--max_steps, as pre-training counts steps",
    "--per_device_train_batch_size": "--batch_size",
    "--lr": "--learning_rate",
    "--bf16": "--data_type bf16",
    **dict.fromkeys(("--nproc_per_node", "--num_processes"), "--world_size"),
    "--hb_config": "it to central/habana_model_runner.py",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """What pre-training and fine-tuning share."""

    script_args: tuple[str, ...] = ()  # after a bare `--`
    model_name_or_path: str
    data_type: str = option(choice("fp32", "bf16"), "fp32, or bf16 mixed precision", group=MODEL)
    cache_dir: str | None = option(path, "folder for what fine-tuning downloads", None, group=DATA)
    output_dir: str = option(path, "folder for everything a run leaves behind", "/tmp", "-o", group=SAVING)
    device: str = option(
        choice(*DEVICES), "auto: hpu where a card is found, else cuda, else cpu", "auto", "-d", group=DEVICE
    )
    mode: str | None = option(choice(*MODES), "unset: lazy for large, eager for the others", None, group=DEVICE)
    fused_sdpa: bool = option(*FUSED_SDPA, False, group=DEVICE, hand_on="fused_sdpa")
    world_size: int = option(count, "ranks in all, one for each card", 1, group=RANKS)
    dist: bool = option(switch, "many ranks; 8 of them where --world_size is 1", False, group=RANKS)
    process_per_node: int = option(
        count_or_zero, "ranks on each host of MULTI_HLS_IPS; 0: this server alone", 0, group=RANKS
    )
    hostfile: str | None = option(path, "lines `HOST slots=N`, in place of MULTI_HLS_IPS", None, group=RANKS)
    no_mpirun: bool = option(switch, "start the ranks with torchrun (one server)", False, group=RANKS)
    mpi: str = option(choice(*MPIS), "mpirun to compose for; auto asks mpirun --version", "auto", group=RANKS)
    node_topology: str | None = option(
        cores, "sockets x cores of each, as 2x28; unset: this machine's", None, group=RANKS
    )
    hang_timeout: float | None = option(
        HANG_TIMEOUT[0], f"{HANG_TIMEOUT[1]}; unset: 300", None, group=RUNNING, hand_on="hang_timeout"
    )
    dry_run: bool = option(switch, "print the commands, one pasteable line each; touch nothing", False, group=RUNNING)

    @property
    def results_dir(self) -> str:
        return os.path.join(self.output_dir, "results")

    @property
    def lock_name(self) -> str:
        """The file in results_dir that one run at a time holds."""
        return ".lock"

    @property
    def log_path(self) -> str | None:
        """A file that gets all output, too."""
        return None

    @property
    def restarts(self) -> int:
        """How often a failed command is started again."""
        return 0


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a training script: its words; those to go on with where it failed; those for the summary then."""

    name: str
    words: tuple[str, ...]
    again: tuple[str, ...] = ()
    if_failed: tuple[str, ...] = ()


def subcommand_of(name: str) -> ModuleType:
    """The module of a subcommand, with Settings, DESCRIPTION, EXAMPLES, problems(), runs(), ...; no other is loaded."""
    if name not in SUBCOMMANDS:
        raise BadRequest(f"unknown subcommand {name}{nearest(name, (*SUBCOMMANDS, 'check'))}")
    return importlib.import_module(f"central.launch.{name}")


def settings_parser(subcommand: ModuleType, prog: str) -> options.Parser:
    """The parser of a subcommand, which is a module."""
    usage = f"{prog} [options] [-- words for the training script]"
    words = {"description": subcommand.DESCRIPTION, "epilog": subcommand.EXAMPLES}
    return options.settings_parser(subcommand.Settings, GROUPS, prog=prog, usage=usage, **words)


def parse(subcommand: ModuleType, words: Iterable[str], parser: options.Parser) -> Common:
    """Settings of a subcommand from words; BadRequest with every problem of them."""

    def complain(left_over: Sequence[str], known: Sequence[str]) -> list[str]:
        if not any(word.startswith("-") for word in left_over):
            return [f"unexpected word {word!r}: words after -- go to the training script" for word in left_over]
        flags = dict.fromkeys(word.partition("=")[0] for word in left_over if word.startswith("-"))
        ours = options.options_of(subcommand.Settings).items()
        handed_on = {f"--{option.hand_on}": f"--{name}" for name, option in ours if option.hand_on}
        instead = {flag: other for flag, other in {**FOREIGN, **handed_on}.items() if flag in flags}
        of_script = flags.keys() & script_flags(subcommand) - instead.keys()
        problems = [f"{flag}: give {other}" for flag, other in instead.items()]
        problems += [
            f"{flag} is a flag of the training script: give it after --" for flag in flags if flag in of_script
        ]
        return problems + options.complaints([flag for flag in flags if flag not in of_script | instead.keys()], known)

    words, script_args = options.split_script_args(words)
    return options.parse(subcommand.Settings, words, parser, complain, script_args=tuple(script_args))


def script_flags(subcommand: ModuleType) -> set[str]:
    """The flags of a subcommand's training scripts, from the text of their sources: to import them takes seconds."""
    import re

    forms = (r"^    (\w+): .+ = (?:field|option|_flag)\(", r'flag="([\w-]+)"', r'"--([\w-]+)"', r'^    "(\w+)": ')
    found = set()
    for source in filter(os.path.isfile, subcommand.sources_of_flags()):
        with open(source, encoding="utf-8") as file:
            text = file.read()
        found |= {f"--{name.replace('-', '_')}" for form in forms for name in re.findall(form, text, re.MULTILINE)}
    return found
