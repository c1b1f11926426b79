"""The learner's sign of life: what it does, and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from common.heartbeat import Heartbeat as MemberHeartbeat
from common.streams import Streams
from common.watchdog import Watchdog


class Heartbeat:
    def __init__(
        self,
        streams: Streams,
        epoch: int,
        watchdog: Watchdog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._heartbeat = MemberHeartbeat(streams, "learner", "learner", watchdog, clock)
        self._epoch = epoch
        self._state = ""

    def beat(self, state: str, policy_version: int, **fields: Any) -> None:
        """Tell the state: at once when it changes, otherwise now and then."""
        if state == self._state and not self._heartbeat.due:
            return
        self._state = state
        self._heartbeat.beat(state, epoch=self._epoch, policy_version=policy_version, **fields)

    def stop(self) -> None:
        self._heartbeat.stop()
