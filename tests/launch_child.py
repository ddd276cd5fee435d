"""Stands in for run_pretraining.py where tests are about starting and stopping: no torch, seconds long.

Every rank says where it is, then "trains" until its steps are done, it is asked to stop, or --act strikes at --rank.
"""

import argparse
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from central.runtime import exits
from central.runtime.rank import StopRequest, from_environment, watch_parent

STEP = 0.05  # s


def main(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument(
        "--act", default="none", choices=["none", "refuse", "diverge", "crash", "die", "hang", "swallow"]
    )
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--saving", type=float, default=0.3, help="seconds")
    parser.add_argument("--once", action="store_true", help="act in no attempt that resumes")
    parser.add_argument("--phase2", action="store_true")
    parser.add_argument("--resume_from_checkpoint", action="store_true")
    settings, _ = parser.parse_known_args(argv)

    here, stop = from_environment(), StopRequest()
    watch_parent()
    say(here, settings, argv)
    if settings.act == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    for step in range(settings.steps):
        spared = settings.once and settings.resume_from_checkpoint
        if step == 5 and here.rank == settings.rank and not spared:
            act(settings.act)
        if stop.requested:
            time.sleep(settings.saving)
            (settings.output_dir / f"saved_by_rank_{here.rank}").touch()
            raise exits.Preempted("saved")
        time.sleep(STEP)
    return exits.DONE


def say(here, settings, argv):
    """One JSON file a rank, and a line that shows whether output arrives as it was written."""
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    phase = 2 if settings.phase2 else 1
    names = ("MASTER_ADDR", "MASTER_PORT", "PYTHONPATH", "OMP_NUM_THREADS", "HABANA_VISIBLE_MODULES", "BERT_HOSTS")
    named = {name: os.environ.get(name) for name in names}
    facts = {
        **vars(here),
        "host": socket.gethostname(),
        "cores": len(os.sched_getaffinity(0)),
        "pid": os.getpid(),
        "argv": argv,
        "environ": {**named, "PT_HPU_LAZY_MODE": os.environ.get("PT_HPU_LAZY_MODE")},
        "names": sorted(os.environ),
    }
    (settings.output_dir / f"phase{phase}_rank{here.rank}.json").write_text(json.dumps(facts))
    print(f"phase {phase}, rank {here.rank}: café 100 %", flush=True)


def act(what):
    if what == "refuse":
        raise exits.BadRequest("the data of this rank cannot be read")
    if what == "diverge":
        raise exits.Diverged("loss is nan")
    if what == "crash":
        raise RuntimeError("a defect")
    if what == "swallow":
        held = [b"x" * 2**24 for _ in range(1000)]
        raise RuntimeError(f"{len(held)} pieces of memory without an end")
    if what in ("die", "hang"):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(exits.run(main))
