"""Looking at streams without taking part: ranges only, never a consumer group, so nobody's work is disturbed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import redis

from common.errors import ServerError
from common.records import Records
from common.server import address
from common.streams import position

PAGE: Final = 20
"""Entries read at once: each may be as large as a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    stream: str
    id: str
    fields: Mapping[bytes, bytes]

    @property
    def at(self) -> float:
        """Unix seconds on the server's clock."""
        return int(self.id.partition("-")[0]) / 1000

    def text(self, name: str) -> str:
        return self.fields.get(name.encode(), b"").decode(errors="backslashreplace")

    @property
    def payload(self) -> bytes:
        return self.fields.get(b"m", b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who has an entry in hand."""

    consumer: str
    idle_s: float
    """Since it was delivered, or its lease renewed."""
    deliveries: int


class Entries(Records):
    """Reads entries of a run's streams by their ids. Raises ServerError when the server stays away."""

    def create_groups(self) -> None:
        raise ServerError(f"the server at {address(self.client)} has lost the groups of run {self.keys.run}")

    def last_id(self, stream: str) -> str:
        rows: Any = self._retry(lambda: self.client.xrevrange(stream, count=1))
        return rows[0][0].decode() if rows else "0-0"

    def newest_first(self, stream: str, until: str = "+") -> Iterator[Entry]:
        """The entries of a stream up to an id, a page at a time."""
        while rows := self._page(stream, until):
            yield from (_entry(stream, row) for row in rows)
            until = f"({rows[-1][0].decode()}"

    def _page(self, stream: str, until: str) -> list[Any]:
        rows: Any = self._retry(lambda: self.client.xrevrange(stream, max=until, count=PAGE))
        return list(rows)

    def after(self, reached: Mapping[str, str], block_ms: int | None = None) -> list[Entry]:
        """Entries after an id, of each stream; waits ``block_ms`` for the first when there is none."""
        wanted: dict[Any, Any] = dict(reached)
        answer: Any = self._retry(lambda: self.client.xread(wanted, count=PAGE, block=block_ms))
        return [_entry(stream.decode(), row) for stream, rows in answer or [] for row in rows]

    def holder(self, stream: str, group: str, entry_id: str) -> Holder | None:
        """The consumer that has the entry; None when nobody has, or not any more."""
        try:
            rows: Any = self._retry(lambda: self.client.xpending_range(stream, group, entry_id, entry_id, 1))
        except redis.ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            return None
        if not rows:
            return None
        row = rows[0]
        return Holder(
            consumer=row["consumer"].decode(errors="backslashreplace"),
            idle_s=int(row["time_since_delivered"]) / 1000,
            deliveries=int(row["times_delivered"]),
        )

    def is_read(self, stream: str, group: str, entry_id: str) -> bool:
        """The group was given the entry once: unless somebody holds it still, the group is through with it."""
        try:
            groups: Any = self._retry(lambda: self.client.xinfo_groups(stream))
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            return False
        reached = [info["last-delivered-id"].decode() for info in groups if info["name"] == group.encode()]
        return any(position(entry_id) <= position(last) for last in reached)


def _entry(stream: str, row: Any) -> Entry:
    return Entry(stream=stream, id=row[0].decode(), fields=row[1] or {})
