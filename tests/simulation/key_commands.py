"""Strings, hashes, sets and keys: the few of their commands that SPARK uses."""

from __future__ import annotations

from collections.abc import Iterator

from simulation.commands import command, integer
from simulation.database import Database, Hash, Set
from simulation.replies import OK, SYNTAX, Reply, ReplyError, Status, unsupported
from simulation.stream_data import Stream


@command("GET", 1, 1)
def get(db: Database, args: list[bytes]) -> Reply:
    return db.string(args[0])


@command("SET", 2, grows=True)
def set_(db: Database, args: list[bytes]) -> Reply:
    key, value, *options = args
    expires_ms, only_if = None, None
    words = iter(options)
    for word in map(bytes.upper, words):
        if word in (b"PX", b"EX"):
            expires_ms = db.now_ms + _time_to_live(words, 1 if word == b"PX" else 1000)
        elif word in (b"NX", b"XX"):
            only_if = word
        else:
            unsupported(f"SET {word.decode()}")
    if only_if and (db.get(key) is None) != (only_if == b"NX"):
        return None
    db.put(key, value, expires_ms)
    return OK


def _time_to_live(words: Iterator[bytes], unit_ms: int) -> int:
    word = next(words, None)
    if word is None:
        raise ReplyError(SYNTAX)
    if (ttl := integer(word)) <= 0:
        raise ReplyError("ERR invalid expire time in 'set' command")
    return ttl * unit_ms


@command("SETNX", 2, 2, grows=True)
def setnx(db: Database, args: list[bytes]) -> Reply:
    if db.get(args[0]) is not None:
        return 0
    db.put(*args)
    return 1


@command("MGET", 1)
def mget(db: Database, args: list[bytes]) -> Reply:
    return [value if isinstance(value := db.get(key), bytes) else None for key in args]


@command("EXISTS", 1)
def exists(db: Database, args: list[bytes]) -> Reply:
    return sum(db.get(key) is not None for key in args)


@command("DEL", 1, writes=True)
def delete(db: Database, args: list[bytes]) -> Reply:
    return sum(db.get(key) is not None and db.remove(key) for key in args)


@command("PTTL", 1, 1)
def pttl(db: Database, args: list[bytes]) -> Reply:
    if db.get(args[0]) is None:
        return -2
    expires_ms = db.expires_ms.get(args[0])
    return -1 if expires_ms is None else expires_ms - db.now_ms


@command("TIME", 0, 0)
def time(db: Database, args: list[bytes]) -> Reply:
    return [b"%d" % (db.now_ms // 1000), b"%d" % (db.now_ms % 1000 * 1000)]


@command("TYPE", 1, 1)
def type_(db: Database, args: list[bytes]) -> Reply:
    names = {bytes: b"string", Hash: b"hash", Set: b"set", Stream: b"stream", type(None): b"none"}
    return Status(names[type(db.get(args[0]))])


@command("SADD", 2, grows=True)
def sadd(db: Database, args: list[bytes]) -> Reply:
    members = db.make(args[0], Set)
    before = len(members)
    members.update(dict.fromkeys(args[1:]))
    return len(members) - before


@command("SREM", 2, writes=True)
def srem(db: Database, args: list[bytes]) -> Reply:
    return _take_out(db, db.change(args[0], Set), args)


@command("SMEMBERS", 1, 1)
def smembers(db: Database, args: list[bytes]) -> Reply:
    return list(db.find(args[0], Set) or ())


@command("HSET", 3, grows=True)
def hset(db: Database, args: list[bytes]) -> Reply:
    if len(args) % 2 == 0:
        raise ReplyError("ERR wrong number of arguments for 'hset' command")
    fields = db.make(args[0], Hash)
    before = len(fields)
    fields.update(zip(args[1::2], args[2::2], strict=True))
    return len(fields) - before


@command("HGET", 2, 2)
def hget(db: Database, args: list[bytes]) -> Reply:
    return (db.find(args[0], Hash) or {}).get(args[1])


@command("HGETALL", 1, 1)
def hgetall(db: Database, args: list[bytes]) -> Reply:
    return [part for field in (db.find(args[0], Hash) or {}).items() for part in field]


@command("HDEL", 2, writes=True)
def hdel(db: Database, args: list[bytes]) -> Reply:
    return _take_out(db, db.change(args[0], Hash), args)


@command("HINCRBY", 3, 3, grows=True)
def hincrby(db: Database, args: list[bytes]) -> Reply:
    key, field, by = args
    step = integer(by)
    held = (db.find(key, Hash) or {}).get(field, b"0")
    total = integer(held, "ERR hash value is not an integer") + step
    db.make(key, Hash)[field] = b"%d" % total
    return total


def _take_out(db: Database, members: Hash | Set | None, args: list[bytes]) -> int:
    """A collection that has become empty is no key any more."""
    if members is None:
        return 0
    taken = [members.pop(name) for name in args[1:] if name in members]
    if not members:
        db.remove(args[0])
    return len(taken)
