"""Where a uid came from and what became of it: gathered from the archive, the streams and the event log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.audit_events import of_the_disk
from common.archive import ArchivedGroup, ArchiveReader
from common.codec import decode
from common.entries import Entries, Entry, Holder
from common.errors import InvalidMessage
from common.keys import ACTORS, LEARNER, RECYCLER
from common.messages import RolloutGroup, Task
from common.records import Event

UID_DIGITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An entry of a stream, and how one of its consumer groups stands to it."""

    stream: str
    id: str
    group: str
    """Empty for dead letters, which nobody waits for."""
    holder: Holder | None = None
    read: bool = False
    """The group was given the entry; without a holder it is through with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """A line of the event log about a uid."""

    at: float
    event: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of one uid."""

    uid: str
    task: Task | None = None
    group: RolloutGroup | None = None
    record: ArchivedGroup | None = None
    places: tuple[Place, ...] = ()
    history: tuple[Happened, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestry:
    """A uid, what it was made from (policy groups, for a judge task), and the judge tasks made from it."""

    subject: Known
    sources: tuple[Known, ...]
    made: tuple[Known, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnServer:
    """An entry of a stream, decoded where it can be."""

    entry: Entry
    uid: str
    message: Task | RolloutGroup | None

    @property
    def task(self) -> Task | None:
        return self.message.task if isinstance(self.message, RolloutGroup) else self.message


class Evidence:
    """All that can be asked about uids. ``entries`` None: the server cannot be asked."""

    def __init__(self, archive: ArchiveReader, entries: Entries | None, events: Path) -> None:
        self.archive = archive
        self._entries = entries
        self._events = events
        self._live = list(_live(entries)) if entries else []

    def uids(self, prefix: str) -> list[str]:
        """Every uid that begins so, wherever it is written."""
        found = dict.fromkeys(self.archive.uids(prefix))
        found |= dict.fromkeys(one.uid for one in self._live if one.uid.startswith(prefix))
        for event in self._all_events():
            if prefix in event.fields.get("uids", ""):
                found |= dict.fromkeys(uid for uid in event.fields["uids"].split() if uid.startswith(prefix))
        return list(found)

    def ancestry(self, uid: str) -> Ancestry:
        """What is known of a uid, and of those around it."""
        record = self.archive.find(uid)
        task = record.group.task if record else self._task(uid)
        sources = list(dict.fromkeys(source.uid for source in task.sources)) if task else []
        made = {one.uid: one for one in self.archive.made_from(uid)}
        live = [one for one in self._live if one.task and uid in {source.uid for source in one.task.sources}]
        young = dict.fromkeys(one.uid for one in live if one.uid not in made)
        records = {**made, **({uid: record} if record else {})}
        records |= {source: found for source in sources if (found := self.archive.find(source))}
        known = self._known([uid, *sources, *made, *young], records)
        return Ancestry(
            subject=known[uid],
            sources=tuple(known[source] for source in sources),
            made=tuple(known[judge] for judge in (*made, *young)),
        )

    def _task(self, uid: str) -> Task | None:
        return next((one.task for one in self._live if one.uid == uid and one.task), None)

    def _known(self, uids: Sequence[str], records: Mapping[str, ArchivedGroup]) -> dict[str, Known]:
        history = self._history(set(uids))
        return {uid: self._one(uid, records.get(uid), history.get(uid, ())) for uid in uids}

    def _one(self, uid: str, record: ArchivedGroup | None, history: Iterable[Happened]) -> Known:
        mine = [one for one in self._live if one.uid == uid]
        groups = [one.message for one in mine if isinstance(one.message, RolloutGroup)]
        group = record.group if record else next(iter(groups), None)
        return Known(
            uid=uid,
            task=group.task if group else next((one.task for one in mine if one.task), None),
            group=group,
            record=record,
            places=tuple(place for one in mine for place in self._places(one.entry)),
            history=tuple(history),
        )

    def _places(self, entry: Entry) -> Iterator[Place]:
        assert self._entries is not None  # there is no entry without a server
        keys = self._entries.keys
        groups = {**keys.groups(), keys.dead: ("",)}[entry.stream]
        for group in groups:
            yield Place(
                stream=entry.stream.removeprefix(keys.dead.removesuffix("dead")),
                id=entry.id,
                group=group,
                holder=self._entries.holder(entry.stream, group, entry.id) if group else None,
                read=self._entries.is_read(entry.stream, group, entry.id) if group else False,
            )

    def _history(self, uids: set[str]) -> dict[str, list[Happened]]:
        """By uid, oldest first. An event that is on its way to the disk is there and on the server: it counts once."""
        found: dict[str, dict[tuple[str, str], Happened]] = {}
        for event in self._all_events():
            for uid in uids.intersection(event.fields.get("uids", "").split()):
                others = {k: v for k, v in event.fields.items() if k not in ("event", "uids")}
                at = int(event.id.partition("-")[0]) / 1000
                happened = Happened(at=at, event=event.fields.get("event", ""), fields=others)
                found.setdefault(uid, {})[(event.id, happened.event)] = happened
        return {uid: list(events.values()) for uid, events in found.items()}

    def _all_events(self) -> Iterator[Event]:
        """The disk's first, then the server's; what moves to the disk meanwhile is in both, or read from the server."""
        on_server = list(_server_events(self._entries)) if self._entries else []
        yield from (logged.event for logged in of_the_disk(self._events))
        yield from on_server


def _live(entries: Entries) -> Iterator[OnServer]:
    """Every entry that holds a task or a group: what is in flight, or died."""
    keys = entries.keys
    for stream in (*keys.groups(), keys.dead):
        for entry in entries.newest_first(stream):
            where = entry.text("stream") if stream == keys.dead else stream
            yield OnServer(entry=entry, uid=entry.text("uid"), message=_decoded(entry, ":rollouts:" in where))


def _decoded(entry: Entry, is_group: bool) -> Task | RolloutGroup | None:
    try:
        return decode(RolloutGroup, entry.payload) if is_group else decode(Task, entry.payload)
    except InvalidMessage:  # poison: whoever has to work on it buries it and says why
        return None


def _server_events(entries: Entries) -> Iterator[Event]:
    after = "0-0"
    while events := entries.events(after):
        yield from events
        after = events[-1].id


def in_words(place: Place) -> str:
    """Where an entry is, and who has to do something about it; empty when a group is through with it."""
    if not place.group:
        return f"dead letter {place.id}"
    if place.holder is not None:
        held = f"on {place.stream}, at {place.holder.consumer} for {place.holder.idle_s:.0f} s"
        again = f", delivery {place.holder.deliveries}" if place.holder.deliveries > 1 else ""
        return held + again + _LATER.get(place.group, "")
    return "" if place.read else f"on {place.stream}, waits for {_WHO[place.group]}"


_WHO = {ACTORS: "an actor", LEARNER: "the learner", RECYCLER: "the recycler"}
_LATER = {LEARNER: ", until the next checkpoint acknowledges it", RECYCLER: ", until it is made into judge tasks"}
