"""The watchdog: a process that gets nothing done says where it is, what it waits for, and who should end the wait.

The main loop tells what it does. A thread of the watchdog's own looks now and then, so that a loop that hangs inside a
call is noticed too. A call that keeps the interpreter's lock silences the thread as well; then the member's heartbeat
ends, and it counts as not running.
"""

from __future__ import annotations

import contextvars
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

log = structlog.get_logger()

LOOK_S: Final = 1.0
SILENT_S: Final = 5.0
"""A loop that has said nothing for so long is inside a call; the report says in which."""
FRAMES: Final = 12
"""Innermost calls that a report names."""
JOIN_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where a process is. ``owner``: the member that should end the wait, if its sign of life says more."""

    name: str
    waits_for: str
    unblocked_by: str
    owner: str = ""
    idle: bool = False
    """It waits for work, and there may be none: no stall while a user holds the run (``common.steering``)."""


STARTING: Final = Stage(
    name="start",
    waits_for="the set-up: server, prompts, model",
    unblocked_by="this process itself; `where` in its log says the call",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    stage: Stage
    seconds: float

    def fields(self, sign: str = "") -> dict[str, Any]:
        """For a heartbeat. ``sign``: when the owner of the wait was last heard of."""
        stage = self.stage
        return {
            "stage": stage.name,
            "stalled_s": round(self.seconds, 1),
            "waits_for": stage.waits_for,
            "unblocked_by": f"{stage.unblocked_by}; {sign}" if sign else stage.unblocked_by,
        }


class Messenger(Protocol):
    """Who carries a stall to the server (``common.heartbeat``)."""

    def last_sign(self, member: str) -> str:
        """When a member was last heard of, in words."""
        ...

    def held(self) -> str:
        """That a user holds the run, in words; empty when nobody does, or the server does not say."""
        ...

    def send_stall(self, stall: Stall, sign: str) -> None:
        """Say in the loop's place that it is stalled. Must not wait for a server that is away."""
        ...


class Watchdog:
    """Knows the stage of the main loop and when something was last done.

    The loop writes and the thread reads; every field is replaced as a whole, so there is no lock. Created by the
    thread that it watches.
    """

    def __init__(self, no_progress_s: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        """A stage without progress for longer than ``no_progress_s`` is a stall."""
        self.messenger: Messenger | None = None
        self._no_progress_s = no_progress_s
        self._clock = clock
        self._watched = threading.get_ident()
        self._stage = STARTING
        self._progressed = self._heard = clock()
        self._reported = -math.inf
        self._over = (0, 0.0)
        """Stalls that have ended, and their seconds."""
        self._taken = (0, 0.0)
        self.held = ""
        """Why nothing is to be done, as last asked about an idle stage; empty when there is no such reason."""

    # -- what the main loop says --------------------------------------------------------------------------

    def enter(self, stage: Stage) -> None:
        """The loop is here now. This alone is no progress: a loop may go round in vain."""
        self._stage = stage
        self._heard = self._clock()
        if not stage.idle:
            self.held = ""

    def progress(self) -> None:
        """Something was done."""
        now = self._clock()
        if stall := self.stall(now):
            count, seconds = self._over
            self._over = (count + 1, seconds + stall.seconds)
            log.info("stall_over", stage=stall.stage.name, after_s=round(stall.seconds, 1))
        self._progressed = self._heard = now
        self.held = ""

    def rest(self) -> None:
        """Nothing is to be done here: the wait up to now was no stall."""
        self._progressed = self._clock()

    # -- what is known --------------------------------------------------------------------------------------

    def stall(self, now: float) -> Stall | None:
        """What stands still at this time; None when all is well."""
        seconds = now - self._progressed
        return Stall(stage=self._stage, seconds=seconds) if seconds > self._no_progress_s else None

    def found(self, now: float) -> Stall | None:
        """The stall to report. An idle stage of a run that a user holds is none: it begins anew."""
        stall = self.stall(now)
        if stall is None or not stall.stage.idle or self.messenger is None:
            return stall
        before, self.held = self.held, self.messenger.held()
        if not self.held:
            return stall
        self.rest()
        if before != self.held:
            log.info("rests", stage=stall.stage.name, because=self.held)
        return None

    def counts(self, now: float) -> dict[str, float]:
        """Stalls of this process, and the seconds they lasted, the present one included."""
        count, seconds = self._over
        if stall := self.stall(now):
            count, seconds = count + 1, seconds + stall.seconds
        return {"stalls": count, "stalls_s": round(seconds, 1)}

    def take(self) -> dict[str, float]:
        """The same for the stalls that have ended since the last call: a metric."""
        (count, seconds), (told, told_s) = self._over, self._taken
        self._taken = self._over
        return {"stalls": count - told, "stalls_s": round(seconds - told_s, 1)}

    # -- the thread -------------------------------------------------------------------------------------------

    @contextmanager
    def watching(self) -> Iterator[Watchdog]:
        """Look every LOOK_S until the block is left."""
        ended = threading.Event()
        context = contextvars.copy_context()  # what is bound to every event of this process' log
        thread = threading.Thread(target=context.run, args=(self._watch, ended), name="watchdog", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join(JOIN_S)

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(LOOK_S):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - reported; whatever the messenger meets, the watch goes on
                log.warning("watchdog.failed", reason=repr(error))

    def look(self) -> None:
        """Report a stall: once per ``no_progress_s`` in the log, every time to the messenger."""
        now = self._clock()
        stall = self.found(now)
        if stall is None:
            return
        sign = self.messenger.last_sign(stall.stage.owner) if self.messenger and stall.stage.owner else ""
        if self._reported <= self._progressed or now - self._reported >= self._no_progress_s:
            self._reported = now
            log.warning("stalled", **stall.fields(sign), **self._where(now))
        if self.messenger:
            self.messenger.send_stall(stall, sign)

    def _where(self, now: float) -> dict[str, list[str]]:
        """The call that the watched thread is in, outermost first, when it has been silent."""
        frame = sys._current_frames().get(self._watched)
        if frame is None or now - self._heard < min(SILENT_S, self._no_progress_s):
            return {}
        calls = traceback.extract_stack(frame)[-FRAMES:]
        return {"where": [f"{call.filename}:{call.lineno} {call.name}" for call in calls]}
