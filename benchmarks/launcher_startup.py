"""Processor time of `demo_bert.py -h` and of a dry run, as multiples of a bare `python -c pass`; the aim is 3.

    python benchmarks/launcher_startup.py [ROUNDS]

The programs take turns, so that a machine that gets slower or faster meanwhile does so for all of them.
Byte code is compiled beforehand, as it is from the second start on.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

DEMO = str(Path(__file__).resolve().parents[1] / "demo_bert.py")
PRETRAINING = "pretraining --model_name_or_path large --data_type bf16 --accumulate_gradients --data_dir /a /b".split()
FINETUNING = "finetuning --model_name_or_path large --data_type bf16 --task_name squad --world_size 8".split()
DRY = "--device hpu --mpi openmpi4 --node_topology 2x28 --dry_run".split()
PROGRAMS = {
    "python -c pass": ["-c", "pass"],
    "import dataclasses, argparse": ["-c", "import dataclasses, argparse"],
    "demo_bert.py -h": [DEMO, "-h"],
    "demo_bert.py pretraining -h": [DEMO, "pretraining", "-h"],
    "demo_bert.py finetuning -h": [DEMO, "finetuning", "-h"],
    "demo_bert.py pretraining --dry_run": [DEMO, *PRETRAINING, *DRY],
    "demo_bert.py finetuning --dry_run": [DEMO, *FINETUNING, *DRY],
}


def seconds(words, environ):
    """Processor time of one start: what else the machine does changes it less than the time by the clock."""
    begin = processor_seconds()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([sys.executable, *words], env=environ, check=True, **quiet)
    return processor_seconds() - begin


def processor_seconds():
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(rounds=40):
    """Print the median time of each program, and the median of its ratio to the bare interpreter of the same round."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as byte_code:
        environ["PYTHONPYCACHEPREFIX"] = byte_code
        for words in PROGRAMS.values():
            seconds(words, environ)
        times = [{name: seconds(words, environ) for name, words in PROGRAMS.items()} for _ in range(rounds)]
    for name in PROGRAMS:
        ratio = statistics.median(each[name] / each["python -c pass"] for each in times)
        print(f"{name:36} {statistics.median(each[name] for each in times) * 1e3:6.1f} ms  {ratio:.2f} x")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
