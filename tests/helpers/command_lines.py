"""Random commands as a client types them, and answers that can be compared."""

from __future__ import annotations

from typing import Any

import redis
from hypothesis import strategies as st

from common.server import Client

LONG_MS = "100000000"
"""Longer than any test, so that no answer depends on how long it took."""
NEXT = "NEXT"
"""Stands for an id that is greater than those before it."""
Line = tuple[str, ...]

streams = st.sampled_from(["s", "t"])
keys = st.sampled_from(["s", "t", "hash", "string", "set"])
groups = st.sampled_from(["g", "g", "h"])
consumers = st.sampled_from(["a", "b"])
counts = st.sampled_from(["-1", "0", "1", "2", "10"])
ids = st.builds(lambda ms, seq: f"{ms}-{seq}", st.integers(1, 12), st.integers(0, 2))
positions = st.one_of(ids, st.sampled_from(["0", "3", "7"]))
starts = st.one_of(positions, ids.map(lambda text: f"({text}"), st.just("-"))
ends = st.one_of(positions, ids.map(lambda text: f"({text}"), st.just("+"))
ages = st.sampled_from(["0", LONG_MS])


def line(*parts: str | st.SearchStrategy[Any]) -> st.SearchStrategy[Line]:
    """A command; its parts are words, or strategies for a word or for several."""
    return st.tuples(*(st.just(part) if isinstance(part, str) else part for part in parts)).map(_flat)


def _flat(parts: tuple[Any, ...]) -> Line:
    return tuple(word for part in parts for word in ([part] if isinstance(part, str) else part))


def _numbered(lines: list[Line]) -> list[Line]:
    return [
        tuple(f"{at // 5 + 1}-{at % 5}" if word == NEXT else word for word in words) for at, words in enumerate(lines)
    ]


def maybe(*parts: str | st.SearchStrategy[Any]) -> st.SearchStrategy[Line]:
    return st.one_of(st.just(()), line(*parts))


def some(words: st.SearchStrategy[str], least: int = 1) -> st.SearchStrategy[list[str]]:
    return st.lists(words, min_size=least, max_size=3)


fields = st.sampled_from([("uid", "x"), ("uid", "x", "m", "long" * 5), ("uid",)])
adding = line("XADD", streams, NEXT, fields)
reading = line(
    "XREADGROUP", "GROUP", groups, consumers, "COUNT", counts, "STREAMS", streams, st.one_of(st.just(">"), positions)
)
claiming = line(
    *("XCLAIM", streams, groups, consumers, ages, some(ids)),
    *(maybe("IDLE", ages), maybe("RETRYCOUNT", counts), maybe("JUSTID")),
)
sweeping = line("XAUTOCLAIM", streams, groups, consumers, ages, starts, maybe("COUNT", counts), maybe("JUSTID"))
acknowledging = line("XACK", streams, groups, some(ids))
others = st.one_of(
    line("XADD", streams, st.one_of(ids, st.sampled_from(["5-*", "8-*", "nonsense"])), fields),
    line("XDEL", streams, some(ids)),
    line("XTRIM", streams, "MINID", positions),
    sweeping,
    line("XADD", streams, "MAXLEN", st.sampled_from(["=", "~"]), counts, ids, "uid", "y"),
    line("XADD", keys, "NOMKSTREAM", ids, "uid", "z"),
    line("XDEL", streams, some(ids)),
    line("XTRIM", streams, "MINID", maybe(st.sampled_from(["=", "~"])), positions),
    line("XTRIM", streams, "MAXLEN", counts),
    line("XLEN", keys),
    line("XRANGE", keys, starts, ends, maybe("COUNT", counts)),
    line("XREVRANGE", streams, ends, starts, maybe("COUNT", counts)),
    line("XREAD", maybe("COUNT", counts), "STREAMS", "s", "t", positions, positions),
    line("XREADGROUP", "GROUP", groups, consumers, "STREAMS", "s", "t", st.sampled_from([">", "0"]), ">"),
    line("XPENDING", streams, groups),
    line("XPENDING", streams, groups, maybe("IDLE", ages), starts, ends, counts, maybe(consumers)),
    line("XGROUP", "CREATE", keys, groups, st.one_of(positions, st.just("$")), maybe("MKSTREAM")),
    line("XGROUP", "SETID", streams, groups, st.one_of(positions, st.just("$"))),
    line("XGROUP", "DESTROY", streams, groups),
    line("XGROUP", "CREATECONSUMER", streams, groups, consumers),
    line("XGROUP", "DELCONSUMER", streams, groups, consumers),
    line("XSETID", streams, ids, maybe("ENTRIESADDED", counts, "MAXDELETEDID", ids)),
    line("FCALL", "spark_set_idle", "1", streams, groups, consumers, ages, some(ids)),
    line("FCALL", "spark_adopt", "1", streams, groups, consumers),
    line("FCALL", "spark_trim", "1", streams, st.sampled_from(["0", "1", "2"]), "100"),
    line("FCALL", "spark_backlog", "1", keys, groups),
    line("FCALL", "spark_take_fence", "1", "string", st.sampled_from(["1", "2"]), st.sampled_from(["1:a", "2:b"])),
    line("FCALL_RO", st.sampled_from(["spark_backlog", "spark_adopt", "nothing"]), "1", streams, groups),
    line("SET", keys, st.sampled_from(["1:a", "5"]), maybe(st.sampled_from(["NX", "XX"])), maybe("PX", LONG_MS)),
    line("SETNX", keys, "7"),
    line("GET", keys),
    line("MGET", some(keys)),
    line("EXISTS", some(keys)),
    line("DEL", some(keys)),
    line("TYPE", keys),
    line("HSET", keys, some(st.sampled_from(["f", "7"]), least=2)),
    line("HGET", keys, st.sampled_from(["f", "7"])),
    line("HGETALL", keys),
    line("HDEL", keys, some(st.sampled_from(["f", "7"]))),
    line("HINCRBY", keys, st.sampled_from(["f", "n"]), st.sampled_from(["1", "-3", "x"])),
    line("SADD", keys, some(st.sampled_from(["m", "n", "o"]))),
    line("SREM", keys, some(st.sampled_from(["m", "n", "o"]))),
    line("SMEMBERS", keys),
)
commands = st.one_of(adding, adding, adding, reading, reading, claiming, sweeping, acknowledging, others, others)
sessions = st.sampled_from([1, 40]).flatmap(
    lambda least: st.lists(commands, min_size=least, max_size=80).map(_numbered)
)
"""Lists of commands, long ones more often than hypothesis would by itself, for a server with ``STREAMS``."""
STREAMS: tuple[Line, ...] = (
    ("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"),
    ("XGROUP", "CREATE", "s", "h", "0"),
    ("XGROUP", "CREATE", "t", "g", "0", "MKSTREAM"),
)
LOOKS: tuple[Line, ...] = tuple(
    tuple(words.split())
    for stream in ("s", "t")
    for words in (
        f"XINFO STREAM {stream}",
        f"XINFO GROUPS {stream}",
        *(f"XINFO CONSUMERS {stream} {group}" for group in "gh"),
        *(f"XPENDING {stream} {group} - + 100" for group in "gh"),
        f"XRANGE {stream} - +",
    )
)


def answer(client: Client, words: Line) -> Any:
    """What the server says, without the times in it; an error as its text."""
    try:
        reply = client.execute_command(*words)
    except redis.ResponseError as error:
        return type(error), str(error)
    return timeless(words, reply)


def timeless(words: Line, reply: Any) -> Any:
    match words:
        case ("XPENDING", _, _, _, *_) if isinstance(reply, list):
            return [[row[0], row[1], row[2] >= int(LONG_MS), row[3]] for row in reply]
        case ("XINFO", "CONSUMERS", *_):
            return [[*row[:5], row[7] < 0] for row in reply]
        case ("XINFO", "STREAM", *_):
            return {name: value for name, value in zip(reply[::2], reply[1::2], strict=True) if b"radix" not in name}
        case (_, "spark_backlog", *_):
            return [*reply[:2], reply[2] >= int(LONG_MS)]
        case ("EXEC",):
            return [(type(part), str(part)) if isinstance(part, Exception) else part for part in reply]
    return reply


def lines_of(text: str) -> list[Line]:
    return [tuple(words.split()) for words in text.strip().splitlines()]
