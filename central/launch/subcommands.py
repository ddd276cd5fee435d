"""The two subcommands that train. Each is a module: Settings, DESCRIPTION, EXAMPLES, problems(), runs(), ..."""

import importlib
from types import ModuleType

from central.errors import BadRequest, nearest

SUBCOMMANDS = ("pretraining", "finetuning")


def subcommand_of(name: str) -> ModuleType:
    """The module of a subcommand; only the one asked for is loaded."""
    if name not in SUBCOMMANDS:
        raise BadRequest(f"unknown subcommand {name}{nearest(name, (*SUBCOMMANDS, 'check'))}")
    return importlib.import_module(f"central.launch.{name}")
