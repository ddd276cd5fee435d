"""Running a plan: its commands in order, restarts, requests to stop, and whose status is the result."""

import signal
import time
from contextlib import nullcontext

from central.launch.failures import Listener, first_failure
from central.launch.messages import say
from central.launch.problems import BAD_REQUEST, DIVERGED, DONE, PREEMPTED
from central.launch.runner import Running

GRACE = 60  # seconds for ranks to save once they are asked to stop
AFTER_A_DEAD_RANK = 15  # seconds the other ranks may take to notice
STRAGGLERS = 30  # seconds a rank may outlive its mpirun
RESUME = "--resume_from_checkpoint"
LOST_HOST = 1  # status of a run whose host is gone


def run(plan, *, log_path=None, max_restarts=0, grace=GRACE, lost_host=lambda: None) -> int:
    """Run the commands of a plan; the first status that is not 0 is the plan's and, unless it keeps going, its end.

    What one command is refused for, those behind it would be, too: that ends every plan.

    `lost_host()` names a host of the run that does not answer any more.
    """
    statuses = []
    with StopSignals() as stop, open(log_path, "ab", buffering=0) if log_path else nullcontext() as log:
        for command in plan.commands:
            if plan.keep_going and command is plan.commands[-1]:
                command = command.replace(argv=(*command.argv, *_failed_words(plan.commands, statuses)))
            statuses.append(_run_with_restarts(command, stop, log, max_restarts, grace, lost_host))
            if statuses[-1] == BAD_REQUEST or statuses[-1] != DONE and (stop.count or not plan.keep_going):
                break
    return next((status for status in statuses if status != DONE), DONE)


def _failed_words(commands, statuses) -> list[str]:
    """For the summary: the seeds whose runs failed, in whose folders an earlier request may have left scores."""
    failed = [command.name.removeprefix("seed ") for command, status in zip(commands, statuses) if status != DONE]
    return ["--failed", *failed] if failed else []


class StopSignals:
    """Counts signals in place of dying of them. A SIGHUP that nohup set aside stays aside."""

    def __init__(self):
        self.count = 0
        self.last = 0

    def __enter__(self):
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        handlers = {number: signal.getsignal(number) for number in numbers}
        self._before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _frame):
        self.count += 1
        self.last = number


def _run_with_restarts(command, stop, log, max_restarts, grace, lost_host):
    """Run a command; where it fails for no reason that would stay, run it again from its checkpoint."""
    for restart in range(max_restarts + 1):
        status = _run_once(command, stop, log, grace, lost_host)
        final = status in (DONE, BAD_REQUEST, DIVERGED, PREEMPTED) or lost_host()
        if final or stop.count or restart == max_restarts:
            return status
        say(f"{command.name}: restart {restart + 1} of {max_restarts}, from the newest checkpoint")
        command = command.replace(argv=from_newest_checkpoint(command.argv))


def from_newest_checkpoint(argv) -> tuple[str, ...]:
    """A phase's words for going on where it failed.

    `--resume_step N` would go back to N again; beside an initial checkpoint it tells that checkpoint's step and stays.
    """
    words = list(argv)
    if "--resume_step" in words and not any(word.startswith("--init_checkpoint") for word in words):
        at = words.index("--resume_step")
        del words[at : at + 2]
    return (*words, *([] if RESUME in words else [RESUME]))


def _run_once(command, stop, log, grace, lost_host):
    """Run a command to its end. The status is that of the rank that failed first."""
    if stop.count:
        return 128 + stop.last
    listener = Listener()
    running = Running(command, log=log, listener=listener, grace=grace)
    try:
        status = _wait(running, listener, stop, grace, lost_host)
    finally:
        stragglers = running.close(STRAGGLERS)
    if lost := lost_host() or listener.lost_host:
        say(f"{command.name}: host {lost} does not answer any more")
        return LOST_HOST
    if status == DONE and stragglers:
        say(f"{command.name}: ended as if done, but its ranks still ran")
        return LOST_HOST
    if status == DONE:
        return DONE
    failure = first_failure(listener.failures, status, stop.count > 0)
    status = failure.status if failure else status
    if stop.count and status == 128 + signal.SIGUSR1:
        say(f"{command.name}: stopped before training began; there was nothing to save")
        return 128 + stop.last
    say(f"{command.name}: {'stopped after saving' if status == PREEMPTED else failure or f'exit status {status}'}")
    return status


def _wait(running, listener, stop, grace, lost_host):
    """Wait for the end. Asked to stop, let ranks save; when a rank or a host is gone, end the others soon."""
    gone_since, told = None, False
    while (status := running.status()) is None:
        if stop.count:
            if not told:  # a process whose threads end after it comes here again
                say(f"stopping: ranks have {grace} s to save; a second signal cuts that short")
            told = True
            running.end(grace, lambda: stop.count)
            continue
        if listener.rank_is_gone:
            gone_since = gone_since or time.monotonic()
        if lost_host() or gone_since and time.monotonic() - gone_since > AFTER_A_DEAD_RANK:
            running.terminate()
        time.sleep(0.1)
    return status
