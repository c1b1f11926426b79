"""The streams of one run: everything the processes say to the server, each call safe to repeat.

streams.md holds the delivery protocol and why each call may be repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

import redis

from common.codec import encode
from common.errors import Fenced, WipedServer
from common.keys import ACTORS, RECYCLER
from common.messages import Kind, Outcome, Task, WeightManifest
from common.records import CALL_ENTRIES, Records, chunks, lives
from common.server import Client, is_full
from common.steering import Command

HAND_BACK_IDLE_MS: Final = 1_000_000_000
TRIM_SLICE: Final = 100
"""Smallest slice of a trim: entries of one node of a stream, which the server deletes whole."""
DISK_WAIT_MS: Final = 3000
"""The log is fsynced every second; a full disk is not waited for here."""
CLOCK_TOLERANCE_MS: Final = 1000
"""A smaller step back of the server's clock is let pass: it prolongs leases by no more."""
WEIGHTS_REMEMBERED: Final = 1000
"""Manifests kept on the weights stream; only the last few are ever read."""
COMMANDS_REMEMBERED: Final = 1000
"""Of the control stream. The learner has long journaled older ones."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One stream entry in a consumer's hands. ``payload`` is not decoded yet: it may be poison."""

    stream: str
    id: str
    uid: str
    payload: bytes
    deliveries: int = 1

    @property
    def key(self) -> str:
        """Unique in the run: two streams may hand out the same id in the same millisecond."""
        return f"{self.stream} {self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    uid: str
    payload: bytes

    @classmethod
    def of(cls, uid: str, message: object) -> Product:
        return cls(uid=uid, payload=encode(message))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an entry of the learner ends. Without a uid it is acked but counted nowhere (a duplicate)."""

    stream: str
    id: str
    uid: str
    outcome: Outcome
    kind: Kind


class Streams(Records):
    """Typed calls over one client. Lost connections are retried until ``give_up_s``, then ServerError.

    A server out of memory or disk refuses the producers' calls (``issue``, ``transfer`` of products) with ServerFull.
    Every other call needs no room, or waits until there is some: a server that heals is no reason to die.
    """

    def __init__(
        self,
        client: Client,
        run: str,
        *,
        recycles: bool = True,
        give_up_s: float = 60.0,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(client, run, give_up_s=give_up_s, seed=seed, clock=clock, sleep=sleep)
        self.recycles = recycles

    # -- set-up -------------------------------------------------------------------------------------

    def create_groups(self) -> None:
        """Create every stream and consumer group, from id 0: a group created at ``$`` misses what came before it."""
        for stream, groups in self.keys.groups(recycles=self.recycles).items():
            for group in groups:
                self._retry(partial(self._create_group, stream, group))

    def remove_unused_groups(self) -> None:
        """Of a run whose judge was switched off: a group that nobody reads for would keep every entry for ever."""
        if self.recycles:
            return
        try:
            self._retry(lambda: self.client.xgroup_destroy(self.keys.rollouts("policy"), RECYCLER))
        except redis.ResponseError as error:  # the server lost the stream a moment ago, and the group with it
            if "requires the key to exist" not in str(error):
                raise

    def _create_group(self, stream: str, group: str) -> None:
        try:
            self.client.xgroup_create(stream, group, id="0", mkstream=True)
        except redis.ResponseError as error:
            # a full server refuses even to say that the group exists
            if not str(error).startswith("BUSYGROUP") and not (is_full(error) and self._has_group(stream, group)):
                raise

    def _has_group(self, stream: str, group: str) -> bool:
        try:
            groups: Any = self.client.xinfo_groups(stream)
        except redis.ResponseError as error:  # no stream, or no more: it may be flushed at any moment
            if "no such key" not in str(error):
                raise
            return False
        return group.encode() in [info["name"] for info in groups]

    def take_fence(self, epoch: int, token: str) -> bool:
        """Make ``token`` ("EPOCH:NONCE") the only one that may issue and settle.

        False when a higher epoch holds the fence, or another learner that took the same epoch from another store.
        When this returns the fence is on the server's disk, where the server can say so: one that came back without it
        would let a predecessor acknowledge what this learner does not have.
        """
        while self._call("spark_take_fence", [self.keys.fence], [epoch, token]):
            self._wait_for_disk()
            if self._retry(lambda: self.client.get(self.keys.fence)) == token.encode():
                return True  # it was not lost before it was on disk
        return False

    def _wait_for_disk(self) -> None:
        """Until what was written is fsynced, at most ``DISK_WAIT_MS``. Redis 7.0, or one without a log, cannot say."""
        try:
            self._retry(lambda: self.client.waitaof(1, 0, DISK_WAIT_MS))
        except redis.ResponseError as error:
            if not any(words in str(error) for words in ("unknown command", "appendonly is disabled")):
                raise

    def generation(self) -> str | None:
        """Name of the run's data set on this server; None on a server that knows nothing of the run."""
        value: Any = self._retry(lambda: self.client.get(self.keys.generation))
        return None if value is None else bytes(value).decode()

    def begin(self, token: str, name: str, *, parked: int | None = None) -> str:
        """Name the data set unless it has a name; returns the one that holds. Raises Fenced.

        ``parked``: of rebuilt data, the number of tasks to be issued again. Raises WipedServer when not all is there.
        """
        keys, args = [self.keys.fence, self.keys.generation], [token, name]
        if parked is not None:
            keys, args = [*keys, self.keys.rebuilt, self.keys.returned], [*args, str(parked)]
        answer = self._call("spark_begin", keys, args)
        if answer is None:
            raise Fenced("another learner holds the fence of this run; this one names no data")
        if not answer:
            raise _taken_back()
        return bytes(answer).decode()

    def rebuild(self, token: str, cursor: int, counts: Mapping[str, int]) -> None:
        """Delete what the server holds of the run but the fence, and start again from these counts. Raises Fenced."""
        keys = self.keys
        others = [keys.tasks("policy"), keys.tasks("judge"), keys.rollouts("policy"), keys.rollouts("judge")]
        others = [keys.rebuilt, *others, keys.returned, keys.generation, keys.weights, keys.dead, keys.progress]
        args: list[Any] = [token, cursor, *(part for item in counts.items() for part in item)]
        if not self._call("spark_rebuild", [keys.fence, keys.cursor, keys.ledger, keys.events, *others], args):
            raise Fenced("another learner holds the fence of this run; this one does not rebuild it")
        self.create_groups()

    def park(self, token: str, tasks: Iterable[Product]) -> int:
        """Issued tasks of a run that was rebuilt just now, to be issued again. Returns how many there are.

        Raises Fenced, ServerFull, and WipedServer when the server has lost meanwhile what was rebuilt.
        """
        parked = 0
        for chunk in chunks(list(tasks), CALL_ENTRIES):
            args: list[Any] = [token, parked, *(part for task in chunk for part in (task.uid, task.payload))]
            names = [self.keys.fence, self.keys.returned, self.keys.rebuilt]
            answer = int(self._call("spark_park", names, args, produces=True))
            if answer == 0:
                raise Fenced("another learner holds the fence of this run; this one does not rebuild it")
            if answer < 0:
                raise _taken_back()
            parked += len(chunk)
        return parked

    def raise_id(self, stream: str, entry_id: str) -> None:
        """Entries from now on get ids above this one, whatever the server's clock says."""
        self._call("spark_raise_id", [stream], [entry_id])

    # -- producers ----------------------------------------------------------------------------------

    def cursor(self) -> int | None:
        """Prompts issued so far; None on a server that knows nothing of this run."""
        value = self._retry(lambda: self.client.get(self.keys.cursor))
        return None if value is None else int(value)

    def issue(self, token: str, cursor: int, tasks: Sequence[Task]) -> int:
        """Move the cursor past the tasks and append them, once. Returns the cursor afterwards.

        Raises Fenced, ServerFull.
        """
        keys = self.keys
        args: list[Any] = [token, cursor, cursor + len(tasks)]
        for task in tasks:
            args += [task.uid, encode(task)]
        names = [keys.fence, keys.cursor, keys.tasks("policy"), keys.ledger, keys.events]
        held, now_at = self._call("spark_issue", names, args, produces=True)
        if not held:
            raise Fenced("another learner holds the fence of this run; this one stops issuing")
        return int(now_at)

    def transfer(
        self,
        source: str,
        group: str,
        target: str,
        moves: Iterable[tuple[str, Sequence[Product]]],
        *,
        issues: Kind | None = None,
    ) -> list[bool]:
        """Ack each entry and append its products, atomically; an entry acked before changes nothing.

        With ``issues`` the products count as issued tasks of that kind. Returns for each entry whether this attempt
        applied it: False may also mean an earlier attempt of the same call whose reply was lost. Raises ServerFull.
        """
        applied: list[bool] = []
        for chunk in chunks(list(moves), CALL_ENTRIES):
            args: list[Any] = [group, issues or ""]
            for entry_id, products in chunk:
                args += [entry_id, len(products)]
                for product in products:
                    args += [product.uid, product.payload]
            names = [source, target, self.keys.ledger, self.keys.events]
            produces = any(products for _, products in chunk)
            function = "spark_transfer" if produces else "spark_discard"  # which needs no room on the server
            applied += [bool(flag) for flag in self._call(function, names, args, produces=produces)]
        return applied

    def steer(self, command: Command) -> None:
        """Append a user's command, on disk where the server can say so. Repeated, it counts once, by its nonce.

        Needs no room on the server: a full one can be paused.
        """
        self._call("spark_publish", [self.keys.control], [encode(command), COMMANDS_REMEMBERED])
        self._wait_for_disk()

    def publish(self, manifest: WeightManifest) -> None:
        """Announce weights. Repeating it is harmless: actors load the newest version, once."""
        self._call("spark_publish", [self.keys.weights], [encode(manifest), WEIGHTS_REMEMBERED])

    # -- consumers ----------------------------------------------------------------------------------

    def read_new(
        self, group: str, consumer: str, streams: Sequence[str], count: int, block_ms: int | None
    ) -> list[Delivery]:
        """Claim up to ``count`` new entries of each stream. Not retried: see ``Consumer``."""
        wanted: dict[Any, Any] = dict.fromkeys(streams, ">")
        answer: Any = self.client.xreadgroup(group, consumer, wanted, count=count, block=block_ms)
        return _deliveries(answer)

    def own_pending(self, group: str, consumer: str, stream: str, after: str, count: int) -> list[tuple[str, int]]:
        """(id, deliveries so far) of what is pending for this consumer, without delivering it once more."""
        rows: Any = self.client.xpending_range(
            stream, group, min=f"({after}", max="+", count=count, consumername=consumer
        )
        return [(row["message_id"].decode(), int(row["times_delivered"])) for row in rows]

    def read_own(self, group: str, consumer: str, stream: str, rows: Sequence[tuple[str, int]]) -> list[Delivery]:
        """Deliver entries already pending for this consumer again. One that is no longer its own is left out.

        An entry deleted while it was pending comes with an empty payload, so that it is buried like any other poison.
        """
        with self.client.pipeline(transaction=False) as pipe:
            for entry_id, _ in rows:  # pipe.xreadgroup would queue a GET as well, where redis-py's metrics are on
                where = ("COUNT", 1, "STREAMS", stream, _before(entry_id))
                pipe.execute_command("XREADGROUP", "GROUP", group, consumer, *where)  # type: ignore[no-untyped-call]
            answers = pipe.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception):  # the server's own words: execute() would put others before them
                raise answer
        counts = {entry_id: so_far + 1 for entry_id, so_far in rows}
        return [
            replace(delivery, deliveries=counts[entry_id])
            for (entry_id, _), answer in zip(rows, answers, strict=True)
            for delivery in _deliveries(answer)
            if delivery.id == entry_id
        ]

    def read_expired(
        self, group: str, consumer: str, stream: str, lease_ms: int, count: int, held: Set[str] = frozenset()
    ) -> list[Delivery]:
        """Take over entries whose owner let the lease run out, except those ``held`` by this consumer itself.

        The server looks through all that is pending: XAUTOCLAIM would stop after ten entries per entry asked for.
        """
        rows: Any = self.client.xpending_range(stream, group, min="-", max="+", count=count + len(held), idle=lease_ms)
        counts = {row["message_id"].decode(): int(row["times_delivered"]) + 1 for row in rows}
        ids = [entry_id for entry_id in counts if entry_id not in held][:count]
        if not ids:
            return []
        answer: Any = self.client.xclaim(stream, group, consumer, min_idle_time=lease_ms, message_ids=list(ids))
        taken = _deliveries([(stream.encode(), answer)])
        return [replace(delivery, deliveries=counts[delivery.id]) for delivery in taken]

    def renew(self, stream: str, group: str, consumer: str, ids: Sequence[str]) -> set[str]:
        """Extend the leases still owned; returns the ids that are."""
        return self._set_idle(stream, group, consumer, ids, 0)

    def hand_back(
        self, stream: str, group: str, consumer: str, ids: Sequence[str], *, deliveries: Mapping[str, int] | None = None
    ) -> set[str]:
        """Make entries claimable at once, by anyone. ``deliveries`` of an id: how often it then counts as delivered."""
        kept = self._recount(stream, group, consumer, deliveries or {}, HAND_BACK_IDLE_MS)
        others = [entry_id for entry_id in ids if entry_id not in (deliveries or {})]
        return kept | self._set_idle(stream, group, consumer, others, HAND_BACK_IDLE_MS)

    def recount(self, stream: str, group: str, consumer: str, deliveries: Mapping[str, int]) -> set[str]:
        """Renew entries still owned, and say how often each counts as delivered; returns the ids that are owned."""
        return self._recount(stream, group, consumer, deliveries, 0)

    def _recount(self, stream: str, group: str, consumer: str, deliveries: Mapping[str, int], idle_ms: int) -> set[str]:
        kept: set[str] = set()
        for chunk in chunks(list(deliveries.items()), CALL_ENTRIES):
            args: list[Any] = [group, consumer, idle_ms, *(part for item in chunk for part in item)]
            kept |= {entry.decode() for entry in self._call("spark_recount", [stream], args)}
        return kept

    def _set_idle(self, stream: str, group: str, consumer: str, ids: Sequence[str], idle_ms: int) -> set[str]:
        kept: set[str] = set()
        for chunk in chunks(list(ids), CALL_ENTRIES):
            kept |= {
                entry.decode() for entry in self._call("spark_set_idle", [stream], [group, consumer, idle_ms, *chunk])
            }
        return kept

    def mend_leases(self) -> int:
        """Where the server's clock was set back: leases begin anew, and signs of life are asked for again.

        To be called about every second, by one process. Returns how many leases there were; usually 0.
        """
        tasks = [self.keys.tasks("judge"), self.keys.tasks("policy")]
        begun = int(self._call("spark_mend_leases", [self.keys.clock, *tasks], [ACTORS, CLOCK_TOLERANCE_MS]))
        if begun < 0:
            return 0
        if members := [self.keys.heartbeat(member) for member, beat in self.members().items() if lives(beat)]:
            self._retry(lambda: self.client.delete(*members))  # who lives says so again within seconds
        return begun

    def adopt(self, stream: str, group: str, consumer: str) -> int:
        """Move what older consumers of the group hold to this one. Returns how many entries moved."""
        total = 0
        while moved := int(self._call("spark_adopt", [stream], [group, consumer])):
            total += moved
        return total

    def settle(self, token: str, group: str, policy_version: int, endings: Sequence[Ending]) -> int:
        """Acknowledge entries and count how their uids ended. Raises Fenced. Only after a durable checkpoint."""
        acked = 0
        streams = list(dict.fromkeys(ending.stream for ending in endings))
        for chunk in chunks(list(endings), CALL_ENTRIES):
            args: list[Any] = [token, group, policy_version]
            for end in chunk:
                args += [streams.index(end.stream) + 1, end.id, end.uid, end.outcome, end.kind]
            answer = int(
                self._call("spark_settle", [self.keys.fence, self.keys.ledger, self.keys.events, *streams], args)
            )
            if answer < 0:
                raise Fenced("another learner holds the fence of this run; this one stops acknowledging")
            acked += answer
        return acked

    def bury(self, delivery: Delivery, group: str, reason: str, kind: Kind | None) -> bool:
        """Move an entry to the dead letters; with ``kind`` its uid ends there."""
        names = [delivery.stream, self.keys.dead, self.keys.ledger, self.keys.events]
        args = [group, delivery.id, delivery.uid, kind or "", reason, delivery.deliveries, delivery.payload]
        return bool(self._call("spark_bury", names, args))

    def trim(self, stream: str, count: int = 1000) -> int:
        """Delete up to ``count`` (at least ``TRIM_SLICE``) entries that every group has read and acknowledged.

        Returns how many; 0 when nothing is left to delete.
        """
        wanted = len(self.keys.groups(recycles=self.recycles)[stream])
        return int(self._call("spark_trim", [stream], [wanted, max(count, TRIM_SLICE)]))

    def newest_weights(self, count: int = 4) -> list[bytes]:
        """Payloads of the last weight manifests, newest first. A few, since a fenced learner may have added one."""
        rows: Any = self._retry(lambda: self.client.xrevrange(self.keys.weights, count=count))
        return [fields[b"m"] for _, fields in rows if b"m" in fields]

    def wait_for_weights(self, block_ms: int) -> None:
        """Return when a manifest is announced, or after ``block_ms``. Nothing is claimed, so nothing can be lost."""
        self._retry(lambda: self.client.xread({self.keys.weights: "$"}, count=1, block=block_ms))


def position(stream_id: str) -> tuple[int, int]:
    """Where a stream id stands: ids compare by these numbers, not as text."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def _deliveries(answer: Any) -> list[Delivery]:
    """Entries of a read. Whatever they hold, reading them must not fail: poison is found, and buried, when decoded."""
    return [
        Delivery(
            stream=stream.decode(),
            id=entry_id.decode(),
            uid=(fields or {}).get(b"uid", b"").decode(errors="backslashreplace"),
            payload=(fields or {}).get(b"m", b""),
        )
        for stream, entries in answer or []
        for entry_id, fields in entries
    ]


def _before(entry_id: str) -> str:
    """The greatest stream id below ``entry_id``."""
    ms, _, sequence = entry_id.partition("-")
    return f"{ms}-{int(sequence) - 1}" if int(sequence) else f"{int(ms) - 1}-{2**64 - 1}"


def _taken_back() -> WipedServer:
    return WipedServer(
        "the server lost its last second while this run was rebuilt on it, so not all of the run is there; run again "
        "with --rebuild"
    )
