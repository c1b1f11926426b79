"""How often an actor that generates looks for more tasks: seldom enough to cost nothing, often enough to find them."""

from __future__ import annotations

import numpy as np
import pytest

from actors.actor import LOOKING_SHARE, Actor
from actors.engine import Request
from actors.policy import POLL_S, SELDOM_S, PolicyFollower
from actors.verifiers.pool import InlineVerifier

LOOK_S, TICK_S = 0.001, 0.002


class NeverDone:
    """Generates one group for ever."""

    policy_version = 0
    groups_in_flight = 1

    def __init__(self) -> None:
        self.added: list[str] = []

    def tokenize(self, messages):
        return np.array([1], dtype=np.int32)

    def add(self, request: Request) -> None:
        self.added.append(request.key)

    def step(self):
        return []

    def forget(self) -> None:
        self.added.clear()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_empty_stream_is_looked_at_for_a_small_share_of_the_time(run, clock) -> None:
    engine = NeverDone()
    actor = Actor(
        "actor-0",
        run.streams,
        engine,
        InlineVerifier(),
        max_staleness=1,
        groups_in_flight=4,
        lease_s=1000.0,
        max_deliveries=3,
        clock=clock,
    )
    looks: list[float] = []
    claim = actor._consumer.claim

    def slow_claim(*arguments):
        clock.now += LOOK_S
        looks.append(clock.now)
        return claim(*arguments)

    actor._consumer.claim = slow_claim

    def tick(times: int) -> None:
        for _ in range(times):
            clock.now += TICK_S
            actor.tick()

    tick(500)
    assert clock.now * LOOKING_SHARE / 2 < len(looks) * LOOK_S < clock.now * LOOKING_SHARE * 1.1
    run.issue("a", "b")
    tick(round(LOOK_S / LOOKING_SHARE / TICK_S) + 1)
    assert len(engine.added) == 2, "what has come is found at the next look"
    before = len(looks)
    tick(1)
    assert len(looks) == before + 1, "after a look that found something comes another at once"


@pytest.mark.parametrize(("look_s", "every_s"), [(0.0, POLL_S), (0.001, 0.1), (0.2, SELDOM_S)])
def test_weights_are_looked_for_often_but_for_a_small_share_of_the_time(run, clock, look_s, every_s) -> None:
    follower = PolicyFollower(run.streams, NeverDone(), 1, clock)
    looks: list[float] = []
    newest_weights = run.streams.newest_weights

    def slow(*arguments):
        looks.append(clock.now)
        clock.now += look_s
        return newest_weights(*arguments)

    run.streams.newest_weights = slow
    while clock.now < 10.0:
        clock.now += TICK_S
        follower.follow()
    gaps = np.diff(looks)
    assert every_s <= gaps.min() + 1e-9
    assert gaps.max() <= every_s + 2 * TICK_S
