"""Requests as files: the settings a run leaves in results/run.json, and any such file as words again.

A file holds `command` (pretraining or finetuning), options by their names, and if need be `script_args` (words for the
training script), `env_variables` (used where the caller has not set them) and `record`, which is for people to read.
The YAML files of Habana's release 1.1.1 are read, too: `parameters` with the options, in it `store_true` with the
switches and `dataset_parameters` with the numbers of each task and data type.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from central import files, gaudi_environment
from central.errors import MOST_PROBLEMS, BadRequest, nearest
from central.launch.commands import Command, Plan, shell_line
from central.launch.options import SUBCOMMANDS, Common, subcommand_of
from central.options import options_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "run.json"
BESIDE_OPTIONS = ("command", "script_args", "env_variables", "record")
# Variables that decide how a run is composed, and so belong to its record.
RECORDED = (
    *("MULTI_HLS_IPS", "DOCKER_SSHD_PORT", "MPI_ROOT", "MASTER_ADDR", "MASTER_PORT"),
    gaudi_environment.VISIBLE_MODULES,
)


def run_record(name: str, settings: Common, plan: Plan, environ: Mapping[str, str], when: str) -> dict:
    """A run as a file that repeats it from any folder: paths are made absolute, options left alone are left out."""
    values = {}
    for key, option in options_of(type(settings)).items():
        value = getattr(settings, key)
        if value is not None and value is not False and value != (None, None):  # 0 is a value
            values[key] = _from_anywhere(value, option.type)
    variables = {
        key: environ[key] for key in sorted(environ) if key in RECORDED or key.startswith(gaudi_environment.PREFIX)
    }
    return {
        "command": name,
        **values,
        "script_args": [_argument_from_anywhere(word) for word in _without_secrets(settings.script_args)],
        "env_variables": variables,
        "record": {"started": when, "commands": [_shell_line(command) for command in plan.all_commands]},
    }


def _shell_line(command: Command) -> str:
    return shell_line(replace(command, argv=tuple(_without_secrets(command.argv))))


def _without_secrets(words: Iterable[str]) -> list[str]:
    """Words less access tokens: a record is read by many. A run repeated from it takes HF_TOKEN."""
    kept, value_follows = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        is_value = value_follows and not word.startswith("--")
        value_follows = bool(re.fullmatch(r"--(\w+[_-])?token", name)) and not equals
        if not is_value and not re.fullmatch(r"--(\w+[_-])?token", name):
            kept.append(word)
    return kept


def write(record: dict, results_dir: str) -> str | None:
    """Write results/run.json whole or not at all; that of an earlier run becomes run.json.1, .2, ..., returned."""
    file_name = os.path.join(results_dir, NAME)
    earlier = files.move_aside(file_name)
    files.write_json(file_name, record)
    return earlier


def take_back(results_dir: str, earlier: str | None) -> None:
    """The folder as it was before `write`: for a run that was refused before it began."""
    file_name = os.path.join(results_dir, NAME)
    if earlier:
        os.replace(earlier, file_name)
    else:
        os.remove(file_name)


@dataclass(frozen=True)
class Request:
    """What a file asks for, as words of the command line."""

    command: str
    words: tuple[str, ...]
    script_args: tuple[str, ...]
    variables: dict[str, str]
    notes: tuple[str, ...] = ()  # what was read in another way than it is written


def read_request(values: "Any", where: str) -> Request:
    """A request from what a file holds; BadRequest names unknown keys. `where` is the file, for messages."""
    notes: list[str] = []
    if isinstance(values, dict) and "parameters" in values:
        values, notes = _from_reference(values, where)
    command = values.get("command") if isinstance(values, dict) else None
    if command not in SUBCOMMANDS:
        raise BadRequest(f"{where}: the key `command` must say {' or '.join(SUBCOMMANDS)}")
    known = options_of(subcommand_of(command).Settings)
    problems, words, read = list(_misshapen(values, where)), list[str](), set[str]()
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name in read:
            problems.append(f"{where}: the key {key} is given twice, in two spellings")
        read.add(name)
        if name in BESIDE_OPTIONS or value is None:
            continue
        parts = value if isinstance(value, list | tuple) else [value]
        faults = [f"{where}: {key} holds {fault}" for fault in map(_no_value, parts) if fault]
        if name not in known:
            faults = [f"{where}: unknown key {key}{nearest(name, [*known, *BESIDE_OPTIONS])}"]
        problems += faults
        if len(problems) >= MOST_PROBLEMS:
            break
        words += [] if faults else _words(name, value)  # lists of aliases in lists may be longer than any memory
    if problems:
        raise BadRequest(problems)
    variables = values.get("env_variables") or {}
    variables = {str(key): _variable(value) for key, value in variables.items() if value is not None}
    script_args = tuple(map(str, values.get("script_args") or ()))
    if unfit := [word for word in (*words, *script_args, *variables.values()) if not _is_word(word)]:
        raise BadRequest(f"{where}: {unfit[0]!r} holds a NUL or half a character, which no program can be given")
    return Request(command, tuple(words), script_args, variables, tuple(notes))


def _is_word(word: str) -> bool:
    """Whether a program can be given it, which a command line's own words always are."""
    try:
        return b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:
        return False


# Keys of the reference's files that are no flags of its own launcher, and what they are.
REFUSED_BY_REFERENCE = {
    "pretraining": {
        "all_reduce_post_accumulation": "allreduce_post_accumulation",
        "all_reduce_post_accumulation_fp16": "allreduce_post_accumulation_fp16",
    },
    "finetuning": {"data_dir": "dataset_name"},
}


def _from_reference(values: dict, where: str) -> tuple[dict, list[str]]:
    """A file of the reference in our own form, and a line on each key that has another name here.

    As its runner did: the numbers of the chosen task and data type stand behind the other parameters, and win.
    """
    unknown = [key for key in values if key not in ("model", "env_variables", "parameters")]
    problems = [f"unknown key {key}{nearest(str(key), ('model', 'env_variables', 'parameters'))}" for key in unknown]
    if values.get("model", "bert") != "bert":
        problems.append(f"model must be bert, and is {values['model']}")
    parameters = _one_map(values["parameters"], problems)
    switches = parameters.pop("store_true", None) or []
    if not isinstance(switches, list):
        problems.append("store_true must be a list of switches")
        switches = []
    numbers = _of_task(parameters.pop("dataset_parameters", None) or {}, parameters, problems)
    if problems:
        raise BadRequest(f"{where}: {problem}" for problem in problems)
    found = {**parameters, **numbers, **{str(name): True for name in switches}}
    command = found.get("command")
    names = REFUSED_BY_REFERENCE.get(str(command), {})
    notes = [f"{where}: {name} of {command} is {ours} here" for name, ours in names.items() if name in found]
    renamed = {names.get(name, name): value for name, value in found.items()}
    if command == "pretraining" and isinstance(renamed.get("data_dir"), str):
        renamed["data_dir"] = renamed["data_dir"].split(",")  # one folder for each phase
    return {**renamed, "env_variables": values.get("env_variables")}, notes


def _one_map(parameters: object, problems: list[str]) -> dict:
    """`parameters` as one map; a list of maps stands for one, too."""
    whole: dict = {}
    for part in parameters if isinstance(parameters, list) else [parameters]:
        if not isinstance(part, dict):
            problems.append("parameters must be a map")
            return {}
        problems += [f"the key {key} is given twice" for key in part if key in whole]
        whole |= part
    return whole


def _of_task(tasks: object, parameters: dict, problems: list[str]) -> dict:
    """What `dataset_parameters` says of the chosen task: the numbers of the chosen data type, then its others."""
    own = _chosen(tasks, "dataset_parameters", parameters.get("task_name"), problems)
    by_type = own.pop("data_type_parameters", None) or {}
    place = f"dataset_parameters/{parameters.get('task_name')}/data_type_parameters"
    return {**_chosen(by_type, place, parameters.get("data_type"), problems), **own}


def _chosen(maps: object, place: str, name: object, problems: list[str]) -> dict:
    """A copy of the map of this name, of those at a place; empty where there are none at all."""
    if not isinstance(maps, dict) or not all(isinstance(each, dict) for each in maps.values()):
        problems.append(f"{place} must be a map of maps")
    elif maps and name not in maps:
        problems.append(f"{place} has nothing for {name}, only for {', '.join(map(str, maps))}")
    else:
        return dict(maps.get(name, {}))
    return {}


def _no_value(value: object) -> str:
    """What stands in place of one value, if anything does."""
    if isinstance(value, dict):
        return "a map, where a value is due"
    return "a list in a list, where values are due" if isinstance(value, list) else ""


def _misshapen(values: dict, where: str) -> Iterator[str]:
    """Keys beside the options that hold something else than they must."""
    script_args, variables = values.get("script_args") or [], values.get("env_variables") or {}
    if not isinstance(script_args, list) or None in script_args or any(map(_no_value, script_args)):
        yield f"{where}: script_args must be a list of words, such as [--eval_steps, 5]"
    if not isinstance(variables, dict) or any(map(_no_value, variables.values())):
        yield f"{where}: env_variables must hold lines NAME: value"
    elif wrong := [name for name in variables if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name))]:
        yield f"{where}: env_variables: {wrong[0]!r} is no name of a variable"


def _variable(value: object) -> str:
    """YAML reads `true` as a truth, and the programs that read a variable know the small letters."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _words(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}={str(value).lower()}"]
    if isinstance(value, list | tuple):
        return [f"--{name}", *(str(part) for part in value)]
    return [f"--{name}={value}"]


def _argument_from_anywhere(word: str) -> str:
    """A word of the training script: what looks like a path and is there becomes absolute."""
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    is_path = ("." in value or os.sep in value) and os.path.exists(value)
    return f"{name}{equals}{os.path.abspath(value)}" if is_path else word


def _from_anywhere(value: "Any", type_: "Any") -> "Any":
    """A path as it reads from any folder. What may be a name is a path where there is such a file or folder."""
    if isinstance(value, tuple):
        return tuple(_from_anywhere(part, type_) for part in value)
    names = getattr(type_, "names", None)
    is_path = type_.metavar == "PATH" or names is not None and value not in names and os.path.exists(value)
    return os.path.abspath(value) if value and is_path else value
