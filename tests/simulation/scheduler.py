"""Virtual time and the processes of one simulated run: each is a greenlet, and only one of them runs at a time.

What happens next is what comes next in virtual time; ties go by age. So the order of everything follows from how long
each step takes, which the owner draws by seed: a pause is a long step, and no other kind of choice is needed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet


class Killed(BaseException):
    """kill -9: nothing catches it for good, since every further step of the process raises it again."""


class Process:
    """One incarnation of a member. Everything it does to others goes through ``rest``, which says how long it takes."""

    def __init__(self, scheduler: Scheduler, name: str, body: Callable[[], str], ended: Callable[[], None]) -> None:
        """``body`` returns how it ended; an exception is how it ended, too."""
        self.name = name
        self.dead = False
        self.outcome = ""
        """How it ended; empty while it lives."""
        self.error: BaseException | None = None
        self.ticket = 0
        """Number of its latest rest. A wake-up with an older number comes too late."""
        self._scheduler = scheduler
        self._body = body
        self._ended = ended
        self._greenlet = greenlet(self._run, scheduler.hub)

    @property
    def lives(self) -> bool:
        return not self.outcome

    def rest(self, seconds: float) -> None:
        """Let virtual time pass, and whoever comes next in it. Raises Killed when that was a killer."""
        scheduler = self._scheduler
        if self.dead:
            raise Killed
        wake = scheduler.now + seconds
        if wake < scheduler.next_at:
            scheduler.now = wake
            return
        self.ticket += 1
        scheduler.at(wake, self.resume, self.ticket)
        scheduler.hub.switch()
        if self.dead:
            raise Killed

    def resume(self, ticket: int) -> None:
        if self.lives and ticket == self.ticket:
            self.ticket += 1
            self._scheduler.running = self
            self._greenlet.switch()

    def wake(self) -> None:
        """End its present rest now."""
        self._scheduler.at(self._scheduler.now, self.resume, self.ticket)

    def die(self) -> None:
        """By itself, here and now."""
        self.dead = True
        raise Killed

    def kill(self) -> None:
        """By somebody else, as soon as that one has finished its step."""
        if self.lives and not self.dead:
            self.dead = True
            self._scheduler.at(self._scheduler.now, self.end)

    def end(self) -> None:
        """Called by the hub: run what is left of it, which is what its ``finally`` blocks do without the outside."""
        self.dead = True
        if self.lives:
            self._scheduler.running = self
            self._greenlet.throw(Killed)

    def _run(self) -> None:
        outcome = "crash"
        try:
            outcome = self._body()
        except Killed:
            outcome = "killed"
        except Exception as error:  # noqa: BLE001 - told as the outcome
            outcome, self.error = type(error).__name__, error
        self.outcome = outcome
        self._ended()


class Scheduler:
    """A calendar of calls in virtual seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.next_at = float("inf")
        """When the next call is due."""
        self.hub = getcurrent()
        self.running: Process | None = None
        """Who ran last."""
        self._calendar: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._age = 0

    def clock(self) -> float:
        return self.now

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        self._age += 1
        heapq.heappush(self._calendar, (time, self._age, call, args))
        self.next_at = self._calendar[0][0]

    def after(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        self.at(self.now + seconds, call, *args)

    def start(self, process: Process) -> None:
        self.at(self.now, process.resume, process.ticket)

    def run(self, over: Callable[[], bool]) -> None:
        """Until ``over``, or until nothing is left to happen."""
        while self._calendar and not over():
            time, _, call, args = heapq.heappop(self._calendar)
            self.next_at = self._calendar[0][0] if self._calendar else float("inf")
            self.now = max(self.now, time)
            call(*args)
