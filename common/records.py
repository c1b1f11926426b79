"""What a run writes down on the server: who lives and what they say, what was issued and how it ended, what died."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard, TypeVar

import redis

from common.calls import Calls
from common.errors import Fenced, ServerError
from common.keys import ACTORS, LEARNER, Keys
from common.messages import OUTCOMES, Kind
from common.server import Client, address, memory_share
from common.steering import Change, Steering

CALL_ENTRIES: Final = 200
"""Entries per function call; Lua's unpack and the server's other clients both want it bounded."""
STEERING: Final = "steering"
"""Field of the progress hash: what users have told the run, as the learner obeys it."""
STOPPED: Final = "stopped"
"""State of a member that said farewell."""
LETTER_FIELDS: Final = ("stream", "group", "uid", "kind", "reason")

T = TypeVar("T")
Beat = Mapping[str, Any]
"""What a member says of itself."""


def lives(beat: Beat | None) -> TypeGuard[Beat]:
    """Of a member's newest heartbeat: neither did it fall silent, nor say farewell."""
    return beat is not None and beat.get("state") != STOPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An entry that nobody could work on, and why. Without a ``kind`` its uid lives on elsewhere."""

    id: str
    stream: str
    group: str
    uid: str
    kind: str
    reason: str
    deliveries: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A line of the event log: what was issued or ended, by uid (``fields["uids"]``, space-separated)."""

    id: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    pending: int
    undelivered: int
    oldest_idle_ms: int

    @property
    def total(self) -> int:
        return self.pending + self.undelivered


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Per kind: issued, how many ended in each way, in flight. Conservation: every uid ends once or is in flight."""

    kinds: Mapping[Kind, Mapping[str, int]]

    def balances(self, kind: Kind) -> bool:
        counts = self.kinds[kind]
        return counts["issued"] == sum(counts[outcome] for outcome in OUTCOMES) + counts["in_flight"]

    @property
    def balanced(self) -> bool:
        return all(self.balances(kind) for kind in self.kinds)


class Records(Calls):
    """Typed calls that read and write a run's records. ``Streams`` adds those that move its entries."""

    def __init__(
        self,
        client: Client,
        run: str,
        *,
        give_up_s: float = 60.0,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(client, give_up_s=give_up_s, seed=seed, clock=clock, sleep=sleep)
        self.keys = Keys(run)

    # -- what the processes tell each other ------------------------------------------------------------

    def report_progress(self, **fields: int | str) -> None:
        self._call("spark_report", [self.keys.progress], [part for field in fields.items() for part in field])

    def progress(self) -> dict[str, str]:
        return text_map(self._retry(lambda: self.client.hgetall(self.keys.progress)))

    def steering(self) -> Steering:
        """What the learner obeys, as it said last; of a run that was never steered, or of an empty server: nothing."""
        text = self._retry(lambda: self.client.hget(self.keys.progress, STEERING))
        return Steering.from_json(text) if text else Steering()

    def control(self, before: str = "+", count: int = 16) -> list[tuple[str, bytes]]:
        """Commands given before an id (``(ID``), the newest first."""
        rows: Any = self._retry(lambda: self.client.xrevrange(self.keys.control, max=before, count=count))
        return [(entry_id.decode(), fields.get(b"m", b"")) for entry_id, fields in rows]

    def tell_steering(self, token: str, steering: Steering, last: Change) -> None:
        """Say what holds, and write the last change to the event log unless it is the one written last. Raises Fenced.

        Needs no room on the server: a full one can be paused.
        """
        fields = [part for item in last.event().items() for part in item]
        keys = [self.keys.fence, self.keys.progress, self.keys.events]
        if int(self._call("spark_steered", keys, [token, steering.to_json(), last.nonce, *fields])) < 0:
            raise Fenced("another learner holds the fence of this run; this one obeys nobody any more")

    def heartbeat(self, member: str, fields: Mapping[str, Any], ttl_s: float) -> None:
        """Say that ``member`` lives. The server's expiry decides who is alive; clocks of hosts do not.

        A farewell (``STOPPED``) has a ``ttl_s`` of 0: it stays, so that who ended can be told from who fell silent.
        """
        beat = [member, json.dumps(dict(fields)), int(ttl_s * 1000)]
        self._call("spark_heartbeat", [self.keys.members, self.keys.heartbeat(member)], beat)

    def members(self) -> dict[str, dict[str, Any] | None]:
        """Every member ever seen -> its last heartbeat or its farewell; None for one that fell silent."""
        answer: Any = self._retry(lambda: self.client.smembers(self.keys.members))
        names = sorted(name.decode() for name in answer)
        if not names:
            return {}
        beats: Any = self._retry(lambda: self.client.mget([self.keys.heartbeat(name) for name in names]))
        return {name: json.loads(beat) if beat else None for name, beat in zip(names, beats, strict=True)}

    def lives(self, member: str) -> bool:
        """Whether its newest heartbeat is still to expire; for a check that every role's rights allow."""
        left_ms: Any = self._retry(lambda: self.client.pttl(self.keys.heartbeat(member)))
        return bool(left_ms > 0)

    def memory_share(self) -> float:
        """Share of the server's maxmemory in use; 0 without a limit."""
        return self._retry(lambda: memory_share(self.client))

    def dead_since(self, event_id: str) -> tuple[str, set[str]]:
        """Uids that went to the dead letters after an event id, and the newest event id."""
        rows: Any = self._retry(lambda: self.client.xrange(self.keys.events, min=f"({event_id}"))
        dead = [fields for _, fields in rows if fields.get(b"outcome", b"").startswith(b"dead:")]
        uids = {uid for fields in dead for uid in fields.get(b"uids", b"").decode(errors="backslashreplace").split()}
        return (rows[-1][0].decode() if rows else event_id), uids

    def events(self, after: str = "0-0", count: int = 1000) -> list[Event]:
        """The event log after an id, oldest first."""
        rows: Any = self._retry(lambda: self.client.xrange(self.keys.events, min=f"({after}", count=count))
        return [Event(id=entry_id.decode(), fields=text_map(fields)) for entry_id, fields in rows]

    def forget_events(self, token: str, last: str) -> None:
        """Delete events up to an id, once they are on disk. Raises Fenced."""
        if int(self._call("spark_forget_events", [self.keys.fence, self.keys.events], [token, last])) < 0:
            raise Fenced("another learner holds the fence of this run; this one deletes nothing")

    def unacked(self, stream: str, group: str, page: int = 500) -> list[str]:
        """Uids of every entry that the group has not acknowledged, read or not."""
        uids: list[str] = []
        after = "0-0"
        while True:
            last, *found = self._call("spark_unacked", [stream], [group, after, page])
            uids += [uid.decode(errors="backslashreplace") for uid in found]
            if not last:
                return uids
            after = last.decode()

    def newest_event(self) -> str:
        rows: Any = self._retry(lambda: self.client.xrevrange(self.keys.events, count=1))
        return rows[0][0].decode() if rows else "0-0"

    # -- accounts -------------------------------------------------------------------------------------

    def ledger(self) -> dict[str, int]:
        """``issued:KIND`` and ``OUTCOME:KIND`` -> number of uids."""
        counts = {f"{name}:{kind}": 0 for name in ("issued", *OUTCOMES) for kind in ("policy", "judge")}
        counts.update(
            {
                name: int(value)
                for name, value in text_map(self._retry(lambda: self.client.hgetall(self.keys.ledger))).items()
            }
        )
        return counts

    def conservation(self) -> Ledger:
        """The whole ledger at one instant: counts of endings, and in flight as the streams themselves show it.

        Raises ServerError on a server that has not our functions or not the groups of this run.
        """
        kinds: tuple[Kind, ...] = ("policy", "judge")

        def read() -> list[Any]:
            with self.client.pipeline(transaction=True) as pipe:
                pipe.hgetall(self.keys.ledger)
                for kind in kinds:
                    pipe.fcall("spark_backlog", 1, self.keys.tasks(kind), ACTORS)
                    pipe.fcall("spark_backlog", 1, self.keys.rollouts(kind), LEARNER)
                pipe.fcall("spark_backlog", 1, self.keys.returned, LEARNER)
                return pipe.execute()

        try:
            raw, *backlogs = self._retry(read)
        except redis.ResponseError as error:  # a pipeline puts the command before the server's words
            if not any(words in str(error) for words in ("Function not found", "NOGROUP")):
                raise
            raise ServerError(
                f"the server at {address(self.client)} knows nothing of run {self.keys.run}; "
                "is this the server of the run, and was the run started?"
            ) from error
        counts = text_map(raw)
        accounts: dict[Kind, dict[str, int]] = {}
        returned = backlogs.pop()
        for kind, places in zip(kinds, ([*backlogs[:2], returned], backlogs[2:]), strict=True):
            accounts[kind] = {name: int(counts.get(f"{name}:{kind}", 0)) for name in ("issued", *OUTCOMES)}
            accounts[kind]["in_flight"] = sum(int(pending) + int(waiting) for pending, waiting, _ in places)
        return Ledger(kinds=accounts)

    def backlog(self, stream: str, group: str) -> Backlog:
        pending, undelivered, idle_ms = self._call("spark_backlog", [stream], [group])
        return Backlog(pending=int(pending), undelivered=int(undelivered), oldest_idle_ms=int(idle_ms))

    # -- dead letters ---------------------------------------------------------------------------------

    def dead_letters(self, after: str = "-", count: int = 1000) -> list[DeadLetter]:
        """Dead letters, oldest first, from an id on (``-``: the first; ``(ID``: after it)."""
        rows: Any = self._retry(lambda: self.client.xrange(self.keys.dead, min=after, count=count))
        return [letter_of(entry_id.decode(), fields) for entry_id, fields in rows]

    def revive(self, letter: DeadLetter) -> bool:
        """Put a dead letter back on its stream, its deliveries counted anew; False if it is gone. Raises ServerFull."""
        names = [self.keys.dead, letter.stream, self.keys.ledger, self.keys.events]
        return bool(self._call("spark_revive", names, [letter.id], produces=True))

    def drop(self, ids: Sequence[str]) -> int:
        """Forget dead letters; their uids stay ended. Returns how many there were."""
        return sum(int(self._call("spark_drop", [self.keys.dead], some)) for some in chunks(list(ids), CALL_ENTRIES))


def letter_of(entry_id: str, fields: Mapping[bytes, bytes]) -> DeadLetter:
    """A row of the dead letters."""
    text = {name: fields.get(name.encode(), b"").decode(errors="backslashreplace") for name in LETTER_FIELDS}
    deliveries = int(fields.get(b"deliveries", b"0"))
    return DeadLetter(id=entry_id, deliveries=deliveries, payload=fields.get(b"m", b""), **text)


def text_map(raw: Any) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in raw.items()}


def chunks(items: list[T], size: int) -> Iterable[list[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
