"""The learner's sign of life: what it does, and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from common.streams import Streams

EVERY_S: Final = 2.0
TTL_S: Final = 300.0
"""Long, since an optimizer step of a large model sends nothing while it lasts."""


class Heartbeat:
    def __init__(self, streams: Streams, epoch: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._streams = streams
        self._epoch = epoch
        self._clock = clock
        self._state = ""
        self._beaten = float("-inf")

    def beat(self, state: str, policy_version: int, **fields: Any) -> None:
        """Tell the state: at once when it changes, otherwise every EVERY_S."""
        if state == self._state and self._clock() - self._beaten < EVERY_S:
            return
        self._state, self._beaten = state, self._clock()
        beat = {"role": "learner", "state": state, "epoch": self._epoch, "policy_version": policy_version, **fields}
        self._streams.heartbeat("learner", beat, ttl_s=TTL_S)

    def stop(self) -> None:
        self._streams.heartbeat("learner", {"role": "learner", "state": "stopped"}, ttl_s=1.0)
