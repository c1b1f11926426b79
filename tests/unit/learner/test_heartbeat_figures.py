"""What the learner's sign of life says of itself: for how long it does what it does, its waiting, its disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from learner.figures import RECENT, WaitingShare, disk_figures
from learner.heartbeat import Heartbeat


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def batch(waited_s: float, step_s: float) -> dict[str, Any]:
    return {"policy_version": 1, "seconds/wait_for_groups": waited_s, "seconds/step": step_s}


def test_the_waiting_share_is_of_the_last_batches_time() -> None:
    waiting = WaitingShare()
    assert waiting.after({}) == 0.0
    assert waiting.after({**batch(1.0, 3.0), "seconds/paused": 60.0}) == 0.25
    assert waiting.after(batch(4.0, 0.0)) == 0.625
    for _ in range(RECENT):
        last = waiting.after(batch(0.0, 1.0))
    assert last == 0.0


def test_the_disk_of_a_folder(tmp_path: Path) -> None:
    assert disk_figures(tmp_path)["disk_free_mb"] > 0
    assert disk_figures(tmp_path / "nowhere") == {}


@pytest.fixture
def said(streams) -> Any:
    return lambda: streams.members()["learner"]


def test_a_sign_of_life_carries_what_was_noted_and_what_is_asked(streams, said) -> None:
    clock, asked = Clock(), iter(range(10))
    heartbeat = Heartbeat(streams, 1, clock=clock, figures=lambda: {"disk_free_mb": next(asked)})
    heartbeat.beat("updating", 3)
    assert (said()["state_s"], said()["disk_free_mb"]) == (0.0, 0)
    heartbeat.note(waiting_share=0.5)
    heartbeat.ask(lambda: {"no_contrast": 8})
    clock.now = 7.0
    heartbeat.beat("updating", 4)
    assert said()["no_contrast"] == 8
    assert (said()["state_s"], said()["disk_free_mb"], said()["waiting_share"]) == (7.0, 1, 0.5)
    clock.now = 8.0
    heartbeat.beat("waiting for policy groups", 4)
    assert (said()["state_s"], said()["waiting_share"]) == (0.0, 0.5)
