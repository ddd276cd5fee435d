"""The two subcommands that train. Each is a module: Settings, DESCRIPTION, EXAMPLES, problems(), script_words()."""

from central.errors import BadRequest, nearest

SUBCOMMANDS = ("pretraining", "finetuning")


def subcommand_of(name):
    """The module of a subcommand; only the one asked for is loaded."""
    if name not in SUBCOMMANDS:
        raise BadRequest(f"unknown subcommand {name}{nearest(name, (*SUBCOMMANDS, 'check'))}")
    if name == "pretraining":
        from central.launch import pretraining as subcommand
    else:
        from central.launch import finetuning as subcommand
    return subcommand
