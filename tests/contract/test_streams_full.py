"""A server out of memory or out of disk: producers are told and pause, everything else goes on or waits."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from cli.embedded import EmbeddedServer
from common.consumer import Consumer
from common.errors import ServerError, ServerFull
from common.keys import ACTORS, LEARNER, RECYCLER
from common.messages import WeightManifest
from common.server import Client, load_functions
from common.streams import Ending, Product, Streams
from simulation.memory_client import connect_memory
from simulation.memory_server import MemoryServer


@contextlib.contextmanager
def out_of_memory(client: Client) -> Iterator[None]:
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


def product(uid: str) -> Product:
    return Product(uid=uid, payload=b"g")


@pytest.fixture
def loaded_run(run):
    """One task at hand, one group pending with the learner and read by the recycler. No call may wait."""

    def wait(delay_s: float) -> None:
        pytest.fail("a call waited for room")

    run.streams = Streams(run.streams.client, "test", sleep=wait)
    run.issue("a", "b")
    run.first, run.second = run.streams.read_new(ACTORS, "c", [run.tasks], 10, None)
    run.streams.transfer(run.tasks, ACTORS, run.rollouts, [(run.first.id, [product("a")])])
    [run.group] = run.streams.read_new(LEARNER, "l", [run.rollouts], 10, None)
    run.streams.read_new(RECYCLER, "r", [run.rollouts], 10, None)
    return run


def test_producers_are_refused_and_nothing_has_changed(loaded_run, make_task) -> None:
    run = loaded_run
    with out_of_memory(run.streams.client):
        with pytest.raises(ServerFull, match="takes no new entries"):
            run.streams.issue(run.token, 2, [make_task("c")])
        with pytest.raises(ServerFull):
            run.streams.transfer(run.tasks, ACTORS, run.rollouts, [(run.second.id, [product("b")])])
        assert run.streams.cursor() == 2
        assert set(run.pending(run.tasks, ACTORS)) == {run.second.id}
    assert run.streams.issue(run.token, 2, [make_task("c")]) == 3
    assert run.streams.transfer(run.tasks, ACTORS, run.rollouts, [(run.second.id, [product("b")])]) == [True]


def test_a_process_that_does_not_catch_it_exits_as_for_an_unfit_server() -> None:
    assert issubclass(ServerFull, ServerError)
    assert ServerFull.exit_code == 3


def test_consumers_drain_a_full_server(loaded_run) -> None:
    run = loaded_run
    with out_of_memory(run.streams.client):
        assert run.streams.renew(run.tasks, ACTORS, "c", [run.second.id]) == {run.second.id}
        assert run.streams.hand_back(run.tasks, ACTORS, "c", [run.second.id]) == {run.second.id}
        [taken] = run.streams.read_expired(ACTORS, "d", run.tasks, 60_000, 1)
        assert run.streams.bury(taken, ACTORS, "poison", "policy")
        end = Ending(stream=run.rollouts, id=run.group.id, uid="a", outcome="trained", kind="policy")
        assert run.streams.settle(run.token, LEARNER, 1, [end]) == 1
        assert run.streams.transfer(run.rollouts, RECYCLER, run.judge_tasks, [(run.group.id, [])]) == [True]
        assert run.streams.trim(run.rollouts) == 1
        assert run.streams.trim(run.tasks) == 2
        assert run.streams.client.xlen(run.rollouts) == 0


def test_a_full_server_is_still_read_from(loaded_run) -> None:
    run = loaded_run
    run.issue("c")
    with out_of_memory(run.streams.client):
        assert [entry.uid for entry in Consumer(run.streams, ACTORS, "e", [run.tasks]).claim(1)] == ["c"]


def test_a_learner_can_start_and_go_on_at_a_full_server(loaded_run) -> None:
    """Otherwise nobody would be left to drain it."""
    run = loaded_run
    with out_of_memory(run.streams.client):
        run.streams.create_groups()
        assert run.streams.take_fence(2, "2:next")
        assert run.streams.adopt(run.rollouts, LEARNER, "L2") == 1
        run.streams.report_progress(policy_version=2)
        run.streams.heartbeat("learner", {}, ttl_s=60)
        run.streams.publish(WeightManifest(epoch=2, version=2, parent=1, uri="/nowhere", files=()))
        assert run.streams.progress() == {"policy_version": "2"}
        assert run.streams.members() == {"learner": {}}
        assert len(run.streams.newest_weights()) == 1


def test_a_group_that_is_missing_cannot_be_made_on_a_full_server_but_is_waited_for(run) -> None:
    run.streams.client.xgroup_destroy(run.rollouts, LEARNER)
    waits: list[float] = []

    def make_room(delay_s: float) -> None:
        waits.append(delay_s)
        if len(waits) == 3:
            run.streams.client.config_set("maxmemory", 0)

    streams = Streams(run.streams.client, "test", give_up_s=0.0, sleep=make_room)
    with out_of_memory(run.streams.client):
        streams.create_groups()
    assert len(waits) == 3  # longer than give_up_s: a full server does answer


@dataclass
class FullDisk:
    """A server that has a run and cannot write to its disk, and so refuses every write."""

    client: Client
    heal: Callable[[], None]


def prepare(client: Client) -> Streams:
    load_functions(client)
    streams = Streams(client, "test")
    streams.create_groups()
    assert streams.take_fence(1, "1:a")
    client.xadd(streams.keys.tasks("policy"), {"uid": "a", "m": b""})
    return streams


@pytest.fixture
def disk_full(backend: str, memory_server: MemoryServer, request: pytest.FixtureRequest) -> Iterator[FullDisk]:
    if backend == "redis":
        yield request.getfixturevalue("real_disk_full")
        return
    client = connect_memory(memory_server)
    prepare(client)
    memory_server.full = "disk"
    yield FullDisk(client, lambda: setattr(memory_server, "full", None))


@pytest.fixture
def real_disk_full(
    tmp_path: Path, clients: Callable[[str], Client], wait_until: Callable[[Callable[[], bool]], None]
) -> Iterator[FullDisk]:
    """Its directory is gone."""
    folder = tmp_path / "disk"
    options = {"appendonly": "no", "save": "3600 1"}
    with EmbeddedServer(folder, options=options, log_file=tmp_path / "server.log") as server:
        client = clients(server.url)
        prepare(client)
        shutil.rmtree(folder)
        client.bgsave()
        wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        yield FullDisk(client, lambda: client.config_set("stop-writes-on-bgsave-error", "no"))
        client.config_set("save", "")


def test_out_of_disk_refuses_producers(disk_full: FullDisk, make_task) -> None:
    with pytest.raises(ServerFull, match="MISCONF"):
        Streams(disk_full.client, "test").issue("1:a", 0, [make_task("a")])


def test_out_of_disk_even_a_ping_is_refused(disk_full: FullDisk) -> None:
    """A probe that pings would restart a server that heals by itself."""
    with pytest.raises(redis.ResponseError, match="MISCONF"):
        disk_full.client.ping()
    disk_full.heal()
    assert disk_full.client.ping()


def test_out_of_disk_is_waited_for_by_everybody_else(disk_full: FullDisk) -> None:
    waits: list[float] = []

    def wait(delay_s: float) -> None:
        waits.append(delay_s)
        if len(waits) == 3:
            disk_full.heal()

    streams = Streams(disk_full.client, "test", give_up_s=0.0, sleep=wait)
    end = Ending(stream=streams.keys.rollouts("policy"), id="1-1", uid="a", outcome="trained", kind="policy")
    assert streams.settle("1:a", LEARNER, 1, [end]) == 0
    assert len(waits) == 3


def test_out_of_disk_makes_a_consumer_pause_not_die(disk_full: FullDisk) -> None:
    waits: list[float] = []
    streams = Streams(disk_full.client, "test", sleep=waits.append)
    consumer = Consumer(streams, ACTORS, "c", [streams.keys.tasks("policy")])
    assert consumer.claim(1) == []
    assert len(waits) == 1
    assert 1.0 <= waits[0] <= 2.0
    disk_full.heal()
    assert [entry.uid for entry in consumer.claim(1)] == ["a"]
