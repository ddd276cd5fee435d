"""The same work in one process, in several, or over the ranks of an MPI job."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_end
from typing import Any

from central.runtime import rank as ranks
from central.runtime.exits import BadRequest

AHEAD = 2  # tasks waiting beyond those at work: keeps workers busy and memory bounded
MOST_PROCESSES = 4096


class Workers:
    """Runs a function over tasks and yields results as they come, in no order."""

    def __init__(self, executor: Executor | None, num_workers: int):
        self.executor = executor
        self.num_workers = num_workers

    def map(self, function: Callable[..., Any], tasks: Iterable[tuple]) -> Iterator[Any]:
        if self.executor is None:
            yield from (function(*task) for task in tasks)
            return
        running: set[Future] = set()
        try:
            for task in tasks:
                if len(running) >= self.num_workers + AHEAD:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
                running.add(self.executor.submit(function, *task))
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise SystemExit(
                "error: a worker process was killed, perhaps for lack of memory: run the same command again to go on, "
                "with fewer --num_processes if it was memory"
            ) from error
        finally:
            for future in running:
                future.cancel()


@contextmanager
def workers(num_processes: int) -> Iterator[Workers | None]:
    """Workers of this run; None in an MPI rank that has served as one and is done.

    Under mpirun rank 0 hands out the work and the other ranks do it, on whatever host they are. Raises BadRequest for
    a number that is none of processes.
    """
    if not 1 <= num_processes <= MOST_PROCESSES:
        raise BadRequest(f"--num_processes {num_processes}: from 1 to {MOST_PROCESSES}")
    world_size = ranks.from_environment().world_size
    if world_size > 1:
        try:
            from mpi4py.futures import MPICommExecutor
        except ImportError as error:
            raise BadRequest("several ranks share the work through mpi4py: pip install mpi4py") from error
        with MPICommExecutor() as ranks_executor:
            serving: Any = ranks_executor  # MPIPoolExecutor, an Executor by its methods; None in a rank that has served
            yield Workers(serving, world_size - 1) if serving is not None else None
    elif num_processes > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_processes, mp_context=context, initializer=_end_with_parent) as executor:
            for _ in range(num_processes):  # they start now, while this process reads the first batch
                executor.submit(os.getpid)
            yield Workers(executor, num_processes)
    else:
        yield Workers(None, 1)


def _end_with_parent() -> None:
    """A worker whose parent was killed ends too, wherever it is: nothing else would tell it."""

    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker

    def watch() -> None:
        wait_for_end([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
