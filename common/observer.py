"""What an observer reads of a run on the server. Nothing here writes: a run that is looked at stays as it is.

Ages are taken from stream ids and the server's own time, so the observer's clock does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import redis

from common.codec import decode
from common.errors import InvalidMessage, ServerError
from common.heartbeat import TTL_S
from common.keys import ACTORS
from common.messages import Kind, WeightManifest
from common.records import DeadLetter, Records, letter_of
from common.server import address

MOST_LEASES: Final = 1000
"""Leases of one stream that are looked at, the oldest entries first."""
MANIFESTS: Final = 4
KINDS: Final[tuple[Kind, ...]] = ("policy", "judge")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    version: str
    used_bytes: int
    most_bytes: int
    """Its maxmemory; 0 without a limit."""
    disk_trouble: str
    """Why it refuses writes for want of its disk; empty when it does not."""
    up_s: int
    now_ms: int
    """Its clock, Unix milliseconds."""

    @property
    def memory_share(self) -> float:
        return self.used_bytes / self.most_bytes if self.most_bytes else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What one consumer group has before it on one stream."""

    stream: str
    """Without the run's prefix: ``tasks:policy``."""
    group: str
    pending: int
    """Delivered and not acknowledged."""
    undelivered: int
    oldest_pending_s: float | None
    """Age of the oldest pending entry since it was put on the stream; None when nothing is pending."""
    oldest_undelivered_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    stream: str
    id: str
    owner: str
    idle_s: float
    """Since it was delivered or renewed."""
    deliveries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """The newest weights."""

    epoch: int
    version: int
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dead:
    count: int
    newest: DeadLetter | None


class Observer(Records):
    """Typed calls that only read. A call that the server does not answer raises ServerError after ``give_up_s``."""

    recycles: bool = True
    _dead: tuple[tuple[int, str], Dead] | None = None

    def _retry(self, call: Callable[[], T], *, produces: bool = False) -> T:
        """Whatever the server says that is no answer becomes a ServerError, but for what others tell by its words."""
        try:
            return super()._retry(call, produces=produces)
        except redis.RedisError as error:
            if any(words in str(error) for words in ("Function not found", "NOGROUP", "no such key")):
                raise
            raise ServerError(f"the server at {address(self.client)} refuses to be looked at: {error}") from error

    def create_groups(self) -> None:
        """A group is missing, and is not made: the streams are the run's own."""
        raise ServerError(
            f"the server at {address(self.client)} has lost streams of run {self.keys.run}; "
            "its learner makes them again when it goes on"
        )

    def server(self) -> ServerState:
        info: Any = self._retry(self.client.info)
        return ServerState(
            version=str(info.get("valkey_version", info.get("redis_version", "?"))),
            used_bytes=int(info.get("used_memory", 0)),
            most_bytes=int(info.get("maxmemory", 0)),
            disk_trouble=_disk_trouble(info),
            up_s=int(info.get("uptime_in_seconds", 0)),
            now_ms=int(info["server_time_usec"]) // 1000,
        )

    def heard_s(self, beats: Mapping[str, Mapping[str, Any] | None]) -> dict[str, float]:
        """Seconds since the last heartbeat of every member that lives. Empty with credentials that may not ask."""
        alive = {name: beat for name, beat in beats.items() if beat}

        def read() -> list[Any]:
            with self.client.pipeline(transaction=False) as pipe:
                for name in alive:
                    pipe.pttl(self.keys.heartbeat(name))
                return pipe.execute(raise_on_error=False)

        left = zip(alive.items(), self._retry(read) if alive else [], strict=True)
        return {
            name: max(0.0, TTL_S[str(beat["role"])] - ms / 1000)
            for (name, beat), ms in left
            if isinstance(ms, int) and ms > 0 and beat.get("role") in TTL_S
        }

    def queues(self, now_ms: int) -> tuple[Queue, ...]:
        """Every stream's consumer groups, with what each has before it."""
        places = [
            (stream, group)
            for stream, groups in self.keys.groups(recycles=self.recycles).items()
            for group in groups
            if stream != self.keys.returned
        ]

        def read() -> list[Any]:
            with self.client.pipeline(transaction=False) as pipe:
                for stream, group in places:
                    pipe.fcall("spark_backlog", 1, stream, group)
                    pipe.xpending(stream, group)
                    pipe.xinfo_groups(stream)
                return pipe.execute()

        try:
            answers = self._retry(read)
        except redis.ResponseError as error:
            if "NOGROUP" not in str(error) and "no such key" not in str(error):
                raise
            self.create_groups()
            raise
        rows = zip(places, answers[0::3], answers[1::3], answers[2::3], strict=True)
        return tuple(self._queue(place, backlog, pending, groups, now_ms) for place, backlog, pending, groups in rows)

    def _queue(self, place: tuple[str, str], backlog: Any, pending: Any, groups: Any, now_ms: int) -> Queue:
        stream, group = place
        undelivered = int(backlog[1])
        reached = next(info["last-delivered-id"] for info in groups if info["name"] == group.encode())
        return Queue(
            stream=self.short(stream),
            group=group,
            pending=int(backlog[0]),
            undelivered=undelivered,
            oldest_pending_s=_age_s(pending["min"], now_ms),
            oldest_undelivered_s=self._next_age_s(stream, group, reached, now_ms) if undelivered else None,
        )

    def _next_age_s(self, stream: str, group: str, reached: bytes, now_ms: int) -> float | None:
        """Age of the first entry that the group has not read. Its payload stays on the server."""
        found = self._call("spark_unacked", [stream], [group, reached.decode(), 1])
        return _age_s(found[0], now_ms)

    def leases(self) -> tuple[Lease, ...]:
        """What actors hold at the moment."""
        streams = [self.keys.tasks(kind) for kind in KINDS]

        def read() -> list[Any]:
            with self.client.pipeline(transaction=False) as pipe:
                for stream in streams:
                    pipe.xpending_range(stream, ACTORS, "-", "+", MOST_LEASES)
                return pipe.execute()

        return tuple(
            Lease(
                stream=self.short(stream),
                id=row["message_id"].decode(),
                owner=row["consumer"].decode(errors="backslashreplace"),
                idle_s=int(row["time_since_delivered"]) / 1000,
                deliveries=int(row["times_delivered"]),
            )
            for stream, rows in zip(streams, self._retry(read), strict=True)
            for row in rows
        )

    def announced(self, now_ms: int) -> Announced | None:
        """The newest of the last manifests; None before the first."""
        rows: Any = self._retry(lambda: self.client.xrevrange(self.keys.weights, count=MANIFESTS))
        found = []
        for entry_id, fields in rows:
            try:
                manifest = decode(WeightManifest, fields.get(b"m", b""))
            except InvalidMessage:  # not ours to report: actors log it, and keep what they have
                continue
            age_s = _age_s(entry_id, now_ms) or 0.0
            found.append(Announced(epoch=manifest.epoch, version=manifest.version, age_s=age_s))
        return max(found, key=lambda one: (one.epoch, one.version), default=None)

    def dead(self, died: int) -> Dead:
        """Letters and the newest of them. ``died``: tasks that the ledger counts as dead; it is fetched again when
        a count has changed, for its payload may be large."""
        count = int(self._retry(lambda: self.client.xlen(self.keys.dead)))
        key = (count, str(died))
        if self._dead is None or self._dead[0] != key:
            rows: Any = self._retry(lambda: self.client.xrevrange(self.keys.dead, count=1)) if count else []
            newest = letter_of(rows[0][0].decode(), rows[0][1]) if rows else None
            self._dead = (key, Dead(count=count, newest=newest))
        return self._dead[1]

    def short(self, stream: str) -> str:
        """A key without the run's prefix."""
        return stream.removeprefix(self.keys.weights.removesuffix("weights"))


def _disk_trouble(info: Mapping[str, Any]) -> str:
    if str(info.get("aof_enabled", "0")) == "1" and info.get("aof_last_write_status", "ok") != "ok":
        return "its append-only file cannot be written"
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        return "its last snapshot to disk failed"
    return ""


def _age_s(entry_id: Any, now_ms: int) -> float | None:
    """Of a stream entry, by the server's clock; None without one."""
    if not entry_id:
        return None
    milliseconds, _, _ = (entry_id.decode() if isinstance(entry_id, bytes) else str(entry_id)).partition("-")
    return max(0.0, (now_ms - int(milliseconds)) / 1000)
