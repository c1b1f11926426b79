"""Deleting what every group is done with, and counting what is left."""

from __future__ import annotations

import pytest

from cli.embedded import EmbeddedServer
from common.keys import ACTORS, LEARNER, RECYCLER
from common.server import load_functions
from common.streams import TRIM_SLICE, Streams


def fill(run, count: int, size: int = 10) -> list[str]:
    return [run.streams.client.xadd(run.rollouts, {"uid": f"u{i}", "m": bytes(size)}).decode() for i in range(count)]


def read(run, group: str, count: int = 10_000) -> list[str]:
    return [entry.id for entry in run.streams.read_new(group, "c", [run.rollouts], count, None)]


def ack(run, group: str, ids: list[str]) -> None:
    assert run.streams.client.xack(run.rollouts, group, *ids) == len(ids)


def trim_all(run, count: int = 1000) -> int:
    total = 0
    while deleted := run.streams.trim(run.rollouts, count):
        total += deleted
    return total


def left(run) -> list[str]:
    return [entry.decode() for entry, _ in run.streams.client.xrange(run.rollouts)]


def test_an_entry_goes_when_both_groups_have_acked_it(run) -> None:
    ids = fill(run, 10)
    for group in (LEARNER, RECYCLER):
        assert trim_all(run) == 0
        ack(run, group, read(run, group))
    assert trim_all(run) == 10
    assert ids
    assert left(run) == []


def test_what_one_group_has_not_read_stays(run) -> None:
    ids = fill(run, 10)
    ack(run, LEARNER, read(run, LEARNER))
    ack(run, RECYCLER, read(run, RECYCLER, 4))
    assert trim_all(run) == 4
    assert left(run) == ids[4:]
    assert read(run, RECYCLER) == ids[4:]


def test_what_one_group_has_read_but_not_acked_stays(run) -> None:
    ids = fill(run, 10)
    for group in (LEARNER, RECYCLER):
        read(run, group)
    ack(run, LEARNER, ids)
    ack(run, RECYCLER, ids[:3] + ids[5:])  # 3 and 4 are still in its hands
    assert trim_all(run) == 3
    assert left(run) == ids[3:]


def test_the_newest_entry_may_go_and_the_next_is_seen(run) -> None:
    fill(run, 1)
    for group in (LEARNER, RECYCLER):
        ack(run, group, read(run, group))
    assert trim_all(run) == 1
    later = fill(run, 2)
    assert trim_all(run) == 0
    assert read(run, LEARNER) == read(run, RECYCLER) == later


@pytest.mark.parametrize("size", [10, 10_000])
def test_trimming_goes_in_slices(run, size: int) -> None:
    ids = fill(run, 650, size)
    for group in (LEARNER, RECYCLER):
        ack(run, group, read(run, group, 605))
    slices = []
    while deleted := run.streams.trim(run.rollouts, 200):
        slices.append(deleted)
    assert sum(slices) == 605
    assert max(slices) <= 200
    assert left(run) == ids[605:]


def test_a_slice_is_never_too_small_to_delete_anything(run) -> None:
    fill(run, 250)
    for group in (LEARNER, RECYCLER):
        ack(run, group, read(run, group))
    assert run.streams.trim(run.rollouts, 1) == TRIM_SLICE
    assert trim_all(run, 1) == 150


def test_nothing_goes_while_a_group_is_missing(run) -> None:
    ids = fill(run, 5)
    ack(run, LEARNER, read(run, LEARNER))
    run.streams.client.xgroup_destroy(run.rollouts, RECYCLER)
    assert trim_all(run) == 0
    assert read(run, RECYCLER) == ids  # it was made again, from the start


def test_an_empty_stream_is_trimmed_to_nothing(run) -> None:
    assert run.streams.trim(run.rollouts) == 0


@pytest.mark.parametrize(("ahead", "behind"), [(LEARNER, RECYCLER), (RECYCLER, LEARNER)])
def test_ids_compare_as_numbers(run, ahead: str, behind: str) -> None:
    """As text, 9-10 sorts before 9-9."""
    client = run.streams.client
    for entry_id in ("9-9", "9-10", "10-1"):
        client.xadd(run.rollouts, {"uid": entry_id, "m": b""}, id=entry_id)
    ack(run, behind, read(run, behind, 1))
    ack(run, ahead, read(run, ahead, 2))
    assert trim_all(run) == 1
    assert left(run) == ["9-10", "10-1"]


def backlog(run, group: str = LEARNER) -> tuple[int, int]:
    found = run.streams.backlog(run.rollouts, group)
    assert found.total == found.pending + found.undelivered
    return found.pending, found.undelivered


def test_backlog_counts_what_is_pending_and_what_nobody_read(run) -> None:
    assert backlog(run) == (0, 0)
    ids = fill(run, 10)
    assert backlog(run) == (0, 10)
    read(run, LEARNER, 6)
    assert backlog(run) == (6, 4)
    ack(run, LEARNER, [ids[4], ids[1]])  # out of order
    assert backlog(run) == (4, 4)
    assert backlog(run, RECYCLER) == (0, 10)


def test_backlog_counts_on_after_trimming(run) -> None:
    ids = fill(run, 300)
    for group in (LEARNER, RECYCLER):
        read(run, group, 200)
        ack(run, group, ids[:150])
    assert trim_all(run) == 150
    ack(run, LEARNER, ids[170:180])
    assert backlog(run) == (40, 100)
    read(run, LEARNER)
    assert backlog(run) == (140, 0)


def test_backlog_counts_after_an_entry_was_deleted_by_a_foreign_hand(run) -> None:
    """The server's own lag is nil then."""
    ids = fill(run, 250)
    read(run, LEARNER, 10)
    run.streams.client.xdel(run.rollouts, ids[5], ids[100])
    assert backlog(run) == (10, 239)


def test_backlog_tells_how_long_the_oldest_entry_waits(run) -> None:
    fill(run, 2)
    ids = read(run, LEARNER)
    run.streams.hand_back(run.rollouts, LEARNER, "c", ids[:1])
    assert run.streams.backlog(run.rollouts, LEARNER).oldest_idle_ms >= 1_000_000_000
    ack(run, LEARNER, ids[:1])
    assert run.streams.backlog(run.rollouts, LEARNER).oldest_idle_ms < 60_000


@pytest.mark.parametrize("rewrite", [False, True])
def test_backlog_counts_after_a_restart_of_the_server(data_dir, clients, wait_until, rewrite: bool) -> None:
    with EmbeddedServer(data_dir) as server:
        client = clients(server.url)
        load_functions(client)
        streams = Streams(client, "test")
        streams.create_groups()
        stream = streams.keys.rollouts("policy")
        ids = [client.xadd(stream, {"uid": str(i), "m": b""}) for i in range(20)]
        for group in (LEARNER, RECYCLER):
            streams.read_new(group, "c", [stream], 12, None)
            client.xack(stream, group, *ids[:5])
        assert streams.trim(stream) == 5
        if rewrite:
            client.bgrewriteaof()
            wait_until(
                lambda: (
                    client.info("persistence")["aof_rewrites"]
                    and not client.info("persistence")["aof_rewrite_in_progress"]
                )
            )
    with EmbeddedServer(data_dir) as server:
        streams = Streams(clients(server.url), "test")
        found = streams.backlog(stream, LEARNER)
        assert (found.pending, found.undelivered) == (7, 8)
        assert [entry.uid for entry in streams.read_new(LEARNER, "c", [stream], 2, None)] == ["12", "13"]
        assert streams.backlog(stream, LEARNER).undelivered == 6


def test_a_task_stream_has_one_group_to_wait_for(run) -> None:
    run.issue("a", "b")
    entries = run.streams.read_new(ACTORS, "c", [run.tasks], 1, None)
    run.streams.transfer(run.tasks, ACTORS, run.rollouts, [(entries[0].id, [])])
    assert run.streams.trim(run.tasks) == 1
    assert run.uids(run.tasks) == ["b"]
