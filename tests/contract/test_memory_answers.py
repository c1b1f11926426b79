"""The simulation's server in memory answers commands as the real server does, in the same words."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator

import pytest
from command_lines import LOOKS, STREAMS, Line, answer, lines_of, sessions
from hypothesis import HealthCheck, Phase, given, settings

from common.server import Client, connect, load_functions
from simulation.memory_client import connect_memory
from simulation.memory_server import MemoryServer


def single(client: Client) -> Client:
    """One connection, which a MULTI needs that is sent word by word."""
    return bare(client.client())


def bare(client: Client) -> Client:
    """Answers as they are on the wire."""
    client.response_callbacks.clear()
    return client


@pytest.fixture
def real(server_url: str) -> Iterator[Client]:
    with connect(server_url) as client:
        load_functions(client)
        yield bare(client)


@pytest.fixture
def memory() -> Client:
    client = connect_memory(MemoryServer(time.time))
    load_functions(client)
    return bare(client)


def compare(real: Client, memory: Client, lines: Iterable[Line]) -> None:
    for words in (("FLUSHALL",), *lines):
        assert answer(memory, words) == answer(real, words), " ".join(words)


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=(Phase.reuse, Phase.generate),  # add Phase.shrink to study a failure: it takes minutes
)
@given(lines=sessions)
def test_random_commands(real: Client, memory: Client, lines: list[Line]) -> None:
    compare(real, memory, [*STREAMS, *lines, *LOOKS])


CASES = {
    "ids": """
        XADD s 0-0 f v
        XADD s 5-5 f v
        XADD s 5-5 f v
        XADD s 18446744073709551615-18446744073709551615 f v
        XADD s * f v
        XADD s 18446744073709551615-* f v
        XADD t 18446744073709551616-1 f v
        XADD t *-1 f v
        XADD t 1-1-1 f v
        XADD t * f
        XRANGE s (18446744073709551615-18446744073709551615 +
        XRANGE s - (0-0
        XRANGE s bad +
        XREVRANGE s + - COUNT x
        XREAD STREAMS s >
        XREAD STREAMS s 0 1
        XREADGROUP GROUP g c STREAMS s t 0
        XREADGROUP GROUP g c STREAMS s $
        XDEL s q
    """,
    "trimming": """
        XADD s MAXLEN -1 * a 1
        XADD s MAXLEN x * a 1
        XTRIM s MAXLEN 0 LIMIT 10
        XTRIM s FOO 0
        XTRIM none MINID 6
        XSETID none 1-1
    """,
    "what a group has read": """
        XADD s 1-0 a 1
        XADD s 2-0 a 1
        XADD s 3-0 a 1
        XADD s 4-0 a 1
        XGROUP CREATE s g 0
        XGROUP CREATE s h 1
        XGROUP CREATE s i $
        XREADGROUP GROUP g c COUNT 1 STREAMS s >
        XINFO GROUPS s
        XTRIM s MINID 3
        XINFO GROUPS s
        XREADGROUP GROUP g c COUNT 1 STREAMS s >
        XINFO GROUPS s
        XADD s 5-0 a 1
        XADD s 6-0 a 1
        XDEL s 5-0
        XINFO GROUPS s
        XDEL s 3-0 4-0
        XINFO GROUPS s
        XGROUP SETID s h 4
        XINFO GROUPS s
        XREADGROUP GROUP g c COUNT 1 STREAMS s >
        XDEL s 6-0
        XINFO GROUPS s
        XSETID s 9-0
        XINFO GROUPS s
        XADD s 9-1 a 1
        XINFO GROUPS s
    """,
    "deleted while pending": """
        XADD s 1-0 a 1
        XADD s 2-0 a 1
        XADD s 3-0 a 1
        XGROUP CREATE s g 0
        XREADGROUP GROUP g c STREAMS s >
        XDEL s 1-0
        XREADGROUP GROUP g c STREAMS s 0
        XREADGROUP GROUP g d STREAMS s 0
        XPENDING s g - + 10
        XPENDING s g
        XCLAIM s g d 0 1-0 2-0
        XPENDING s g - + 10
        XTRIM s MAXLEN 0
        XREADGROUP GROUP g c COUNT 1 STREAMS s 0
        XACK s g 2-0
        XINFO STREAM s
    """,
    "groups that are not there": """
        XGROUP CREATE none g 0
        XGROUP SETID none g 0
        XGROUP DESTROY none g
        XGROUP DELCONSUMER none g c
        XADD s 1-1 a 1
        XGROUP CREATE s g bad
        XGROUP CREATE s g 0
        XGROUP CREATE s g 0
        XGROUP SETID s none 0
        XGROUP DESTROY s none
        XREADGROUP GROUP none c STREAMS s >
        XREADGROUP GROUP g c STREAMS s none > >
        XREADGROUP GROUP g c BLOCK -1 STREAMS s >
        XREADGROUP GROUP g c STREAMS s bad
        XPENDING s none
        XPENDING none g - + 10
        XPENDING s g - +
        XPENDING s g - + x
        XPENDING s g IDLE x - + 5
        XPENDING s g IDLE 0 - + 5 c d
        XACK s none 1-1
        XACK s g bad
        XCLAIM s none c 0 1-1
        XCLAIM s g c x 1-1
        XCLAIM s g c 0 1-1 IDLE x
        XAUTOCLAIM s g c 0 0 COUNT 0
        XINFO GROUPS none
        XINFO CONSUMERS s none
        XINFO STREAM none
    """,
    "arguments": """
        SET a
        SET a 1 PX 0
        SET a 1 PX x
        SET a 1 PX
        DEL
        HSET h a
        HSET h a 1 b
        XGROUP CREATE s
        XINFO GROUPS
        FLUSHALL FOO
        CONFIG SET maxmemory-policy noeviction
        CONFIG GET maxmemory
        PING
        PING hello
        SET a 1 PX 100000000
        TYPE a
        SET a 2
        PTTL a
        PTTL none
    """,
    "functions": """
        FCALL none 0
        FCALL spark_trim -1
        FCALL spark_trim 5 s
        FCALL spark_trim x s
        FCALL spark_trim 1 none 0 5
        FCALL spark_trim 1 none x 5
        FCALL spark_set_idle 1 none g c 0 1-1
        FCALL_RO spark_trim 1 s 1 5
        FCALL_RO spark_backlog 1 none g
        SET string 1
        FCALL spark_backlog 1 string g
        FUNCTION LIST LIBRARYNAME none
    """,
    "transactions": """
        EXEC
        MULTI
        MULTI
        SET a 1
        XLEN a
        GET a
        FCALL spark_backlog 1 none g
        EXEC
        MULTI
        GET a
        FCALL spark_backlog 1 none g
        XLEN a
        EXEC
        MULTI
        GET
        EXEC
        MULTI
        FCALL none 0
        GET a
        EXEC
    """,
    "out of memory": """
        XADD s 1-1 a 1
        XGROUP CREATE s g 0
        SET a 1
        CONFIG SET maxmemory 1
        SET a 2
        SETNX b 1
        GET a
        SADD x 1
        HSET h a 1
        HINCRBY h a 1
        XADD s 5-5 a b
        XSETID s 40-1
        XGROUP CREATE s g5 0
        XGROUP CREATECONSUMER s g c
        XGROUP SETID s g 0
        XREADGROUP GROUP g c STREAMS s >
        XREADGROUP GROUP g new STREAMS s >
        XCLAIM s g d 0 1-1 JUSTID
        XACK s g 1-1
        XDEL s 1-1
        XTRIM s MINID 0
        XGROUP DELCONSUMER s g c
        XGROUP DESTROY s g
        HDEL h a
        SREM x 1
        PING
        FCALL spark_issue 5 fence cursor tasks ledger events token 0 0
        FCALL spark_backlog 1 s g
        FCALL_RO spark_backlog 1 s g
        FCALL spark_take_fence 1 fence 1 1:a
        MULTI
        GET a
        SET a 3
        EXEC
        MULTI
        FCALL spark_issue 5 fence cursor tasks ledger events token 0 0
        EXEC
        MULTI
        FCALL spark_take_fence 1 fence 2 2:a
        FCALL spark_backlog 1 s g
        EXEC
        DEL a
        FUNCTION FLUSH
        FLUSHALL
    """,
}


@pytest.mark.parametrize("case", CASES)
def test_errors_are_in_the_same_words(real: Client, memory: Client, case: str) -> None:
    try:
        with single(real) as one, single(memory) as other:
            compare(one, other, lines_of(CASES[case]))
    finally:
        real.execute_command("CONFIG SET", "maxmemory", 0)


LIBRARY = r"""#!lua name=odd
local function define(name, callback, flags)
  redis.register_function{function_name = name, callback = callback, flags = flags}
end
redis.register_function('short', function() return 1 end)
define('mixed', function() return {1, 2.7, 'x', false, true, {}, {1, {2}}, nil, 3} end)
define('nothing', function() end)
define('truth', function() return true end)
define('argument', function(keys, args) return {keys[1], args[1], #keys, #args} end)
define('set', function() return redis.call('SET', 'a', '1') end)
define('set_number', function() redis.call('SET', 'a', 1.5) return redis.call('GET', 'a') end)
define('set_integer', function() redis.call('SET', 'a', 3) return redis.call('GET', 'a') end)
define('absent', function() return {redis.call('GET', 'none') == false, redis.call('XRANGE', 'none', '-', '+')} end)
define('status', function() return redis.call('SET', 'a', '1').ok end)
define('few', function() return redis.call('GET') end)
define('wrong_type', function() redis.call('SET', 'a', 'text') return redis.call('HGETALL', 'a') end)
define('caught', function() redis.call('SET', 'a', '1') return {redis.pcall('XLEN', 'a').err, 1} end)
define('sneaky', function() return redis.call('SET', 'a', '5') end, {'no-writes'})
define('undefined', function() return undefined_name end)
define('global', function() new_global = 1 end)
define('code', function() return redis.error_reply('MY text') end)
define('dash', function() return redis.error_reply('-MY text') end)
define('word', function() return redis.error_reply('word') end)
define('table', function() return {err = 'MY text'} end)
define('fine', function() return redis.status_reply('fine') end)
define('raised', function() error('plain') end)
define('compared', function() return 1 < nil end)
define('bytes', function() return '\0\255' end)
define('many', function() return #{unpack({1, 2, 3})} end)
define('sums', function() return math.floor(7 / 2) + tonumber('3') end)
"""


def test_functions_see_the_same_world(real: Client, memory: Client) -> None:
    for client in (real, memory):
        assert client.execute_command("FUNCTION LOAD", "REPLACE", LIBRARY) == b"odd"
    try:
        names = re.findall(r"^(?:define|redis.register_function)\('(\w+)'", LIBRARY, re.MULTILINE)
        assert len(names) == 26
        compare(real, memory, [("FCALL", name, "1", "key", "argument") for name in names])
        compare(real, memory, [("FCALL_RO", name, "0") for name in ("sneaky", "set")])
    finally:
        real.execute_command("FUNCTION DELETE", "odd")


@pytest.mark.parametrize(
    "code",
    [
        "return 1",
        "#!lua name=other\nsome words",
        "#!lua name=other\nnone.x = 1",
        "#!lua name=spark\nredis.register_function('f', function() end)",
        "#!lua name=other\nredis.register_function('spark_trim', function() end)",
    ],
)
def test_code_that_is_no_library_is_refused(real: Client, memory: Client, code: str) -> None:
    compare(real, memory, [("FUNCTION", "LOAD", code)])


def test_nodes_are_trimmed_whole(real: Client, memory: Client) -> None:
    adding = [("XADD", "s", f"{ms}-0", "uid", "x") for ms in range(1, 351)]
    trims = [
        *(("XTRIM", "s", "MINID", "~", str(ms), "LIMIT", "200") for ms in (50, 150, 340)),
        *(("XTRIM", "s", "MAXLEN", "~", "120"), ("XDEL", "s", "301-0"), ("XTRIM", "s", "MAXLEN", "~", "0")),
    ]
    compare(real, memory, [*adding, *trims, ("XLEN", "s"), ("XADD", "s", "MAXLEN", "~", "1", "999-0", "uid", "x")])


def test_what_it_does_not_know_it_does_not_guess(memory: Client) -> None:
    for words in ("NOSUCH a", "SET a 1 KEEPTTL", "XREADGROUP GROUP g c NOACK STREAMS s >", "CONFIG GET save"):
        memory.execute_command("XGROUP CREATE", "s", "g", "0", "MKSTREAM")
        with pytest.raises(NotImplementedError, match="teach it"):
            memory.execute_command(*words.split())
        memory.execute_command("FLUSHALL")
