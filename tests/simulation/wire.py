"""A member's process and its connection: whatever it does to the outside passes here, one point after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import redis

from simulation.invariants import After, watch
from simulation.memory_client import Intercept, LeanClient, Words, connect_memory
from simulation.scheduler import Process
from simulation.toys import DECODE

if TYPE_CHECKING:
    from simulation.world import World

LATENCY_S: Final = 0.002
"""Longest way of a command to the server and back, when nothing is the matter."""
WORK_S: Final = 0.03
"""Longest time between two points outside of the server: a decoding step, a file."""
SLOW_S: Final = 5.0
"""The same for a decoding step of a slow engine; more than a lease."""
SHOWN: Final = 14
"""Words of a command that a trace shows."""


class Chaos(Protocol):
    """What goes wrong."""

    def at_point(self, wire: Wire, what: str) -> None:
        """The process is about to do this. May let time pass, raise Killed or OSError, or arm the wire."""
        ...


class Peace:
    """Nothing goes wrong."""

    def at_point(self, wire: Wire, what: str) -> None:
        """It is done."""


class Wire(Intercept):
    def __init__(self, world: World, member: str, number: int, body: Callable[[Wire], str]) -> None:
        """The ``number``-th incarnation of a member."""
        self.world = world
        self.member = member
        self.role = member.partition("-")[0]
        self.process = Process(world.scheduler, f"{member}#{number}", lambda: body(self), lambda: world.ended(self))
        self.stopping = False
        """SIGTERM has come."""
        self.kill_after = False
        """Dead as soon as the server has done what it is asked for next."""
        self.lose_requests = self.lose_replies = 0
        self.delay_s = 0.0
        """Of the next reply."""
        self.cut_until = float("-inf")
        self.client = connect_memory(world.server, self, LeanClient)
        self._broken: After | None = None

    def point(self, what: str) -> None:
        """A place outside of the server where time passes."""
        self.world.told(self, what)
        longest_s = SLOW_S if what == DECODE and self.world.scenario.slow else WORK_S
        self.process.rest(self.world.draw.random() * longest_s)
        self.world.chaos.at_point(self, what)

    def before(self, command: Words) -> None:
        world = self.world
        world.commands += 1
        self.process.rest(world.draw.random() * LATENCY_S)
        if world.trace is not None:
            world.told(self, " ".join(map(_shown, command[:SHOWN])))
        world.chaos.at_point(self, (command[1] if command[0] == b"FCALL" else command[0]).decode())
        if self.lose_requests:
            self.lose_requests -= 1
            self._lose("request lost")
        if self.cut_until > world.scheduler.now:
            if world.draw.random() < 0.5:
                self._lose("request lost by the cut")
            self.lose_replies = 1
        self._broken = watch(world.server.db, command)

    def after(self, command: Words) -> None:
        if self._broken:
            self.world.violations += self._broken()
        if self.world.waiting:
            self.world.look_at_waiting()
        if self.kill_after:
            self.process.die()
        if self.delay_s:
            delay_s, self.delay_s = self.delay_s, 0.0
            self.process.rest(delay_s)
        if self.lose_replies:
            self.lose_replies -= 1
            self._lose("reply lost")

    def waits(self, command: Words, wait_ms: int) -> None:
        names = command[command.index(b"STREAMS") + 1 :]
        self.world.wait(self.process, names[: len(names) // 2], wait_ms / 1000)

    def _lose(self, what: str) -> None:
        self.world.told(self, what)
        raise redis.ConnectionError(what)


def _shown(word: bytes) -> str:
    return word.decode() if len(word) <= 60 and word.isascii() and word.decode().isprintable() else f"<{len(word)}>"
