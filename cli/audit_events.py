"""The event log of a run: what the learner has put on disk, and what the server still holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.records import Event
from common.streams import Streams, position

PAGE: Final = 1000
LINE_START: Final = '{"generation"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """An event of one data set of the run."""

    generation: str
    event: Event


def read_events(streams: Streams, folder: Path) -> list[Event]:
    """All events, oldest first, each once.

    The server first: what it hands over to the disk meanwhile is then found there. The server holds the newest data
    set, unless the disk knows it.
    """
    generation = streams.generation() or ""
    on_server = [Logged(generation=generation, event=event) for event in _of_the_server(streams)]
    on_disk = list(of_the_disk(folder))
    generations = list(dict.fromkeys(logged.generation for logged in (*on_disk, *on_server)))
    once = {(generations.index(one.generation), position(one.event.id)): one.event for one in (*on_disk, *on_server)}
    return [once[place] for place in sorted(once)]


def of_the_disk(folder: Path) -> Iterator[Logged]:
    """The files of all learner epochs, in their order. A line may come twice; one that was cut off is passed over."""
    for path in sorted(folder.glob("e*.jsonl")):
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if (logged := parsed(line)) is not None:
                    yield logged


def parsed(line: str) -> Logged | None:
    """A write that failed leaves a piece of a line, and the next one goes on behind it.

    The event of the piece is still on the server or was written again: if not, the counters will tell.
    """
    try:
        fields = json.loads(line[line.rindex(LINE_START) :])
        generation, event_id = fields.pop("generation"), fields.pop("id")
        position(event_id)
    except (ValueError, KeyError, AttributeError):
        return None
    return Logged(generation=generation, event=Event(id=event_id, fields=fields))


def _of_the_server(streams: Streams) -> Iterator[Event]:
    after = "0-0"
    while events := streams.events(after, PAGE):
        yield from events
        after = events[-1].id
