"""Pre-train BERT on HDF5 shards: masked language model and next sentence, LAMB, two phases.

    python pretraining/run_pretraining.py --do_train --no_cuda --config_file pretraining/bert_tiny_config.json \
        --input_dir shards --output_dir out/results/checkpoints --json-summary out/results/dllogger.json

Runs alone, and as one rank of many under mpirun, torchrun or srun.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from central.runtime import environment

if __name__ == "__main__":
    environment.apply_or_exit()  # before torch, which reads these variables once

from central.runtime import rank as ranks
from central.runtime.device import open_device
from central.runtime.exits import DONE, BadRequest, run
from central.runtime.process_group import init_process_group
from pretraining.preflight import check_request
from pretraining.resume import find_start, lacks_results, of_the_run
from pretraining.settings import parse
from pretraining.trainer import Run


def main(argv: list[str] | None = None) -> int:
    rank = ranks.from_environment()
    stop = ranks.StopRequest()
    ranks.watch_parent()
    settings, notes = parse(sys.argv[1:] if argv is None else argv)
    start = find_start(settings)
    settings, kept = of_the_run(settings, start, rank.world_size)
    if rank.is_main:
        print(*notes, start.note, *kept, sep="\n", flush=True)
    if settings.do_train and start.step >= settings.stop_step and not lacks_results(settings, start):
        if rank.is_main:
            print(f"phase {settings.phase} is at step {start.step} of {settings.stop_step}: nothing to do")
        return DONE
    try:
        device = open_device(settings.device_name, settings.mode, settings.data_type, rank)
    except ValueError as error:
        raise BadRequest(str(error).splitlines()) from error
    checked = check_request(settings, start, device, rank)
    init_process_group(device, rank)
    training = Run(settings, start, device, rank, checked, stop)
    try:
        if settings.do_train:
            training.train()
        else:
            training.evaluate()
    except BaseException:
        training.abandon()
        raise
    training.close()
    return DONE


if __name__ == "__main__":
    sys.exit(run(main))
