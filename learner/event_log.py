"""The event log on disk: what was issued and how it ended, kept for the audit and taken off the server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import structlog

from common.records import Event
from common.streams import Streams, position
from learner.fence import Fence

log = structlog.get_logger()

SETTLED_MS: Final = 30_000
"""Events this much older than the newest one are safe: a server loses its last second, not its last half minute."""


class EventLog:
    """Moves old events from the server to ``FOLDER/e000001.jsonl``, one file for each learner epoch.

    A learner that is killed between the two writes them again: a reader goes by (generation, id).
    """

    def __init__(self, streams: Streams, fence: Fence, folder: Path) -> None:
        self._streams = streams
        self._fence = fence
        self._path = folder / f"e{fence.epoch:06d}.jsonl"

    def spool(self) -> None:
        """Append what is old enough, make it durable, then delete it from the server. A full disk is logged."""
        newest_ms, _ = position(self._streams.newest_event())
        try:
            while events := self._old(newest_ms - SETTLED_MS):
                self._append(events)
                self._fence.hold(lambda: self._streams.forget_events(self._fence.token, events[-1].id))
        except OSError as error:
            log.error("events.failed", reason=str(error))

    def _old(self, before_ms: int) -> list[Event]:
        return [event for event in self._streams.events() if position(event.id)[0] < before_ms]

    def _append(self, events: list[Event]) -> None:
        lines = [
            json.dumps({"generation": self._fence.generation, "id": event.id, **event.fields}) + "\n"
            for event in events
        ]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
