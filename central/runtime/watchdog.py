"""Finds ranks that hang. Their peers would wait in an exchange for as long as torch lets them, and name nobody.

Every rank tells the others once a second, through the store where they met, that it lives and how far it is. A rank
that makes no progress for too long looks at what the others told: those that gave no sign of life hang, else those
that are furthest behind. It names them and ends, and with it the run; checkpoints are whole or absent at any time.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

from torch.distributed import Store

from central.errors import HUNG
from central.runtime.rank import Rank, StopRequest

DEFAULT_TIMEOUT = 300  # seconds beyond the longest step so far
COMPILING = 1800  # seconds for the first step where it compiles
SILENT = 8  # seconds without a sign of life: more than a thread waits for a busy machine
WHILE_STOPPING = 4  # seconds without progress after which a rank asked to stop looks at the others
BUSY = "saving or scoring"  # a rank may take any time for it, and may long not tell that it lives
LATER = 3  # seconds that the other ranks leave the first one to speak


@dataclass(frozen=True)
class Beat:
    """What a rank tells: how often it has, how many marks it has passed, and what it does since the last one."""

    count: int
    progress: int
    doing: str
    host: str


@dataclass(frozen=True)
class Seen:
    """A rank as another one sees it: the last beat read, and seconds since it was a new one."""

    beat: Beat
    silence: int


def hanging(seen: dict[int, Seen], patience: float) -> list[int]:
    """Ranks that hang, by what all tell: the silent ones, else those furthest behind.

    A busy one does not, unless it gives no sign of life for `patience` seconds: it was stopped amid its work.
    """
    if not seen:
        return []
    silent = [
        rank
        for rank, other in seen.items()
        if other.silence >= (max(patience, SILENT) if other.beat.doing == BUSY else SILENT)
    ]
    if silent:
        return silent
    least = min(other.beat.progress for other in seen.values())
    behind = [rank for rank, other in seen.items() if other.beat.progress == least]
    return [] if any(seen[rank].beat.doing == BUSY for rank in behind) else behind


class Watchdog:
    """Watches this rank and its peers in two threads: one talks to the store, which may block, and one decides.

    `timeout` in seconds, 0 for none. `store` is None for a rank alone. Time is counted in seconds that this process
    has seen pass, so that a run suspended as a whole may go on.
    """

    def __init__(
        self, rank: Rank, timeout: float, stop: StopRequest, store: Store | None = None, compiles: bool = False
    ):
        self._rank, self._timeout, self._stop = rank, timeout, stop
        self._store = store
        self._first_limit = COMPILING if compiles else 0
        self._host = socket.gethostname()
        self._progress, self._doing, self._idle = 0, "start", 0
        self._longest, self._step_began = 0.0, time.monotonic()
        self._seen: dict[int, Seen] = {}
        self._store_silence = 0
        self._closed = threading.Event()
        self._told = threading.Event()
        work: list[Callable[[], None]] = [self._watch] if timeout else []
        if timeout and store is not None:
            work.append(partial(self._talk, store))
            self._tell(store, 0)  # whoever has done a step with this rank can ask for it
        self._threads = [threading.Thread(target=target, daemon=True) for target in work]
        for thread in self._threads:
            thread.start()

    def mark(self, doing: str) -> None:
        """This rank goes on to something else."""
        self._doing = doing
        self._progress += 1
        self._idle = 0

    def step(self) -> None:
        """A step is done: the next may take as long as the longest and the timeout."""
        now = time.monotonic()
        if self._store is not None and self._timeout and not self._seen:
            self._look(self._store)
        if self._progress:
            self._longest = max(self._longest, now - self._step_began)
            self._first_limit = 0
        self._step_began = now

    def busy(self) -> None:
        """What comes may keep every thread of this process from telling that it lives: the others know before."""
        self._told.clear()
        self.mark(BUSY)
        if self._timeout and self._store is not None:
            self._told.wait(2)

    def close(self) -> None:
        """The run ends by itself."""
        self._closed.set()
        for thread in self._threads:  # one that is in torch while the interpreter ends would abort it
            thread.join(timeout=2)

    def _talk(self, store: Store) -> None:
        count = 0
        while not self._closed.wait(1):
            count += 1
            try:
                if self._tell(store, count) == BUSY:
                    self._told.set()
                if self._idle >= 2:
                    self._look(store)
                self._store_silence = 0
            except Exception:  # a rank has left: the exchange tells so, too
                time.sleep(1)

    def _tell(self, store: Store, count: int) -> str:
        beat = Beat(count, self._progress, self._doing, self._host)
        store.set(_key(self._rank.rank), json.dumps(asdict(beat)))
        return beat.doing

    def _look(self, store: Store) -> None:
        texts = store.multi_get([_key(rank) for rank in range(self._rank.world_size)])
        seen = {}
        for rank, beat in enumerate(Beat(**json.loads(text)) for text in texts):
            before = self._seen.get(rank)
            seen[rank] = Seen(beat, before.silence + 1 if before and before.beat.count == beat.count else 0)
        self._seen = seen

    def _watch(self) -> None:
        while not self._closed.wait(1):
            self._idle += 1
            self._store_silence += 1
            if not self._progress:  # what comes before training may take any time
                continue
            if self._stop.requested and self._idle >= WHILE_STOPPING:
                silent = [rank for rank in self._hanging() if self._others()[rank].silence >= SILENT]
                if silent:
                    self._end(silent)
            if self._idle > max(self._timeout + self._longest, self._first_limit):
                alone = [self._rank.rank] if self._doing != BUSY else []
                if found := self._hanging() if self._seen else alone:
                    self._end(found)

    def _hanging(self) -> list[int]:
        return hanging(self._others(), self._timeout + self._longest)

    def _others(self) -> dict[int, Seen]:
        """All ranks as seen from here; where the store does not answer, its rank is silent."""
        seen = dict(self._seen)
        if 0 in seen and self._store_silence >= SILENT:
            seen[0] = Seen(Beat(0, seen[0].beat.progress, "", seen[0].beat.host), self._store_silence)
        return seen

    def _end(self, found: list[int]) -> None:
        """Name the ranks that hang, and end this one."""
        here, idle = self._rank.rank, self._idle
        speaker = next((rank for rank in range(self._rank.world_size) if rank not in found), found[0])
        if here != speaker:
            time.sleep(LATER)
            if self._idle < idle or self._closed.is_set():
                return
        lines = [self._line(rank) for rank in found]
        names = [f"rank {rank} on {self._host_of(rank)}: exit status {HUNG}" for rank in found]
        print(*lines, *names, sep="\n", file=sys.stderr, flush=True)
        os._exit(HUNG)

    def _host_of(self, rank: int) -> str:
        return self._seen[rank].beat.host if rank in self._seen else self._host

    def _line(self, rank: int) -> str:
        where = f"rank {rank} on {self._host_of(rank)} hangs: "
        other = self._others().get(rank)
        if other and other.silence >= SILENT:
            last = (
                f"last seen in {other.beat.doing}"
                if other.beat.doing
                else f"rank {self._rank.rank} waits in {self._doing}"
            )
            return f"{where}no sign of life for {other.silence} s, {last}. The checkpoints are whole"
        doing = other.beat.doing if other else self._doing
        return (
            f"{where}no progress for {self._idle} s in {doing}. The checkpoints are whole (--hang_timeout, 0 for none)"
        )


def _key(rank: int) -> str:
    return f"watchdog/{rank}"
