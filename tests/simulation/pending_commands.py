"""What is in the hands of a group's consumers: acknowledged, listed, taken over."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from simulation.commands import command, integer
from simulation.database import Database
from simulation.group_commands import group_of, text
from simulation.replies import SYNTAX, Reply, ReplyError, unsupported
from simulation.stream_commands import read_bounds
from simulation.stream_data import Group, Pending, Seen, Stream, id_text, parse_id

LOOKS_PER_CLAIM = 10
"""XAUTOCLAIM looks at so many entries for each one it may take."""


@command("XACK", 3, writes=True)
def xack(db: Database, args: list[bytes]) -> Reply:
    stream = db.change(args[0], Stream)
    group = stream.groups.get(args[1]) if stream else None
    if group is None:
        return 0
    ids = [parse_id(word) for word in args[2:]]
    return sum(group.pending.pop(entry_id, None) is not None for entry_id in ids)


@command("XPENDING", 2)
def xpending(db: Database, args: list[bytes]) -> Reply:
    key, name, *words = args
    if not words:
        return _pending_summary(group_of(db, key, name)[1])
    least_idle_ms = 0
    if words[0].upper() == b"IDLE" and len(words) >= 2:
        least_idle_ms = integer(words[1])
        del words[:2]
    if len(words) not in (3, 4):
        raise ReplyError(SYNTAX)
    first, last = read_bounds(words[0], words[1])
    count = integer(words[2])
    _, group = group_of(db, key, name)
    return _pending_rows(db, group, (first, last), count, least_idle_ms, words[3] if words[3:] else None)


def _pending_summary(group: Group) -> Reply:
    if not group.pending:
        return [0, None, None, None]
    counts = Counter(entry.consumer for entry in group.pending.values())
    per_consumer = [[consumer, b"%d" % count] for consumer, count in sorted(counts.items())]
    return [len(group.pending), id_text(min(group.pending)), id_text(max(group.pending)), per_consumer]


def _pending_rows(
    db: Database, group: Group, bounds: tuple[int, int], count: int, least_idle_ms: int, consumer: bytes | None
) -> list[Reply]:
    rows: list[Reply] = []
    for entry_id in group.pending_between(*bounds):
        if len(rows) >= count:
            break
        entry = group.pending[entry_id]
        idle_ms = max(0, db.now_ms - entry.delivered_ms)
        if consumer in (None, entry.consumer) and idle_ms >= least_idle_ms:
            rows.append([id_text(entry_id), entry.consumer, idle_ms, entry.deliveries])
    return rows


@dataclass(slots=True)
class Claim:
    """The options of XCLAIM. Without ``delivered_ms`` the claim counts as a delivery now."""

    ids: list[int]
    delivered_ms: int | None = None
    deliveries: int | None = None
    just_ids: bool = False


@command("XCLAIM", 5, writes=True)
def xclaim(db: Database, args: list[bytes]) -> Reply:
    key, name, consumer, least_idle, *words = args
    stream, group = group_of(db, key, name, change=True)
    least_idle_ms = integer(least_idle, "ERR Invalid min-idle-time argument for XCLAIM")
    claim = _claim_options(db, words)
    group.ask(consumer, db.now_ms)
    taken: list[Reply] = []
    for entry_id in claim.ids:
        if entry_id not in group.pending:
            continue
        if entry_id not in stream.rows:  # deleted: nobody can have it any more
            del group.pending[entry_id]
        elif row := _take(db, stream, group, entry_id, consumer, least_idle_ms, claim):
            taken.append(row)
    return taken


def _take(
    db: Database, stream: Stream, group: Group, entry_id: int, consumer: bytes, least_idle_ms: int, claim: Claim
) -> Reply:
    """None when it was with its owner for less than ``least_idle_ms``."""
    entry = group.pending[entry_id]
    if least_idle_ms > 0 and db.now_ms - entry.delivered_ms < least_idle_ms:
        return None
    group.pending[entry_id] = _claimed(entry, claim, consumer, db.now_ms)
    group.consumers[consumer] = Seen(db.now_ms, db.now_ms)
    return stream.rows[entry_id][0] if claim.just_ids else stream.rows[entry_id]


def _claimed(entry: Pending, claim: Claim, consumer: bytes, now_ms: int) -> Pending:
    delivered_ms = now_ms if claim.delivered_ms is None else claim.delivered_ms
    if claim.deliveries is not None:
        return Pending(consumer, delivered_ms, claim.deliveries)
    return Pending(consumer, delivered_ms, entry.deliveries + (not claim.just_ids))


def _claim_options(db: Database, words: list[bytes]) -> Claim:
    claim = Claim([])
    left = iter(words)
    for word in left:
        option = word.upper()
        if option == b"JUSTID":
            claim.just_ids = True
        elif option == b"IDLE":
            claim.delivered_ms = db.now_ms - integer(next(left, b""), "ERR Invalid IDLE option argument for XCLAIM")
        elif option == b"RETRYCOUNT":
            claim.deliveries = integer(next(left, b""), "ERR Invalid RETRYCOUNT option argument for XCLAIM")
        elif word[:1].isdigit():
            claim.ids.append(parse_id(word))
        else:
            unsupported(f"XCLAIM {text(word)}")
    if claim.delivered_ms is not None and not 0 <= claim.delivered_ms <= db.now_ms:
        claim.delivered_ms = db.now_ms
    return claim


@command("XAUTOCLAIM", 5, writes=True)
def xautoclaim(db: Database, args: list[bytes]) -> Reply:
    """Returns [where the next call goes on, what was taken, ids deleted meanwhile]."""
    key, name, consumer, least_idle, start, *options = args
    least_idle_ms = integer(least_idle, "ERR Invalid min-idle-time argument for XAUTOCLAIM")
    claim, count = Claim([]), 100
    words = iter(options)
    for word in map(bytes.upper, words):
        if word == b"JUSTID":
            claim.just_ids = True
        elif word == b"COUNT":
            count = integer(next(words, b""))
        else:
            raise ReplyError(SYNTAX)
    first, _ = read_bounds(start, b"+")
    if count <= 0:
        raise ReplyError("ERR COUNT must be > 0")
    stream, group = group_of(db, key, name, change=True)
    group.ask(consumer, db.now_ms)
    taken: list[Reply] = []
    deleted: list[Reply] = []
    ids = [entry_id for entry_id in sorted(group.pending) if entry_id >= first]
    looked = 0
    for entry_id in ids[: count * LOOKS_PER_CLAIM]:
        if len(taken) + len(deleted) == count:
            break
        looked += 1
        if entry_id not in stream.rows:
            del group.pending[entry_id]
            deleted.append(id_text(entry_id))
        elif row := _take(db, stream, group, entry_id, consumer, least_idle_ms, claim):
            taken.append(row)
    return [id_text(ids[looked]) if looked < len(ids) else b"0-0", taken, deleted]
