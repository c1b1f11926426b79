"""Streams without groups: appending, deleting, reading."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simulation.commands import command, integer
from simulation.database import Database
from simulation.replies import OK, SYNTAX, Reply, ReplyError, Waiting, unsupported
from simulation.stream_data import LAST_ID, SEQUENCE_BITS, SEQUENCE_MASK, Stream, parse_id

NODES_PER_TRIM = 100
"""An approximate trim without a LIMIT stops after so many nodes' worth of entries."""
NODE_ENTRIES = 100
INTERVAL = "ERR invalid {} ID for the interval"
TOP_ITEM = "The ID specified in {} is {} than the target stream top item"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trim:
    """MAXLEN or MINID: what is to go of a stream."""

    by_id: bool
    threshold: int
    approximate: bool
    limit: int

    def apply(self, stream: Stream) -> int:
        surplus = stream.below(self.threshold) if self.by_id else max(0, len(stream.ids) - self.threshold)
        return stream.trim(stream.whole_nodes(surplus, self.limit) if self.approximate else surplus)


def read_trim(kind: bytes, words: list[bytes]) -> Trim:
    """Takes its words from the front of ``words``: [=|~] threshold [LIMIT count]."""
    sign = words.pop(0) if words and words[0] in (b"=", b"~") else b"="
    if not words:
        raise ReplyError(SYNTAX)
    by_id = kind == b"MINID"
    threshold = parse_id(words.pop(0)) if by_id else integer(words.pop(0))
    if threshold < 0:
        raise ReplyError("ERR The MAXLEN argument must be >= 0.")
    limit = NODES_PER_TRIM * NODE_ENTRIES if sign == b"~" else 0
    if len(words) > 1 and words[0].upper() == b"LIMIT":
        if sign != b"~":
            raise ReplyError("ERR syntax error, LIMIT cannot be used without the special ~ option")
        limit = integer(words[1])
        del words[:2]
    return Trim(by_id=by_id, threshold=threshold, approximate=sign == b"~", limit=limit)


@command("XADD", 4, grows=True)
def xadd(db: Database, args: list[bytes]) -> Reply:
    key, *words = args
    trim, make = None, True
    while (word := words[0].upper()) in (b"MAXLEN", b"MINID", b"NOMKSTREAM"):
        del words[0]
        if word == b"NOMKSTREAM":
            make = False
        else:
            trim = read_trim(word, words)
        if not words:
            raise ReplyError(SYNTAX)
    wanted, *fields = words
    if not fields or len(fields) % 2:
        raise ReplyError("ERR wrong number of arguments for 'xadd' command")
    at_least, exactly = wanted_id(wanted)
    if not make and db.find(key, Stream) is None:
        return None
    entry_id = new_id(db.find(key, Stream) or Stream(), at_least, exactly, db.now_ms)
    stream = db.make(key, Stream)
    text = stream.append(entry_id, fields)
    if trim:
        trim.apply(stream)
    return text


def wanted_id(text: bytes) -> tuple[int | None, bool]:
    """Of ``*``, ``MS-*`` or a full id: (the smallest it may be, None by the clock; whether it must be just that)."""
    if text == b"*":
        return None, False
    if text.endswith(b"-*"):
        return parse_id(text[:-2]), False
    if (entry_id := parse_id(text)) == 0:
        raise ReplyError("ERR The ID specified in XADD must be greater than 0-0")
    return entry_id, True


def new_id(stream: Stream, at_least: int | None, exactly: bool, now_ms: int) -> int:
    """Raises ReplyError unless it is greater than all before it."""
    if stream.last_id == LAST_ID:
        raise ReplyError("ERR The stream has exhausted the last possible ID, unable to add more items")
    if at_least is None:
        return stream.next_id(now_ms)
    if not exactly and at_least >> SEQUENCE_BITS == stream.last_id >> SEQUENCE_BITS:
        return stream.last_id + 1
    if at_least <= stream.last_id:
        raise ReplyError("ERR " + TOP_ITEM.format("XADD", "equal or smaller"))
    return at_least


@command("XTRIM", 3, writes=True)
def xtrim(db: Database, args: list[bytes]) -> Reply:
    key, kind, *words = args
    if kind.upper() not in (b"MAXLEN", b"MINID"):
        raise ReplyError(SYNTAX)
    trim = read_trim(kind.upper(), words)
    if words:
        raise ReplyError(SYNTAX)
    stream = db.change(key, Stream)
    return trim.apply(stream) if stream else 0


@command("XDEL", 2, writes=True)
def xdel(db: Database, args: list[bytes]) -> Reply:
    ids = [parse_id(word) for word in args[1:]]
    stream = db.change(args[0], Stream)
    return sum(map(stream.delete, ids)) if stream else 0


@command("XLEN", 1, 1)
def xlen(db: Database, args: list[bytes]) -> Reply:
    stream = db.find(args[0], Stream)
    return len(stream.ids) if stream else 0


@command("XSETID", 2, grows=True)
def xsetid(db: Database, args: list[bytes]) -> Reply:
    key, wanted, *options = args
    last_id = parse_id(wanted)
    added, max_deleted = _setid_options(options)
    if max_deleted is not None and last_id < max_deleted:
        raise ReplyError("ERR The ID specified in XSETID is smaller than the provided max_deleted_entry_id")
    stream = db.change(key, Stream)
    if stream is None:
        raise ReplyError("ERR no such key")
    if last_id < stream.max_deleted:
        raise ReplyError("ERR The ID specified in XSETID is smaller than current max_deleted_entry_id")
    if stream.ids and last_id < stream.ids[-1]:
        raise ReplyError("ERR " + TOP_ITEM.format("XSETID", "smaller"))
    if added is not None and added < len(stream.ids):
        raise ReplyError("ERR The entries_added specified in XSETID is smaller than the target stream length")
    stream.last_id = last_id
    stream.added = stream.added if added is None else added
    stream.max_deleted = max_deleted or stream.max_deleted
    return OK


def _setid_options(options: list[bytes]) -> tuple[int | None, int | None]:
    added = max_deleted = None
    for name, value in zip(options[::2], options[1::2], strict=False):
        if name.upper() == b"ENTRIESADDED":
            added = integer(value)
            if added < 0:
                raise ReplyError("ERR entries_added must be positive")
        elif name.upper() == b"MAXDELETEDID":
            max_deleted = parse_id(value)
        else:
            unsupported(f"XSETID {name.decode()}")
    if len(options) % 2:
        raise ReplyError(SYNTAX)
    return added, max_deleted


# -- reading ----------------------------------------------------------------------------------------------


def read_bounds(start: bytes, end: bytes) -> tuple[int, int]:
    """Both ends of an interval, each inclusive."""
    return _bound(start, first=True), _bound(end, first=False)


def _bound(text: bytes, *, first: bool) -> int:
    if text in (b"-", b"+"):
        return 0 if text == b"-" else LAST_ID
    exclusive = text.startswith(b"(")
    bound = parse_id(text[exclusive:], 0 if first else SEQUENCE_MASK)
    if not exclusive:
        return bound
    if bound == (LAST_ID if first else 0):
        raise ReplyError(INTERVAL.format("start" if first else "end"))
    return bound + 1 if first else bound - 1


@command("XRANGE", 3)
def xrange_(db: Database, args: list[bytes]) -> Reply:
    return _range(db, args, newest_first=False)


@command("XREVRANGE", 3)
def xrevrange(db: Database, args: list[bytes]) -> Reply:
    return _range(db, [args[0], args[2], args[1], *args[3:]], newest_first=True)


def _range(db: Database, args: list[bytes], *, newest_first: bool) -> Reply:
    first, last = read_bounds(args[1], args[2])
    count = None
    if options := args[3:]:
        if len(options) != 2 or options[0].upper() != b"COUNT":
            raise ReplyError(SYNTAX)
        count = max(0, integer(options[1]))
    stream = db.find(args[0], Stream)
    if stream is None:
        return []
    if count == 0:
        return None
    return [stream.rows[entry_id] for entry_id in stream.between(first, last, count, newest_first=newest_first)]


@dataclass(slots=True)
class Read:
    """The options that XREAD and XREADGROUP share."""

    keys: list[bytes]
    positions: list[bytes]
    count: int | None = None
    block_ms: int | None = None


def read_options(words: Iterator[bytes], name: str) -> Read:
    read = Read([], [])
    for word in map(bytes.upper, words):
        if word == b"STREAMS":
            rest = list(words)
            if not rest or len(rest) % 2:
                raise ReplyError(_unbalanced(name))
            read.keys, read.positions = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        elif word == b"COUNT":
            read.count = max(0, integer(next(words, b""))) or None
        elif word == b"BLOCK":
            read.block_ms = integer(next(words, b""), "ERR timeout is not an integer or out of range")
            if read.block_ms < 0:
                raise ReplyError("ERR timeout is negative")
        else:
            unsupported(f"{name} {word.decode()}")
    if not read.keys:
        raise ReplyError(SYNTAX)
    return read


def _unbalanced(name: str) -> str:
    mark = "'$'" if name == "XREAD" else "'>'"
    return f"ERR Unbalanced '{name.lower()}' list of streams: for each stream key an ID or {mark} must be specified."


@command("XREAD", 3)
def xread(db: Database, args: list[bytes]) -> Reply:
    read = read_options(iter(args), "XREAD")
    after = [_position(db.find(key, Stream), text) for key, text in zip(read.keys, read.positions, strict=True)]

    def look() -> Reply:
        found = []
        for key, position in zip(read.keys, after, strict=True):
            stream = db.find(key, Stream)
            if stream and (ids := stream.after(position, read.count)):
                found.append([key, [stream.rows[entry_id] for entry_id in ids]])
        return found or None

    found = look()
    return Waiting(read.block_ms, look) if found is None and read.block_ms is not None else found


def _position(stream: Stream | None, text: bytes) -> int:
    """``$`` is what comes after this moment, not after the end of the wait."""
    if text == b"$":
        return stream.last_id if stream else 0
    if text == b">":
        raise ReplyError(
            "ERR The > ID can be specified only when calling XREADGROUP using the GROUP <group> <consumer> option."
        )
    if text == b"+":
        unsupported("XREAD with +")
    return parse_id(text)
