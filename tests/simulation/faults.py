"""What can go wrong, and how a schedule chooses from it.

A fault strikes at a point of some process. Some happen to that process, others to the server, the disk or the clock.
Most strike anywhere; some are aimed at the calls whose halves must not come apart.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.keys import ACTORS
from simulation.wire import Wire
from simulation.world import World

Strike = Callable[[Wire, random.Random], float]
"""What a fault does at a point of a process. Returns in how many seconds all of it is over."""

FILES: Final = ("write weights", "write checkpoint", "half of a file written", "a file written")
"""Points where a full disk refuses."""


def kill(wire: Wire, draw: random.Random) -> float:
    wire.process.die()
    return 0.0


def kill_after(wire: Wire, draw: random.Random) -> float:
    """The server does what it is asked for; nobody learns of it."""
    wire.kill_after = True
    return 0.0


def kill_other(wire: Wire, draw: random.Random) -> float:
    victim = draw.choice(wire.world.alive)
    if victim is wire:
        wire.process.die()
    victim.process.kill()
    return 0.0


def stop(wire: Wire, draw: random.Random) -> float:
    """SIGTERM."""
    wire.stopping = True
    return 0.0


def pause(wire: Wire, draw: random.Random) -> float:
    """SIGSTOP for longer than a lease, and SIGCONT. For a learner a successor may be started meanwhile."""
    seconds = draw.uniform(0.5, 2.5) * wire.world.settings.redis.lease_s
    _replaced(wire, draw, seconds)
    wire.process.rest(seconds)
    return 0.0


def lose_request(wire: Wire, draw: random.Random) -> float:
    wire.lose_requests = draw.choice((1, 1, 2))
    return 0.0


def lose_reply(wire: Wire, draw: random.Random) -> float:
    wire.lose_replies = draw.choice((1, 1, 2))
    return 0.0


def delay_request(wire: Wire, draw: random.Random) -> float:
    wire.process.rest(draw.uniform(0.05, 3.0))
    return 0.0


def delay_reply(wire: Wire, draw: random.Random) -> float:
    wire.delay_s = draw.uniform(0.05, 3.0)
    return wire.delay_s


def cut(wire: Wire, draw: random.Random) -> float:
    """No way to the server for a while. For a learner a successor may be started meanwhile."""
    seconds = draw.uniform(0.2, 6.0)
    wire.cut_until = wire.world.scheduler.now + seconds
    _replaced(wire, draw, seconds)
    return seconds


def _replaced(wire: Wire, draw: random.Random, within_s: float) -> None:
    if wire.role == "learner" and draw.random() < 0.7:
        wire.world.scheduler.after(draw.uniform(0.0, within_s), wire.world.start, wire.member)


def restart_server(wire: Wire, draw: random.Random) -> float:
    """kill -9: what it was told is kept by the kernel."""
    return _down(wire.world, draw, wire.world.server.restart)


def power_cut(wire: Wire, draw: random.Random) -> float:
    """What was not synced is lost. Not after the clock went back: see ``step_clock``."""
    world = wire.world
    world.lost_power = not world.clock_went_back
    return _down(world, draw, world.server.power_cut if world.lost_power else world.server.restart)


def _down(world: World, draw: random.Random, restart: Callable[[], None]) -> float:
    world.restart_server(restart)
    if draw.random() < 0.4:
        return 0.0
    seconds = draw.choice((0.3, 2.0, 12.0)) * draw.random()
    world.server.down = True
    world.scheduler.after(seconds, world.restart_server, world.server.restart)
    return seconds


def flush_all(wire: Wire, draw: random.Random) -> float:
    wire.world.flushed = True
    wire.world.server.flushall()
    return 0.0


def fill_server(wire: Wire, draw: random.Random) -> float:
    server, seconds = wire.world.server, draw.uniform(0.1, 6.0)
    server.full = draw.choice(("memory", "disk"))

    def relieved() -> None:
        server.full = None

    wire.world.scheduler.after(seconds, relieved)
    return seconds


def fill_disk(wire: Wire, draw: random.Random) -> float:
    """The one of checkpoints and weights."""
    seconds = draw.uniform(0.1, 6.0)
    wire.world.disk_full_until = wire.world.scheduler.now + seconds
    return seconds


def tear_weights(wire: Wire, draw: random.Random) -> float:
    """A file of the newest weights is damaged, and some time later it is whole again."""
    files = sorted(
        path for path in wire.world.settings.weights_dir.glob("e*-v*/*.json") if path.parent.suffix != ".tmp"
    )
    if not files:
        return 0.0
    whole = files[-1].read_bytes()
    if not whole:
        return 0.0  # torn already
    files[-1].write_bytes(draw.choice((whole[:-1], b"", bytes([whole[0] ^ 1]) + whole[1:])))
    seconds = draw.uniform(0.1, 5.0)
    wire.world.scheduler.after(seconds, _mend, files[-1], whole)
    return seconds


def _mend(file: Path, whole: bytes) -> None:
    if file.exists():
        file.write_bytes(whole)


def deliver_twice(wire: Wire, draw: random.Random) -> float:
    """A task in one actor's hands is given to another one too."""
    world = wire.world
    server, keys = world.observer().client, world.observer().keys
    if world.server.down or world.server.full:
        return 0.0
    for kind in draw.sample(("policy", "judge"), 2):
        stream = keys.tasks(kind)
        rows = server.xpending_range(stream, ACTORS, "-", "+", 10) if server.exists(stream) else []
        actors = sorted({each.member for each in world.alive if each.role == "actor"})
        if rows and actors:
            server.xclaim(stream, ACTORS, draw.choice(actors), 0, [draw.choice(rows)["message_id"]])
            return 0.0
    return 0.0


def step_clock(wire: Wire, draw: random.Random) -> float:
    """The server's, an hour on or back.

    Not back in a run that also loses power: such a server gives out the ids of lost entries again, to others, and an
    acknowledgement of the lost one hits the new one. That is promised nowhere.
    """
    world = wire.world
    back = draw.random() < 0.5 and not world.lost_power
    world.clock_went_back |= back
    world.clock_offset_s += -3600.0 if back else 3600.0
    return 0.0


FAULTS: Final[dict[Strike, float]] = {
    kill: 4,
    kill_after: 4,
    kill_other: 2,
    stop: 2,
    pause: 4,
    lose_request: 2,
    lose_reply: 3,
    delay_request: 1,
    delay_reply: 2,
    cut: 2,
    restart_server: 2,
    power_cut: 2,
    flush_all: 0.2,
    fill_server: 2,
    fill_disk: 1,
    tear_weights: 1,
    deliver_twice: 2,
    step_clock: 1,
}
AIMED: Final[tuple[Strike, ...]] = (kill, kill_after, lose_reply, lose_request, delay_reply, pause, power_cut)
TARGETS: Final = (
    "spark_transfer",
    "spark_transfer",
    "spark_settle",
    "spark_issue",
    "spark_take_fence",
    "spark_publish",
    "spark_adopt",
    "spark_bury",
    "spark_discard",
    "spark_set_idle",
    "spark_recount",
    "spark_rebuild",
    "spark_park",
    "XREADGROUP",
    "checkpoint written",
    "half of a file written",
    "weights written",
    "step",
)


class Faults:
    """The faults of one schedule."""

    def __init__(self, draw: random.Random) -> None:
        self.struck: Counter[str] = Counter()
        self._draw = draw
        self._left = draw.choice((1, 2, 3, 4, 6, 9))
        self._pace = draw.choice((30, 80, 150))
        """Mean number of points between two faults."""
        self._kinds = self._choice_of_kinds()
        self._next_in = self._gap()
        self._aim: str | None = None

    def at_point(self, wire: Wire, what: str) -> None:
        if what in FILES and wire.world.disk_full_until > wire.world.scheduler.now:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self._left == 0:
            return
        self._next_in -= 1
        if self._next_in > 0 or (self._aim is not None and self._aim != what and self._next_in > -200):
            return
        self._left -= 1
        aimed = self._aim == what
        self._aim = self._draw.choice(TARGETS) if self._draw.random() < 0.4 else None
        self._next_in = self._gap()
        self._strike(self._draw.choice(AIMED) if aimed else self._any(), wire, what)

    def _strike(self, strike: Strike, wire: Wire, what: str) -> None:
        world = wire.world
        self.struck[strike.__name__] += 1
        world.told(wire, f"*** {strike.__name__} at {what}")
        world.healthy_from = max(world.healthy_from, world.scheduler.now)
        seconds = strike(wire, self._draw)
        world.healthy_from = max(world.healthy_from, world.scheduler.now + seconds)

    def _any(self) -> Strike:
        [strike] = self._draw.choices(list(self._kinds), list(self._kinds.values()))
        return strike

    def _gap(self) -> int:
        return 1 + int(self._draw.expovariate(1.0 / self._pace))

    def _choice_of_kinds(self) -> dict[Strike, float]:
        """Half of the schedules have few kinds, so that what takes two of one kind is found too."""
        if self._draw.random() < 0.5:
            return FAULTS
        return {strike: FAULTS[strike] for strike in self._draw.sample(list(FAULTS), 4)}
