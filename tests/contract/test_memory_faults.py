"""What the simulation does to the server in memory: its clock, its disk, lost messages, full and dead servers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import redis
from command_lines import LOOKS, STREAMS, Line, answer, sessions
from hypothesis import Phase, given, settings

from common.consumer import Consumer
from common.errors import ServerError
from common.keys import ACTORS
from common.server import Client, load_functions
from common.streams import Streams
from simulation.memory_client import Intercept, Words, connect_memory
from simulation.memory_server import MemoryServer


class Clock:
    """Stands still until it is moved; seconds."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> MemoryServer:
    return MemoryServer(clock)


@pytest.fixture
def client(server: MemoryServer) -> Client:
    client = connect_memory(server)
    load_functions(client)
    return client


@dataclass
class Recorder(Intercept):
    """Writes down what it is told, and does what the test says."""

    told: list[tuple[str, str]] = field(default_factory=list)
    on_before: Callable[[Words], None] = lambda command: None
    on_after: Callable[[Words], None] = lambda command: None
    on_wait: Callable[[int], None] = lambda wait_ms: None

    def before(self, command: Words) -> None:
        self.told.append(("before", command[0].decode()))
        self.on_before(command)

    def after(self, command: Words) -> None:
        self.told.append(("after", command[0].decode()))
        self.on_after(command)

    def waits(self, command: Words, wait_ms: int) -> None:
        self.told.append(("waits", f"{command[0].decode()} {wait_ms}"))
        self.on_wait(wait_ms)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def watched(server: MemoryServer, recorder: Recorder) -> Client:
    return connect_memory(server, recorder)


def lost(command: Words) -> None:
    raise redis.ConnectionError("lost")


# -- its clock --------------------------------------------------------------------------------------------


def test_ids_grow_also_when_the_clock_steps_back(client: Client, clock: Clock) -> None:
    ids = []
    for clock.now in (1000.0, 1000.0, 1000.5, 10.0, 1000.501):
        ids.append(client.xadd("s", {"a": "1"}).decode())
    assert ids == ["1000000-0", "1000000-1", "1000500-0", "1000500-1", "1000501-0"]


def test_a_heartbeat_ends_by_the_servers_clock(streams: Streams, clock: Clock) -> None:
    streams.heartbeat("actor", {"a": 1}, ttl_s=5.0)
    clock.now += 4.999
    assert streams.members() == {"actor": {"a": 1}}
    clock.now += 0.001
    assert streams.members() == {"actor": None}
    assert not streams.client.exists(streams.keys.heartbeat("actor"))


def test_a_lease_ends_by_the_servers_clock(streams: Streams, clock: Clock) -> None:
    tasks = streams.keys.tasks("policy")
    streams.client.xadd(tasks, {"uid": "a", "m": b""})
    [entry] = streams.read_new(ACTORS, "one", [tasks], 1, None)
    clock.now += 20.0
    assert streams.renew(tasks, ACTORS, "one", [entry.id]) == {entry.id}
    clock.now += 29.999
    assert streams.read_expired(ACTORS, "two", tasks, 30_000, 1) == []
    assert streams.backlog(tasks, ACTORS).oldest_idle_ms == 29_999
    clock.now += 0.001
    assert [taken.deliveries for taken in streams.read_expired(ACTORS, "two", tasks, 30_000, 1)] == [2]


# -- its disk ---------------------------------------------------------------------------------------------


def dump(client: Client) -> list[object]:
    keys: list[Line] = [("GET", "string"), ("HGETALL", "hash"), ("SMEMBERS", "set"), ("PTTL", "string")]
    return [answer(client, words) for words in (*LOOKS, *keys)]


@settings(max_examples=50, phases=(Phase.reuse, Phase.generate))
@given(before=sessions, after=sessions)
def test_a_power_cut_goes_back_to_the_last_fsync(before: list[Line], after: list[Line]) -> None:
    server = MemoryServer(Clock())
    client = connect_memory(server)
    client.response_callbacks = {}
    load_functions(client)
    for words in (*STREAMS, *before):
        answer(client, words)
    server.fsync()
    durable = dump(client)
    for _ in range(2):  # what came back is as durable as it was
        for words in after:
            answer(client, words)
        server.power_cut()
        assert dump(client) == durable


def test_what_was_in_hands_comes_back_into_the_same_hands(server: MemoryServer, streams: Streams) -> None:
    tasks = streams.keys.tasks("policy")
    for uid in "ab":
        streams.client.xadd(tasks, {"uid": uid, "m": b""})
    [entry] = streams.read_new(ACTORS, "one", [tasks], 1, None)
    server.fsync()
    for _ in range(2):
        assert streams.transfer(tasks, ACTORS, streams.keys.rollouts("policy"), [(entry.id, [])]) == [True]
        assert [taken.uid for taken in streams.read_new(ACTORS, "two", [tasks], 9, None)] == ["b"]
        server.power_cut()
        assert streams.own_pending(ACTORS, "one", tasks, "0-0", 9) == [(entry.id, 1)]
        assert streams.own_pending(ACTORS, "two", tasks, "0-0", 9) == []


def test_what_was_never_synced_is_gone(server: MemoryServer, client: Client) -> None:
    client.set("a", 1)
    server.power_cut()
    assert client.get("a") is None
    assert client.function_list() == []


def test_a_killed_server_comes_back_with_everything_but_its_settings(server: MemoryServer, client: Client) -> None:
    client.set("a", 1)
    client.config_set("maxmemory", 1)
    server.restart()
    assert client.get("a") == b"1"
    client.set("a", 2)
    assert client.function_list()


def test_a_flushed_server_keeps_its_functions(server: MemoryServer, client: Client) -> None:
    client.set("a", 1)
    server.flushall()
    server.fsync()
    server.power_cut()
    assert client.get("a") is None
    assert client.function_list()


# -- dead or full -----------------------------------------------------------------------------------------


def test_a_dead_server_is_a_lost_connection(server: MemoryServer, client: Client) -> None:
    server.down = True
    for _ in range(2):
        with pytest.raises(redis.ConnectionError, match="refused"):
            client.get("a")
    server.down = False
    assert client.get("a") is None


def test_a_dead_server_is_given_up_after_the_set_time(server: MemoryServer, client: Client, clock: Clock) -> None:
    def sleep(delay_s: float) -> None:
        clock.now += delay_s

    server.down = True
    with pytest.raises(ServerError, match="memory has not answered for 60 s"):
        Streams(client, "test", clock=clock, sleep=sleep).progress()
    assert 1057.0 < clock.now <= 1060.0


def test_a_server_that_is_shut_down_has_synced(server: MemoryServer, client: Client) -> None:
    client.set("a", 1)
    client.shutdown()
    with pytest.raises(redis.ConnectionError):
        client.get("a")
    server.power_cut()
    assert client.get("a") == b"1"


@pytest.mark.parametrize(
    ("full", "refused", "taken"),
    [
        ("memory", ["SET a 1", "XADD s * a 1", "FCALL spark_issue 5 f c t l e x 0 0"], ["PING", "DEL a", "GET a"]),
        ("memory", [], ["FCALL spark_take_fence 1 f 1 1:a", "XACK s g 1-1", "FCALL spark_unacked 1 s g 0-0 1"]),
        ("disk", ["SET a 1", "PING", "DEL a", "XACK s g 1-1", "FCALL spark_take_fence 1 f 1 1:a"], ["GET a"]),
        ("disk", ["XREADGROUP GROUP g c STREAMS s >"], ["XRANGE s - +", "FCALL spark_unacked 1 s g 0-0 1"]),
    ],
)
def test_a_full_server_refuses_before_any_effect(
    server: MemoryServer, client: Client, full: str, refused: list[str], taken: list[str]
) -> None:
    client.xgroup_create("s", "g", "0", mkstream=True)
    client.xadd("s", {"a": "1"}, id="1-1")
    client.response_callbacks = {}
    before = dump(client)
    server.full = full
    for words in refused:
        with pytest.raises(redis.ResponseError, match=r"^MISCONF|not allowed when used memory"):
            client.execute_command(*words.split())
    assert dump(client) == before
    for words in taken:
        client.execute_command(*words.split())


# -- lost messages ----------------------------------------------------------------------------------------


def test_a_lost_request_has_no_effect(client: Client, watched: Client, recorder: Recorder) -> None:
    recorder.on_before = lost
    with pytest.raises(redis.ConnectionError):
        watched.set("a", 1)
    assert client.get("a") is None
    recorder.on_before = lambda command: None
    watched.set("a", 2)
    assert client.get("a") == b"2"


def test_a_lost_reply_has_its_effect(client: Client, watched: Client, recorder: Recorder) -> None:
    recorder.on_after = lost
    with pytest.raises(redis.ConnectionError):
        watched.set("a", 1)
    assert client.get("a") == b"1"


def test_an_error_reply_can_be_lost_too(client: Client, watched: Client, recorder: Recorder) -> None:
    client.set("a", 1)
    recorder.on_after = lost
    with pytest.raises(redis.ConnectionError):
        watched.xlen("a")


def test_every_command_of_a_pipeline_is_told(watched: Client, recorder: Recorder) -> None:
    for transaction in (False, True):
        with watched.pipeline(transaction=transaction) as pipe:
            pipe.set("a", 1)
            pipe.get("a")
            assert pipe.execute() == [True, b"1"]
    names = [name for what, name in recorder.told if what == "before"]
    assert names == ["SET", "GET", "MULTI", "SET", "GET", "EXEC"]
    assert len(recorder.told) == 2 * len(names)


def test_a_pipeline_is_cut_between_two_commands(client: Client, watched: Client, recorder: Recorder) -> None:
    recorder.on_before = lambda command: lost(command) if command[1] == b"b" else None
    with watched.pipeline(transaction=False) as pipe, pytest.raises(redis.ConnectionError):
        pipe.set("a", 1).set("b", 1).set("c", 1).execute()
    assert client.mget("a", "b", "c") == [b"1", None, None]
    assert watched.mget("a") == [b"1"]  # nothing of it is left on the connection


def test_a_transaction_without_its_exec_has_no_effect(client: Client, watched: Client, recorder: Recorder) -> None:
    recorder.on_before = lambda command: lost(command) if command[0] == b"EXEC" else None
    with watched.pipeline() as pipe, pytest.raises(redis.ConnectionError):
        pipe.set("a", 1).execute()
    assert client.get("a") is None
    assert watched.get("a") is None  # no MULTI is left on the connection


def test_a_signal_in_a_transaction_leaves_nothing_of_it(client: Client, watched: Client, recorder: Recorder) -> None:
    def interrupt(command: Words) -> None:
        raise KeyboardInterrupt

    recorder.on_before = lambda command: interrupt(command) if command[0] == b"SET" else None
    with watched.pipeline() as pipe, pytest.raises(KeyboardInterrupt):
        pipe.get("a").set("a", 1).execute()
    assert watched.get("a") is None


def test_a_transaction_is_atomic(client: Client, watched: Client, recorder: Recorder) -> None:
    """Others come before its EXEC or after it, never between its commands."""
    seen = []
    recorder.on_before = recorder.on_after = lambda command: seen.append(client.mget("a", "b"))
    with watched.pipeline() as pipe:
        pipe.set("a", 1).set("b", 1).execute()
    assert set(map(tuple, seen)) == {(None, None), (b"1", b"1")}


def test_a_process_can_be_killed_around_every_command(client: Client, watched: Client, recorder: Recorder) -> None:
    class Killed(BaseException):
        pass

    def kill(command: Words) -> None:
        raise Killed

    recorder.on_after = kill
    with pytest.raises(Killed):
        watched.set("a", 1)
    assert client.get("a") == b"1"


# -- waiting ----------------------------------------------------------------------------------------------


def test_a_blocking_read_says_how_long_it_may_wait(
    streams: Streams, watched: Client, recorder: Recorder, clock: Clock
) -> None:
    def pass_time(wait_ms: int) -> None:
        clock.now += wait_ms / 1000

    recorder.on_wait = pass_time
    own = Streams(watched, "test")
    assert Consumer(own, ACTORS, "c", [own.keys.tasks("policy")]).claim(1, block_ms=2000) == []
    assert recorder.told[-2:] == [("waits", "XREADGROUP 2000"), ("after", "XREADGROUP")]
    assert clock.now == 1002.0


def test_what_comes_during_the_wait_is_delivered(streams: Streams, watched: Client, recorder: Recorder) -> None:
    tasks = streams.keys.tasks("policy")
    recorder.on_wait = lambda wait_ms: streams.client.xadd(tasks, {"uid": "a", "m": b""})
    own = Streams(watched, "test")
    assert [entry.uid for entry in Consumer(own, ACTORS, "c", [tasks]).claim(1, block_ms=2000)] == ["a"]


def test_a_wait_for_what_is_new_begins_when_it_was_asked(client: Client, watched: Client, recorder: Recorder) -> None:
    client.xadd("s", {"n": "old"}, id="1-1")
    recorder.on_wait = lambda wait_ms: client.xadd("s", {"n": "new"}, id="2-1")
    assert watched.xread({"s": "$"}, block=10) == [[b"s", [(b"2-1", {b"n": b"new"})]]]


def test_a_group_destroyed_during_the_wait_ends_it(streams: Streams, watched: Client, recorder: Recorder) -> None:
    tasks = streams.keys.tasks("policy")
    recorder.on_wait = lambda wait_ms: streams.client.xgroup_destroy(tasks, ACTORS)
    with pytest.raises(redis.ResponseError, match="NOGROUP"):
        watched.xreadgroup(ACTORS, "c", {tasks: ">"}, block=10)


@pytest.mark.parametrize("cut", [MemoryServer.restart, MemoryServer.power_cut])
def test_a_restart_ends_a_wait_with_a_lost_connection(
    server: MemoryServer,
    streams: Streams,
    watched: Client,
    recorder: Recorder,
    cut: Callable[[MemoryServer], None],
) -> None:
    server.fsync()
    tasks = streams.keys.tasks("policy")
    recorder.on_wait = lambda wait_ms: cut(server)
    with pytest.raises(redis.ConnectionError, match="closed"):
        watched.xreadgroup(ACTORS, "c", {tasks: ">"}, block=10)
    recorder.on_wait = lambda wait_ms: None
    assert watched.xreadgroup(ACTORS, "c", {tasks: ">"}, block=10) == []


def test_servers_share_nothing(client: Client, clock: Clock) -> None:
    other = connect_memory(MemoryServer(clock))
    load_functions(other)
    assert client.fcall("spark_take_fence", 1, "fence", 1, "1:a") == 1
    assert other.get("fence") is None
    assert other.fcall("spark_take_fence", 1, "fence", 1, "1:b") == 1
    assert client.get("fence") == b"1:a"
