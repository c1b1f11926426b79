"""What the storm does to a run: each fault strikes at once, and names what is to be undone and when."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import redis

from chaos.rig import Rig
from common.keys import ACTORS, LEARNER, RECYCLER

Heal = tuple[float, Callable[[], object]]
"""Seconds from now, and what to do then."""
Strike = Callable[[Rig, random.Random], list[Heal]]

MARKERS: Final = {
    "actor": ("spark_transfer", "XREADGROUP", "spark_set_idle", "XPENDING", "XREVRANGE", "spark_heartbeat"),
    "recycler": ("spark_transfer", "spark_discard", "XREADGROUP", "HGETALL", "spark_report"),
    "learner": (
        "spark_issue",
        "spark_settle",
        "spark_trim",
        "spark_publish",
        "spark_adopt",
        "spark_report",
        "spark_transfer",
        "XREADGROUP",
        "HGETALL",
        "GET",
    ),
}
"""Commands whose replies get lost, by role."""


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    weight: float
    strike: Strike


def _actor(rig: Rig, draw: random.Random) -> str:
    return draw.choice(rig.names("actor"))


def kill_actor(rig: Rig, draw: random.Random) -> list[Heal]:
    rig.members[_actor(rig, draw)].kill()
    return []


def kill_recycler(rig: Rig, draw: random.Random) -> list[Heal]:
    rig.members["recycler"].kill()
    return []


def kill_learner(rig: Rig, draw: random.Random) -> list[Heal]:
    rig.members["learner"].kill()
    return []


def kill_everyone(rig: Rig, draw: random.Random) -> list[Heal]:
    """All members and the server in one moment."""
    for member in rig.members.values():
        member.kill()
    return kill_server(rig, draw)


def zombie_actor(rig: Rig, draw: random.Random) -> list[Heal]:
    """Paused until its lease has run out, then awake again with groups that others have taken over."""
    member = rig.members[_actor(rig, draw)]
    member.signal(signal.SIGSTOP)
    pause_s = rig.settings.redis.lease_s * draw.uniform(1.1, 2.0)
    return [(pause_s, lambda: member.signal(signal.SIGCONT))]


def paused_recycler(rig: Rig, draw: random.Random) -> list[Heal]:
    member = rig.members["recycler"]
    member.signal(signal.SIGSTOP)
    return [(draw.uniform(0.2, 2.0), lambda: member.signal(signal.SIGCONT))]


def zombie_learner(rig: Rig, draw: random.Random) -> list[Heal]:
    """Paused while a second learner takes over; awake again it must end with 42."""
    zombie = rig.members["learner"]
    zombie.signal(signal.SIGSTOP)
    rig.spawn("learner", "learner")
    return [(draw.uniform(1.0, 3.0), lambda: zombie.signal(signal.SIGCONT))]


def kill_server(rig: Rig, draw: random.Random) -> list[Heal]:
    rig.server.kill()
    return [(draw.uniform(0.0, 0.5), rig.server.start)]


def cut_power(rig: Rig, draw: random.Random) -> list[Heal]:
    rig.bytes_lost += rig.server.cut_power(draw)
    return [(draw.uniform(0.0, 0.5), rig.server.start)]


def pause_server(rig: Rig, draw: random.Random) -> list[Heal]:
    """A server that hangs, for longer than its clients wait for an answer or not."""
    pid = rig.server.pid
    rig.server.signal(signal.SIGSTOP, pid)
    return [(draw.choice((0.3, 1.0, 3.5)), lambda: rig.server.signal(signal.SIGCONT, pid))]


def cut_connections(rig: Rig, draw: random.Random) -> list[Heal]:
    for role in draw.sample(sorted(rig.proxies), draw.randint(1, 3)):
        rig.proxies[role].cut()
    return []


def lose_replies(rig: Rig, draw: random.Random) -> list[Heal]:
    role = draw.choice(sorted(rig.proxies))
    rig.proxies[role].lose(draw.choice(MARKERS[role]), draw.randint(1, 4))
    return []


def black_hole(rig: Rig, draw: random.Random) -> list[Heal]:
    proxy = rig.proxies[draw.choice(sorted(rig.proxies))]
    proxy.hold()
    return [(draw.uniform(0.5, 4.0), lambda: proxy.hold(False))]


def deliver_twice(rig: Rig, draw: random.Random) -> list[Heal]:
    """Pending entries change hands behind their owners' backs, and some come back."""
    keys, client = rig.streams.keys, rig.client
    stream, group = draw.choice(
        [
            (keys.tasks("policy"), ACTORS),
            (keys.tasks("judge"), ACTORS),
            (keys.rollouts("policy"), LEARNER),
            (keys.rollouts("judge"), LEARNER),
            (keys.rollouts("policy"), RECYCLER),
        ]
    )
    rows: Any = client.xpending_range(stream, group, "-", "+", 30)
    owners = {row["message_id"]: row["consumer"] for row in rows if draw.random() < 0.5}
    if not owners:
        return []
    thief = _actor(rig, draw) if group == ACTORS else "thief"
    client.xclaim(stream, group, thief, 0, list(owners), justid=draw.random() < 0.5)

    def give_back() -> None:
        for entry_id, owner in owners.items():
            client.xclaim(stream, group, owner, 0, [entry_id], justid=True)

    if group == RECYCLER:  # it is alone in its group, and looks for nobody's entries but its own
        give_back()
        return []
    return [(draw.uniform(0.0, 0.5), give_back)] if draw.random() < 0.5 else []


def fill_memory(rig: Rig, draw: random.Random) -> list[Heal]:
    memory: Any = rig.client.info("memory")
    rig.client.config_set("maxmemory", max(1, int(memory["used_memory"] * draw.uniform(0.5, 1.0))))
    return [(draw.uniform(0.2, 1.5), lambda: rig.client.config_set("maxmemory", 0))]


FAULTS: Final = (
    Fault("kill -9 actor", 4, kill_actor),
    Fault("kill -9 recycler", 2, kill_recycler),
    Fault("kill -9 learner", 3, kill_learner),
    Fault("kill -9 everything", 0.5, kill_everyone),
    Fault("zombie actor", 2, zombie_actor),
    Fault("paused recycler", 1, paused_recycler),
    Fault("zombie learner", 1.5, zombie_learner),
    Fault("kill -9 server", 1.5, kill_server),
    Fault("power cut", 2, cut_power),
    Fault("server hangs", 0.7, pause_server),
    Fault("connections cut", 3, cut_connections),
    Fault("replies lost", 6, lose_replies),
    Fault("black hole", 1.5, black_hole),
    Fault("delivered twice", 3, deliver_twice),
    Fault("out of memory", 1.5, fill_memory),
)
SERVER_FAULTS: Final = (redis.RedisError, OSError)
"""What a strike meets when the server is down already: it counts as no fault."""
