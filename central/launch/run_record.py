"""Requests as files: the settings a run leaves in results/run.json, and any such file as words again.

A file holds `command` (pretraining or finetuning), options by their names, and if need be `script_args` (words for the
training script), `env_variables` (used where the caller has not set them) and `record`, which is for people to read.
"""

import json
import os
import re
from dataclasses import dataclass, replace

from central.errors import BadRequest, nearest
from central.launch.commands import shell_line
from central.launch.options import options_of, path
from central.launch.subcommands import SUBCOMMANDS, subcommand_of

BESIDE_OPTIONS = ("command", "script_args", "env_variables", "record")
# Variables that decide how a run is composed, and so belong to its record.
RECORDED = ("MULTI_HLS_IPS", "DOCKER_SSHD_PORT", "MPI_ROOT", "MASTER_ADDR", "MASTER_PORT", "HABANA_VISIBLE_MODULES")
RECORDED_PREFIX = "PT_HPU_"


def run_record(name, settings, plan, environ, when) -> dict:
    """A run as a file that repeats it from any folder: paths are made absolute, options left alone are left out."""
    values = {}
    for key, option in options_of(type(settings)).items():
        value = getattr(settings, key)
        if value is not None and value is not False and value != (None, None):  # 0 is a value
            values[key] = _from_anywhere(value, option.kind)
    variables = {key: environ[key] for key in sorted(environ) if key in RECORDED or key.startswith(RECORDED_PREFIX)}
    return {
        "command": name,
        **values,
        "script_args": [_argument_from_anywhere(word) for word in _without_secrets(settings.script_args)],
        "env_variables": variables,
        "record": {"started": when, "commands": [_shell_line(command) for command in plan.commands]},
    }


def _shell_line(command) -> str:
    return shell_line(replace(command, argv=tuple(_without_secrets(command.argv))))


def _without_secrets(words) -> list[str]:
    """Words less access tokens: a record is read by many. A run repeated from it takes HF_TOKEN."""
    kept, value_follows = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        is_value = value_follows and not word.startswith("--")
        value_follows = bool(re.fullmatch(r"--(\w+[_-])?token", name)) and not equals
        if not is_value and not re.fullmatch(r"--(\w+[_-])?token", name):
            kept.append(word)
    return kept


def write(record, results_dir):
    """Write results/run.json whole or not at all; the record of an earlier run becomes run.json.1, .2, ..."""
    file_name = os.path.join(results_dir, "run.json")
    if os.path.exists(file_name):
        number = 1
        while os.path.exists(f"{file_name}.{number}"):
            number += 1
        os.replace(file_name, f"{file_name}.{number}")
    with open(file_name + ".tmp", "w") as file:
        json.dump(record, file, indent=2)
    os.replace(file_name + ".tmp", file_name)


@dataclass(frozen=True)
class Request:
    """What a file asks for, as words of the command line."""

    command: str
    words: tuple[str, ...]
    script_args: tuple[str, ...]
    variables: dict[str, str]


def read_request(values, where) -> Request:
    """A request from what a file holds; BadRequest names unknown keys. `where` is the file, for messages."""
    command = values.get("command") if isinstance(values, dict) else None
    if command not in SUBCOMMANDS:
        raise BadRequest(f"{where}: the key `command` must say {' or '.join(SUBCOMMANDS)}")
    known = options_of(subcommand_of(command).Settings)
    problems, words = _misshapen(values, where), []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name in BESIDE_OPTIONS or value is None:
            continue
        if name not in known:
            problems.append(f"{where}: unknown key {key}{nearest(name, [*known, *BESIDE_OPTIONS])}")
        words += _words(name, value)
    if problems:
        raise BadRequest(problems)
    variables = values.get("env_variables") or {}
    variables = {str(key): _variable(value) for key, value in variables.items() if value is not None}
    return Request(command, tuple(words), tuple(map(str, values.get("script_args") or ())), variables)


def _misshapen(values, where):
    """Keys beside the options that hold something else than they must."""
    script_args, variables = values.get("script_args") or [], values.get("env_variables") or {}
    return [
        *([] if isinstance(script_args, list) else [f"{where}: script_args must be a list, such as [--eval_steps, 5]"]),
        *([] if isinstance(variables, dict) else [f"{where}: env_variables must hold lines NAME: value"]),
    ]


def _variable(value) -> str:
    """YAML reads `true` as a truth, and the programs that read a variable know the small letters."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _words(name, value):
    if isinstance(value, bool):
        return [f"--{name}={str(value).lower()}"]
    if isinstance(value, list | tuple):
        return [f"--{name}", *(str(part) for part in value)]
    return [f"--{name}={value}"]


def _argument_from_anywhere(word):
    """A word of the training script: what looks like a path and is there becomes absolute."""
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    is_path = ("." in value or os.sep in value) and os.path.exists(value)
    return f"{name}{equals}{os.path.abspath(value)}" if is_path else word


def _from_anywhere(value, kind):
    """A path as it reads from any folder. What may be a name is a path where there is such a file or folder."""
    if isinstance(value, tuple):
        return tuple(_from_anywhere(part, kind) for part in value)
    names = getattr(kind, "names", None)
    is_path = kind.metavar == path.metavar or names is not None and value not in names and os.path.exists(value)
    return os.path.abspath(value) if value and is_path else value
