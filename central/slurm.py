"""Names as SLURM writes them."""

import re

from central.errors import BadRequest

MOST_NODES = 100_000  # in one range


def expand_nodelist(text: str) -> tuple[str, ...]:
    """Hosts of a SLURM node list: `gaudi[01-03,7],login` is gaudi01 gaudi02 gaudi03 gaudi7 login."""
    hosts: list[str] = []
    if text.count("[") != text.count("]"):
        raise BadRequest(f"SLURM_JOB_NODELIST={text} has brackets that do not match: was it cut short?")
    for entry in re.findall(r"[^,\[]+(?:\[[^\]]*\][^,\[]*)*", text):
        hosts += _expand_entry(entry.strip())
    return tuple(hosts)


def _expand_entry(entry: str) -> list[str]:
    head, bracket, rest = entry.partition("[")
    if not bracket:
        return [entry] if entry else []
    ranges, _, tail = rest.partition("]")
    names = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        is_range = first.isdecimal() and (last or first).isdecimal() and len(first + last) < 19
        if not is_range or not 0 <= int(last or first) - int(first) < MOST_NODES:
            raise BadRequest(f"SLURM_JOB_NODELIST has [{ranges}], which is no range: was it changed by hand?")
        for value in range(int(first), int(last or first) + 1):
            names += [f"{head}{value:0{len(first)}d}{end}" for end in _expand_entry(tail) or [""]]
    return names
