"""XINFO: what the server tells about a stream and its groups."""

from __future__ import annotations

from collections import Counter

from simulation.commands import command
from simulation.database import Database
from simulation.group_commands import group_of_stream
from simulation.replies import Reply, ReplyError
from simulation.stream_data import Stream, id_text


def _stream(db: Database, key: bytes) -> Stream:
    stream = db.find(key, Stream)
    if stream is None:
        raise ReplyError("ERR no such key")
    return stream


def _flat(fields: dict[bytes, Reply]) -> list[Reply]:
    return [part for field in fields.items() for part in field]


@command("XINFO GROUPS", 1, 1)
def xinfo_groups(db: Database, args: list[bytes]) -> Reply:
    stream = _stream(db, args[0])
    return [
        _flat(
            {
                b"name": name,
                b"consumers": len(group.consumers),
                b"pending": len(group.pending),
                b"last-delivered-id": id_text(group.last_id),
                b"entries-read": group.entries_read,
                b"lag": stream.lag(group),
            }
        )
        for name, group in sorted(stream.groups.items())
    ]


@command("XINFO CONSUMERS", 2, 2)
def xinfo_consumers(db: Database, args: list[bytes]) -> Reply:
    stream = _stream(db, args[0])
    group = group_of_stream(stream, *args)
    counts = Counter(entry.consumer for entry in group.pending.values())
    return [
        _flat(
            {
                b"name": name,
                b"pending": counts[name],
                b"idle": max(0, db.now_ms - seen.asked_ms),
                b"inactive": -1 if seen.active_ms < 0 else max(0, db.now_ms - seen.active_ms),
            }
        )
        for name, seen in sorted(group.consumers.items())
    ]


@command("XINFO STREAM", 1, 1)
def xinfo_stream(db: Database, args: list[bytes]) -> Reply:
    """Without the fields about the radix tree, which is not modelled."""
    stream = _stream(db, args[0])
    return _flat(
        {
            b"length": len(stream.ids),
            b"last-generated-id": id_text(stream.last_id),
            b"max-deleted-entry-id": id_text(stream.max_deleted),
            b"entries-added": stream.added,
            b"recorded-first-entry-id": id_text(stream.first_id),
            b"groups": len(stream.groups),
            b"first-entry": stream.rows[stream.ids[0]] if stream.ids else None,
            b"last-entry": stream.rows[stream.ids[-1]] if stream.ids else None,
        }
    )
