"""The share of its time that an actor waits: of the last signs of life, not of its whole life."""

from __future__ import annotations

from actors.waiting import RECENT, WaitingShare


def test_the_share_is_of_the_last_signs_of_life() -> None:
    waiting = WaitingShare()
    assert waiting.after(0.0, 0.0) == 0.0
    assert waiting.after(4.0, 1.0) == 0.25
    for beat in range(RECENT):
        share = waiting.after(6.0 + 2 * beat, 3.0 + 2 * beat)
    assert share == 1.0
