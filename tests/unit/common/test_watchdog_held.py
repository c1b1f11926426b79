"""A run that a user holds: who waits for work is no stall, who is stuck in its work is."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from common.watchdog import Stage, Stall, Watchdog

IDLE = Stage(name="wait_for_tasks", waits_for="a task", unblocked_by="the learner", owner="learner", idle=True)
BUSY = Stage(name="generate", waits_for="2 groups", unblocked_by="the engine")
PAUSED = "paused by ann since 12:00"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Messenger:
    says: str = PAUSED
    sent: list[Stall] = field(default_factory=list)

    def held(self) -> str:
        return self.says

    def last_sign(self, member: str) -> str:
        return ""

    def send_stall(self, stall: Stall, sign: str) -> None:
        self.sent.append(stall)


@pytest.fixture
def dog() -> Watchdog:
    dog = Watchdog(100.0, Clock())
    dog.messenger = Messenger()
    return dog


def look(dog: Watchdog, now: float) -> list[str]:
    dog._clock.now = now
    with capture_logs() as said:
        dog.look()
    return [event["event"] for event in said]


def test_an_idle_stage_of_a_held_run_rests_and_says_so_once(dog: Watchdog) -> None:
    dog.enter(IDLE)
    assert look(dog, 101.0) == ["rests"]
    assert dog.held == PAUSED
    assert look(dog, 150.0) == []
    assert look(dog, 202.0) == []  # the same pause still
    assert dog.messenger.sent == []
    assert dog.counts(202.0) == {"stalls": 0, "stalls_s": 0.0}


def test_a_stage_that_works_is_stalled_in_a_held_run_too(dog: Watchdog) -> None:
    dog.enter(BUSY)
    assert look(dog, 101.0) == ["stalled"]
    assert dog.held == ""


def test_it_is_a_stall_when_nobody_holds_the_run_any_more(dog: Watchdog) -> None:
    dog.enter(IDLE)
    look(dog, 101.0)
    dog.messenger.says = ""
    assert look(dog, 202.0) == ["stalled"]
    assert [round(stall.seconds) for stall in dog.messenger.sent] == [101]
    assert dog.held == ""


@pytest.mark.parametrize("goes_on", [lambda dog: dog.progress(), lambda dog: dog.enter(BUSY)])
def test_who_works_again_is_held_no_more(dog: Watchdog, goes_on) -> None:
    dog.enter(IDLE)
    look(dog, 101.0)
    goes_on(dog)
    assert dog.held == ""


def test_the_holder_itself_may_rest_without_asking(dog: Watchdog) -> None:
    dog.messenger.says = ""
    dog.enter(IDLE)
    dog._clock.now = 99.0
    dog.rest()
    assert look(dog, 150.0) == []
    assert look(dog, 200.0) == ["stalled"]
