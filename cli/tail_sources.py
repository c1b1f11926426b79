"""What `spark tail` can look at: streams, the archive, the event log, and files of the run directory.

A source is opened at one moment. ``newest`` goes back from there, ``more`` forward: nothing comes twice, and nothing is
missed between them.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

from cli.audit_events import parsed
from cli.tail_files import Growing, newest_lines
from cli.tail_rows import Row, archived_row, event_row
from common.archive import ArchiveReader, blocks_of, segments
from common.entries import Entries, Entry
from common.streams import position

POLL_S: Final = 0.25


class Source(Protocol):
    def newest(self) -> Iterator[Row]:
        """What was there when the source was opened, the newest first."""
        ...

    def more(self, wait_s: float) -> list[Row]:
        """What has come since the last call, oldest first; waits up to ``wait_s`` when there is nothing."""
        ...


class StreamSource:
    """Entries of streams; ``row_of``: by stream, how one is shown."""

    def __init__(self, entries: Entries, row_of: Mapping[str, Callable[[Entry], Row]]) -> None:
        self._entries = entries
        self._row_of = row_of
        self._reached = {stream: entries.last_id(stream) for stream in row_of}

    def newest(self) -> Iterator[Row]:
        started = dict(self._reached)
        streams = [self._entries.newest_first(stream, until) for stream, until in started.items()]
        for entry in heapq.merge(*streams, key=lambda entry: position(entry.id), reverse=True):
            yield self._row_of[entry.stream](entry)

    def more(self, wait_s: float) -> list[Row]:
        found = self._entries.after(self._reached, block_ms=max(1, int(wait_s * 1000)))
        for entry in found:
            self._reached[entry.stream] = entry.id
        return [self._row_of[entry.stream](entry) for entry in sorted(found, key=lambda entry: position(entry.id))]


class EventSource:
    """The event log: the server holds the last minute or two, the run directory what was before."""

    def __init__(self, live: StreamSource, folder: Path) -> None:
        self._live = live
        self._folder = folder

    def newest(self) -> Iterator[Row]:
        seen = set()
        for row in itertools.chain(self._live.newest(), self._of_the_disk()):
            key = (row.at, row.uids, str(row.full()["id"]))
            if key not in seen:  # on its way to the disk it is in both places
                seen.add(key)
                yield row

    def _of_the_disk(self) -> Iterator[Row]:
        for path in sorted(self._folder.glob("e*.jsonl"), reverse=True):
            for line in newest_lines(path):
                if (logged := parsed(line.decode(errors="replace"))) is not None:
                    yield event_row(logged.event.id, logged.event.fields)

    def more(self, wait_s: float) -> list[Row]:
        return self._live.more(wait_s)


def live_event(entry: Entry) -> Row:
    decoded = {
        name.decode(errors="backslashreplace"): value.decode(errors="backslashreplace")
        for name, value in entry.fields.items()
    }
    return event_row(entry.id, decoded)


class LineSource:
    """Lines of the files that match ``pattern``, each through ``row_of``; lines that give no row are passed over."""

    def __init__(self, folder: Path, pattern: str, row_of: Callable[[bytes], Row | None]) -> None:
        self._folder = folder
        self._pattern = pattern
        self._row_of = row_of
        self._files = {path: Growing(path) for path in folder.glob(pattern)}

    def newest(self) -> Iterator[Row]:
        files = [self._rows(newest_lines(path, growing.start)) for path, growing in self._files.items()]
        return heapq.merge(*files, key=_time_of, reverse=True)

    def more(self, wait_s: float) -> list[Row]:
        for path in self._folder.glob(self._pattern):
            self._files.setdefault(path, Growing(path, from_start=True))
        found = [row for growing in self._files.values() for row in self._rows(iter(growing.lines()))]
        if not found:
            time.sleep(min(wait_s, POLL_S))
        return sorted(found, key=_time_of)

    def _rows(self, lines: Iterator[bytes]) -> Iterator[Row]:
        return (row for line in lines if (row := self._row_of(line)) is not None)


def _time_of(row: Row) -> float:
    return row.at or 0.0


class ArchiveSource:
    """The groups that the learner consumed."""

    def __init__(self, directory: Path) -> None:
        self._reader = ArchiveReader(directory)
        self._reached = ("", 0)
        for path in segments(directory)[-1:]:
            self._reached = (path.name, max((block.end for block in blocks_of(path)), default=0))

    def newest(self) -> Iterator[Row]:
        return map(archived_row, self._reader.newest_first())

    def more(self, wait_s: float) -> list[Row]:
        rows: list[Row] = []
        for path in segments(self._reader.directory):
            name, end = self._reached
            if path.name < name:
                continue
            for block in blocks_of(path, end if path.name == name else 0):
                rows += map(archived_row, self._reader.read(block, block.entries))
                self._reached = (path.name, block.end)
        if not rows:
            time.sleep(min(wait_s, POLL_S))
        return rows
