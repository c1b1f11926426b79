"""A stream and its consumer groups as the server keeps them: which entries there are, who has them, how often."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final, NamedTuple

from simulation.replies import ReplyError

SEQUENCE_BITS: Final = 64
SEQUENCE_MASK: Final = (1 << SEQUENCE_BITS) - 1
LAST_ID: Final = (1 << 2 * SEQUENCE_BITS) - 1
NODE_ENTRIES: Final = 100
"""stream-node-max-entries: a stream is a list of nodes, and an approximate trim deletes whole nodes only."""
NODE_BYTES: Final = 4096
"""stream-node-max-bytes. How many bytes an entry takes in a node is estimated here."""
Row = list
"""[id as text, [field, value, ...]]: an entry as it is answered. Never changed once it is in a stream."""


def id_text(entry_id: int) -> bytes:
    """An id is kept as one number, milliseconds << 64 | sequence, so that it compares and hashes quickly."""
    return b"%d-%d" % (entry_id >> SEQUENCE_BITS, entry_id & SEQUENCE_MASK)


def parse_id(text: bytes, missing_sequence: int = 0) -> int:
    """Raises ReplyError unless it is MS or MS-SEQ, both of at most 64 bits."""
    ms, dash, sequence = text.partition(b"-")
    if ms.isdigit() and (sequence.isdigit() if dash else True):
        parsed = int(ms), int(sequence) if dash else missing_sequence
        if max(parsed) <= SEQUENCE_MASK:
            return parsed[0] << SEQUENCE_BITS | parsed[1]
    raise ReplyError("ERR Invalid stream ID specified as stream command argument")


class Pending(NamedTuple):
    """One entry in somebody's hands."""

    consumer: bytes
    delivered_ms: int
    deliveries: int


class Seen(NamedTuple):
    """When a consumer last asked, and last got something (-1: never); ms."""

    asked_ms: int
    active_ms: int = -1


class Group:
    """A consumer group. ``entries_read`` is None where the server cannot know it."""

    __slots__ = ("consumers", "entries_read", "last_id", "pending")

    def __init__(self, last_id: int, entries_read: int | None) -> None:
        self.last_id = last_id
        self.entries_read = entries_read
        self.pending: dict[int, Pending] = {}
        self.consumers: dict[bytes, Seen] = {}

    def copy(self) -> Group:
        twin = Group(self.last_id, self.entries_read)
        twin.pending = self.pending.copy()
        twin.consumers = self.consumers.copy()
        return twin

    def ask(self, consumer: bytes, now_ms: int) -> None:
        """A consumer exists from the first time it asks."""
        seen = self.consumers.get(consumer)
        self.consumers[consumer] = Seen(now_ms, seen.active_ms if seen else -1)

    def pending_between(self, first: int, last: int) -> list[int]:
        """Ids in order. The usual question is about one entry."""
        if first == last:
            return [first] if first in self.pending else []
        ids = sorted(self.pending)
        return ids[bisect_left(ids, first) : bisect_right(ids, last)]

    def remove_consumer(self, consumer: bytes) -> int:
        """Its pending entries are discarded; returns how many."""
        self.consumers.pop(consumer, None)
        lost = [entry_id for entry_id, entry in self.pending.items() if entry.consumer == consumer]
        for entry_id in lost:
            del self.pending[entry_id]
        return len(lost)


class Stream:
    """Entries by id, in order. ``size`` counts the bytes of their fields."""

    __slots__ = (
        "added",
        "groups",
        "ids",
        "last_id",
        "max_deleted",
        "node_bytes",
        "node_entries",
        "node_starts",
        "rows",
        "size",
    )

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.rows: dict[int, Row] = {}
        self.last_id = self.max_deleted = self.added = self.size = 0
        self.groups: dict[bytes, Group] = {}
        self.node_starts: list[int] = []
        self.node_entries = self.node_bytes = 0

    def copy(self) -> Stream:
        twin = Stream()
        twin.ids, twin.rows, twin.node_starts = self.ids.copy(), self.rows.copy(), self.node_starts.copy()
        twin.last_id, twin.max_deleted, twin.added, twin.size = self.last_id, self.max_deleted, self.added, self.size
        twin.node_entries, twin.node_bytes = self.node_entries, self.node_bytes
        twin.groups = {name: group.copy() for name, group in self.groups.items()}
        return twin

    @property
    def first_id(self) -> int:
        """0 when there is none."""
        return self.ids[0] if self.ids else 0

    # -- appending ----------------------------------------------------------------------------------------

    def next_id(self, now_ms: int) -> int:
        """Greater than every id before it, also when the clock steps back."""
        if now_ms > self.last_id >> SEQUENCE_BITS:
            return now_ms << SEQUENCE_BITS
        return self.last_id + 1

    def append(self, entry_id: int, fields: list[bytes]) -> bytes:
        size = sum(map(len, fields))
        self._grow_node(entry_id, size, len(fields))
        text = id_text(entry_id)
        self.ids.append(entry_id)
        self.rows[entry_id] = [text, fields]
        self.last_id = entry_id
        self.added += 1
        self.size += size
        return text

    def _grow_node(self, entry_id: int, size: int, parts: int) -> None:
        if not self.node_starts or self.node_entries >= NODE_ENTRIES or self.node_bytes + size >= NODE_BYTES:
            self.node_starts.append(entry_id)
            self.node_entries = self.node_bytes = 0
        self.node_entries += 1
        self.node_bytes += size + 2 * parts + 8

    # -- deleting -----------------------------------------------------------------------------------------

    def delete(self, entry_id: int) -> bool:
        """By name (XDEL). What is pending stays pending: its delivery is then empty."""
        if entry_id not in self.rows:
            return False
        self._forget(bisect_left(self.ids, entry_id), 1)
        self.max_deleted = max(self.max_deleted, entry_id)
        return True

    def trim(self, count: int) -> int:
        """Delete the oldest ``count``; a trim leaves no tombstone."""
        self._forget(0, count)
        return count

    def _forget(self, start: int, count: int) -> None:
        for entry_id in self.ids[start : start + count]:
            self.size -= sum(map(len, self.rows.pop(entry_id)[1]))
        del self.ids[start : start + count]
        if not self.ids:
            self.node_starts.clear()
        else:  # empty nodes at the front are gone
            del self.node_starts[: bisect_right(self.node_starts, self.ids[0]) - 1]

    def below(self, entry_id: int) -> int:
        """How many entries have a smaller id."""
        return bisect_left(self.ids, entry_id)

    def whole_nodes(self, surplus: int, limit: int) -> int:
        """Of the oldest ``surplus`` entries, as many as fill whole nodes, and not more than ``limit`` (0: no limit)."""
        end = 0
        for start in [*self.node_starts[1:], None]:
            node_end = len(self.ids) if start is None else bisect_left(self.ids, start)
            if node_end > surplus or (limit and node_end > limit):
                break
            end = node_end
        return end

    # -- reading ------------------------------------------------------------------------------------------

    def between(self, first: int, last: int, count: int | None = None, *, newest_first: bool = False) -> list[int]:
        ids = self.ids[bisect_left(self.ids, first) : bisect_right(self.ids, last)]
        if newest_first:
            ids.reverse()
        return ids if count is None else ids[:count]

    def after(self, last: int, count: int | None) -> list[int]:
        start = bisect_right(self.ids, last)
        return self.ids[start:] if count is None else self.ids[start : start + count]

    # -- how much of it a group has read ------------------------------------------------------------------

    def advance(self, group: Group, entry_id: int) -> None:
        """The group has now been given everything up to ``entry_id``."""
        if group.entries_read is not None and group.last_id >= self.first_id and not self._tombstone(group.last_id):
            group.entries_read += 1
        else:
            group.entries_read = self._distance(entry_id)
        group.last_id = entry_id

    def lag(self, group: Group) -> int | None:
        """Entries the group has not been given; None where the server cannot tell without counting."""
        if not self.added:
            return 0
        if group.entries_read is not None and not self._tombstone(group.last_id):
            return self.added - group.entries_read
        read = self._distance(group.last_id)
        return None if read is None else self.added - read

    def _tombstone(self, start: int) -> bool:
        """Something at or after ``start`` was deleted by name."""
        return bool(self.ids) and self.max_deleted != 0 and start <= self.max_deleted

    def _distance(self, entry_id: int) -> int | None:
        """How many entries were ever added up to this one, where that is known without counting."""
        if not self.added:
            return 0
        if not self.ids and entry_id <= self.last_id:
            return self.added
        if entry_id and entry_id < self.max_deleted:
            return None
        if entry_id >= self.last_id:
            return self.added if entry_id == self.last_id else None
        if self.max_deleted == 0 or self.max_deleted < self.first_id:
            if entry_id < self.first_id:
                return self.added - len(self.ids)
            if entry_id == self.first_id:
                return self.added - len(self.ids) + 1
        return None
