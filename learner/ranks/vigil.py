"""The vigil of a rank: a thread that ends this process when another rank is dead, silent, or has failed.

A rank that waits in a collective call can be woken by nothing but its partners; NCCL does not even notice that one is
gone. So every rank tells the store every few seconds that it lives, and looks at the others: rank 0 at all, the rest at
rank 0. Ending the process is what a kill -9 does, which every part of the system is built to survive.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from learner.ranks.place import Place

log = structlog.get_logger()

LOOK_S: Final = 2.0
SILENT_S: Final = 120.0
"""A rank that has given no sign for so long is taken for dead. Longer than the interpreter's lock is ever held."""
JOIN_S: Final = 900.0
"""How long the ranks of a job may take to come up: launchers start hosts one after another."""
GRACE_S: Final = 5.0
"""Between the verdict and the end: the main thread, if it can, ends with its own error."""
FAILED: Final = "failed"
UNKNOWN: Final = 1
"""Exit code of a rank that died without saying why."""


class Store(Protocol):
    """The part of torch's ``Store`` that is used here. All of it raises RuntimeError once rank 0 is gone."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why the job cannot go on. ``rank``: whose fault it is."""

    rank: int
    exit_code: int
    reason: str

    def in_words(self) -> str:
        return f"rank {self.rank} {self.reason}; no rank can go on without it"


class Vigil:
    """``look`` does one round; ``start`` makes a thread do it until ``stop``."""

    def __init__(
        self,
        store: Store,
        place: Place,
        *,
        died: Callable[[], Failure | None] = lambda: None,
        end: Callable[[Failure], None] | None = None,
        silent_s: float = SILENT_S,
        join_s: float = JOIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``died``: a child process that ended, as its parent knows it. ``end``: how this process ends."""
        self._store = store
        self._place = place
        self._died = died
        self._end = end or end_process
        self._silent_s = silent_s
        self._clock = clock
        started = clock()
        watched = range(1, place.world_size) if place.is_first else (0,)
        self._signs: dict[int, bytes] = dict.fromkeys(watched, b"")
        self._silent_at = dict.fromkeys(watched, started + max(join_s, silent_s))
        self._looked = started
        self._beats = 0
        self._over = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._watch, name="vigil", daemon=True).start()

    def stop(self) -> None:
        """From here on the others may end."""
        self._over.set()

    def fail(self, exit_code: int, reason: str) -> None:
        """Tell the others that this rank ends, and why. The first to say so is believed."""
        self._over.set()
        try:
            if not self._store.check([FAILED]):
                self._store.set(FAILED, f"{self._place.rank} {exit_code} {reason}")
        except RuntimeError as error:  # rank 0 is gone, and with it those who would read this
            log.info("ranks.nobody_to_tell", reason=str(error))

    def failure(self, wait_s: float = 0.0) -> Failure | None:
        """What has gone wrong elsewhere; waits for word of it, which may come a moment after the broken connection."""
        give_up_at = self._clock() + wait_s
        while (found := self.look()) is None and self._clock() < give_up_at:
            time.sleep(0.1)
        return found

    def look(self) -> Failure | None:
        """One round: say that this rank lives; what is wrong with another one."""
        self._beats += 1
        try:
            self._store.set(f"alive/{self._place.rank}", str(self._beats))
            if self._store.check([FAILED]):
                return _parsed(self._store.get(FAILED))
            return self._died() or self._silent()
        except RuntimeError as error:
            return Failure(rank=0, exit_code=UNKNOWN, reason=f"is gone ({str(error).splitlines()[0][:200]})")

    def _silent(self) -> Failure | None:
        now = self._clock()
        slept_s, self._looked = now - self._looked, now
        if slept_s > self._silent_s / 2:  # this rank has, perhaps with its whole host; give the others time to wake
            self._silent_at = {rank: at + slept_s for rank, at in self._silent_at.items()}
        for rank, sign in self._signs.items():
            key = f"alive/{rank}"
            found = self._store.get(key) if self._store.check([key]) else b""
            if found != sign:
                self._signs[rank], self._silent_at[rank] = found, now + self._silent_s
            elif now > self._silent_at[rank]:
                state = f"has given no sign of life for {self._silent_s:.0f} s" if sign else "has never come up"
                return Failure(rank=rank, exit_code=UNKNOWN, reason=state)
        return None

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            found = self.look()
            if found is not None and found.rank != self._place.rank and not self._over.wait(GRACE_S):
                log.error("ranks.failed", rank_at_fault=found.rank, reason=found.reason)
                self._end(found)
                return


def end_process(failure: Failure) -> None:
    """At once, whatever the main thread waits for."""
    print(f"spark: {failure.in_words()}", file=sys.stderr, flush=True)
    os._exit(failure.exit_code)


def _parsed(said: bytes) -> Failure:
    rank, exit_code, reason = said.decode("utf-8", errors="replace").split(" ", 2)
    return Failure(rank=int(rank), exit_code=int(exit_code), reason=reason)
