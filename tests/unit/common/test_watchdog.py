"""The watchdog: decided without threads; the thread itself once, on a real clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import structlog
from structlog.testing import capture_logs

from common import watchdog as module
from common.watchdog import SILENT_S, Stage, Stall, Watchdog

WAIT = Stage(name="wait_for_groups", waits_for="4 groups", unblocked_by="actors shipping", owner="learner")
NO_PROGRESS_S = 100.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Messages:
    sent: list[tuple[Stall, str]] = field(default_factory=list)
    fails: bool = False

    def last_sign(self, member: str) -> str:
        return f"{member} is not running"

    def send_stall(self, stall: Stall, sign: str) -> None:
        if self.fails:
            raise ConnectionError("no server")
        self.sent.append((stall, sign))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def dog(clock: Clock) -> Watchdog:
    return Watchdog(NO_PROGRESS_S, clock)


@pytest.fixture
def look(dog: Watchdog, clock: Clock) -> Callable[[float], list[dict]]:
    def look(now: float) -> list[dict]:
        clock.now = now
        with capture_logs() as said:
            dog.look()
        return list(said)

    return look


def test_a_stage_is_stalled_only_after_the_set_time_without_progress(dog: Watchdog, clock: Clock) -> None:
    dog.enter(WAIT)
    assert dog.stall(NO_PROGRESS_S) is None
    assert dog.stall(NO_PROGRESS_S + 1) == Stall(stage=WAIT, seconds=NO_PROGRESS_S + 1)
    clock.now = 60.0
    dog.progress()
    assert dog.stall(NO_PROGRESS_S + 1) is None
    assert dog.stall(161.0) is not None


def test_going_from_stage_to_stage_is_no_progress(dog: Watchdog, clock: Clock) -> None:
    for now in range(0, 120, 10):
        clock.now = float(now)
        dog.enter(Stage(name=f"s{now}", waits_for="x", unblocked_by="y"))
    stall = dog.stall(120.0)
    assert stall is not None
    assert (stall.stage.name, stall.seconds) == ("s110", 120.0)


def test_a_start_that_never_ends_is_a_stall_too(dog: Watchdog) -> None:
    stall = dog.stall(101.0)
    assert stall is not None
    assert stall.stage.name == "start"


def test_without_a_limit_nothing_is_a_stall(clock: Clock) -> None:
    assert Watchdog(clock=clock).stall(1e9) is None


def test_a_stall_is_logged_once_per_period_with_both_ends_of_the_wait(dog: Watchdog, look) -> None:
    dog.enter(WAIT)
    assert look(99.0) == []
    [said] = look(101.0)
    assert said.pop("where")
    assert said == {
        "event": "stalled",
        "log_level": "warning",
        "stage": "wait_for_groups",
        "stalled_s": 101.0,
        "waits_for": "4 groups",
        "unblocked_by": "actors shipping",
    }
    assert look(200.0) == []
    assert [event["stalled_s"] for event in look(201.0)] == [201.0]


def test_the_next_stall_is_logged_at_once(dog: Watchdog, clock: Clock, look) -> None:
    assert len(look(101.0)) == 1
    dog.progress()
    assert look(150.0) == []
    assert len(look(202.0)) == 1


def test_the_owner_of_the_wait_is_looked_up(dog: Watchdog, look) -> None:
    dog.messenger = messages = Messages()
    dog.enter(WAIT)
    [said] = look(101.0)
    assert said["unblocked_by"] == "actors shipping; learner is not running"
    assert look(102.0) == []
    assert [(stall.seconds, sign) for stall, sign in messages.sent] == [
        (101.0, "learner is not running"),
        (102.0, "learner is not running"),
    ]


def test_a_loop_that_goes_round_says_no_call_and_a_silent_one_says_where_it_is(
    dog: Watchdog, clock: Clock, look
) -> None:
    clock.now = 101.0 - SILENT_S / 2
    dog.enter(WAIT)
    assert "where" not in look(101.0)[0]
    [said] = look(201.0)
    assert any("test_watchdog.py" in call and "look" in call for call in said["where"])


def test_stalls_are_counted_with_the_present_one(dog: Watchdog, clock: Clock) -> None:
    clock.now = 130.0
    assert dog.counts(130.0) == {"stalls": 1, "stalls_s": 130.0}
    with capture_logs() as said:
        dog.progress()
    assert [(event["event"], event["after_s"]) for event in said] == [("stall_over", 130.0)]
    assert dog.counts(140.0) == {"stalls": 1, "stalls_s": 130.0}
    assert dog.counts(340.0) == {"stalls": 2, "stalls_s": 340.0}


def test_a_metric_has_what_ended_since_the_last_one(dog: Watchdog, clock: Clock) -> None:
    for now in (50.0, 180.0, 300.0):
        clock.now = now
        dog.progress()
    assert dog.take() == {"stalls": 2, "stalls_s": 250.0}
    assert dog.take() == {"stalls": 0, "stalls_s": 0.0}


# -- the thread ---------------------------------------------------------------------------------------------


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict]]:
    """What is logged, with the fields that are bound to the main thread's context."""
    said: list[dict] = []

    def keep(_logger: object, _name: str, event: dict) -> dict:
        said.append(dict(event))
        raise structlog.DropEvent

    monkeypatch.setattr(module, "LOOK_S", 0.01)
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
    structlog.contextvars.bind_contextvars(member="actor-0")
    yield said
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def hang_here(until: Callable[[], bool], wait: Callable[[Callable[[], bool]], None]) -> None:
    wait(until)


@pytest.fixture
def wait_for() -> Callable[[Callable[[], bool]], None]:
    def wait(ready: Callable[[], bool]) -> None:
        pause = threading.Event()
        for _ in range(2000):
            if ready():
                return
            pause.wait(0.01)
        pytest.fail("waited 20 s in vain")

    return wait


def test_the_thread_reports_a_loop_that_hangs_in_a_call_with_the_fields_of_its_process(events, wait_for) -> None:
    with Watchdog(0.02).watching() as dog:
        dog.enter(WAIT)
        hang_here(lambda: any("where" in event for event in events), wait_for)
    said = next(event for event in events if "where" in event)
    assert (said["event"], said["member"], said["stage"]) == ("stalled", "actor-0", "wait_for_groups")
    assert any("hang_here" in call for call in said["where"])
    assert "watchdog" not in {t.name for t in threading.enumerate()}


def test_a_messenger_that_fails_does_not_end_the_watch(events, wait_for) -> None:
    with Watchdog(0.02).watching() as dog:
        dog.messenger = messages = Messages(fails=True)
        wait_for(lambda: any(event["event"] == "watchdog.failed" for event in events))
        messages.fails = False
        wait_for(lambda: bool(messages.sent))
    failed = next(event for event in events if event["event"] == "watchdog.failed")
    assert "no server" in failed["reason"]
