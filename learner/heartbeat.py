"""The learner's sign of life: what it does, and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
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
        *,
        figures: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """``figures``: asked whenever something is sent, and sent with it."""
        self._heartbeat = MemberHeartbeat(streams, "learner", "learner", watchdog, clock)
        self._epoch = epoch
        self._clock = clock
        self._figures = [figures]
        self._noted: dict[str, Any] = {}
        self._state = ""
        self._state_since = clock()

    def said(self) -> Mapping[str, Any]:
        """The newest sign of life, for another thread to read."""
        return self._heartbeat.said()

    def note(self, **fields: Any) -> None:
        """What every later sign of life says, until it is noted anew."""
        self._noted |= fields

    def ask(self, figures: Callable[[], Mapping[str, Any]]) -> None:
        """These too, whenever something is sent."""
        self._figures.append(figures)

    def beat(self, state: str, policy_version: int, **fields: Any) -> None:
        """Tell the state: at once when it changes, otherwise now and then."""
        if state == self._state and not self._heartbeat.due:
            return
        if state != self._state:
            self._state, self._state_since = state, self._clock()
        asked = {name: value for figures in self._figures for name, value in figures().items()}
        more = {"state_s": round(self._clock() - self._state_since, 1), **asked, **self._noted, **fields}
        self._heartbeat.beat(state, epoch=self._epoch, policy_version=policy_version, **more)

    def stop(self) -> None:
        self._heartbeat.stop()
