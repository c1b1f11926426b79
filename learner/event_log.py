"""The event log on disk: what was issued and how it ended, kept for the audit and taken off the server."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from common.records import Event
from common.streams import Streams, position
from learner.fence import Fence

log = structlog.get_logger()

SETTLED_S: Final = 30.0
"""Events that were there this long ago are safe: a server loses its last second, not its last half minute."""


class EventLog:
    """Moves old events from the server to ``FOLDER/e000001.jsonl``, one file for each learner epoch.

    A learner that is killed between the two writes them again: a reader goes by (generation, id).
    """

    def __init__(
        self, streams: Streams, fence: Fence, folder: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._streams = streams
        self._fence = fence
        self._path = folder / f"e{fence.epoch:06d}.jsonl"
        self._clock = clock
        self._seen: list[tuple[float, str]] = []
        """When which event was the newest. Not by the ids: the server's clock may jump."""

    def spool(self) -> None:
        """Append what is old enough, make it durable, then delete it from the server. A full disk is logged."""
        now = self._clock()
        self._seen.append((now, self._streams.newest_event()))
        settled = [event_id for seen, event_id in self._seen if now - seen > SETTLED_S]
        if not settled:
            return
        self._seen = self._seen[len(settled) - 1 :]
        try:
            while events := self._until(settled[-1]):
                self._append(events)
                last = events[-1].id
                self._fence.hold(lambda: self._streams.forget_events(self._fence.token, last))  # noqa: B023
        except OSError as error:
            log.error("events.failed", reason=str(error))

    def _until(self, last: str) -> list[Event]:
        return [event for event in self._streams.events() if position(event.id) <= position(last)]

    def _append(self, events: list[Event]) -> None:
        """All of the lines, or none: half a line of an earlier try is cut off."""
        lines = [{"generation": self._fence.generation, "id": event.id, **event.fields} for event in events]
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                written = file.write(text)
                if written != len(text):
                    raise OSError(f"{self._path}: {written} of {len(text)} bytes were written")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
