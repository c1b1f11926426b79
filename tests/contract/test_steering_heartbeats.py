"""What members of a paused run say of themselves: in their heartbeats, on the real server."""

from __future__ import annotations

import pytest

from actors.stages import WAIT_FOR_TASKS
from common.heartbeat import Heartbeat
from common.steering import Steering
from common.watchdog import Stage, Watchdog

HELD = Steering(mode="paused", by="ann", since=0.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def actor(run) -> Heartbeat:
    clock = Clock()
    return Heartbeat(run.streams, "actor-0", "actor", Watchdog(100.0, clock), clock)


def beat(actor: Heartbeat, run, stage: Stage) -> dict:
    actor.watchdog.enter(stage)
    actor._clock.now += 101.0
    actor.beat("waiting for tasks", policy_version=3)
    return run.streams.members()["actor-0"]


def test_an_idle_actor_of_a_paused_run_says_who_paused_it(run, actor: Heartbeat) -> None:
    run.streams.report_progress(steering=HELD.to_json())
    said = beat(actor, run, WAIT_FOR_TASKS)
    assert said["state"] == "paused by ann since 1970-01-01 00:00:00 UTC"
    assert "stalled_s" not in said
    assert said["stalls"] == 0


def test_an_actor_that_is_stuck_in_its_work_is_stalled_all_the_same(run, actor: Heartbeat) -> None:
    run.streams.report_progress(steering=HELD.to_json())
    assert beat(actor, run, Stage(name="generate", waits_for="w", unblocked_by="u"))["state"] == "stalled"


@pytest.mark.parametrize("text", ["", Steering().to_json(), "nonsense"])
def test_without_a_pause_it_is_a_stall(run, actor: Heartbeat, text: str) -> None:
    if text:
        run.streams.report_progress(steering=text)
    assert beat(actor, run, WAIT_FOR_TASKS)["state"] == "stalled"
