"""Claiming: how many, in which order, and after a restart."""

from __future__ import annotations

import pytest

from common.consumer import PAGE, Consumer
from common.keys import ACTORS


def consumer(run, name: str = "c") -> Consumer:
    return Consumer(run.streams, ACTORS, name, [run.judge_tasks, run.tasks])


def add_judge(run, *uids: str) -> None:
    for uid in uids:
        run.streams.client.xadd(run.judge_tasks, {"uid": uid, "m": b""})


def test_sources_come_in_their_order_and_the_count_holds(run) -> None:
    run.issue("a", "b", "c")
    add_judge(run, "j", "k")
    one = consumer(run)
    assert [entry.uid for entry in one.claim(3)] == ["j", "k", "a"]
    assert [entry.uid for entry in one.claim(3)] == ["b", "c"]
    assert one.claim(3) == []


@pytest.mark.parametrize("count", [0, -1])
def test_without_room_nothing_is_claimed(run, count: int) -> None:
    run.issue("a")
    assert consumer(run).claim(count) == []
    assert run.pending(run.tasks, ACTORS) == {}


def test_entries_are_shared_among_consumers(run) -> None:
    run.issue("a", "b")
    uids = [entry.uid for name in ("one", "two", "three") for entry in consumer(run, name).claim(1)]
    assert uids == ["a", "b"]


def test_a_restarted_consumer_gets_its_own_back_first(run) -> None:
    run.issue("a", "b", "c")
    assert [entry.uid for entry in consumer(run).claim(2)] == ["a", "b"]
    restarted = consumer(run)
    again = restarted.claim(10)
    assert [(entry.uid, entry.deliveries) for entry in again] == [("a", 2), ("b", 2)]
    assert [entry.uid for entry in restarted.claim(10)] == ["c"]


def test_a_restarted_consumer_takes_no_more_at_once_than_it_asked_for(run) -> None:
    count = 2 * PAGE + 30
    run.issue(*(f"u{i}" for i in range(count)))
    assert len(consumer(run).claim(count)) == count
    restarted, claimed = consumer(run), []
    while entries := restarted.claim(40):
        assert len(entries) <= 40
        claimed += [entry.uid for entry in entries]
    assert claimed == [f"u{i}" for i in range(count)]


def test_what_is_done_is_not_held(run) -> None:
    run.issue("a", "b")
    one = consumer(run)
    a, b = one.claim(2)
    run.streams.transfer(run.tasks, ACTORS, run.rollouts, [(a.id, [])])
    one.done(a)
    assert one.held[run.tasks] == {b.id}


def test_a_blocking_claim_ends_when_nothing_comes(run) -> None:
    assert consumer(run).claim(1, block_ms=1) == []


def test_a_blocking_claim_without_time_does_not_block_for_ever(run) -> None:
    assert consumer(run).claim(1, block_ms=0) == []


def test_a_blocking_claim_that_brings_one_of_each_keeps_to_its_count(run) -> None:
    class Blocking(Consumer):
        def _new(self, count):
            return []

        def _next(self, block_ms):
            return self.streams.read_new(self.group, self.name, self.sources, 1, 1000)

    run.issue("a")
    add_judge(run, "j")
    one = Blocking(run.streams, ACTORS, "c", [run.judge_tasks, run.tasks])
    assert [entry.uid for entry in one.claim(1)] == ["j"]
    assert [entry.uid for entry in one.claim(1)] == ["a"]


def test_an_entry_deleted_while_pending_comes_back_empty_and_can_be_buried(run) -> None:
    """Its uid would otherwise neither end nor be in flight."""
    run.issue("a", "b", "c")
    entries = consumer(run).claim(3)
    run.streams.client.xdel(run.tasks, entries[1].id)
    a, tombstone, c = consumer(run).claim(3)
    assert (a.uid, c.uid) == ("a", "c")
    assert (tombstone.id, tombstone.uid, tombstone.payload) == (entries[1].id, "", b"")
    assert run.streams.bury(tombstone, ACTORS, "deleted while pending", "policy")
    assert run.streams.ledger()["dead:policy"] == 1
    assert set(run.pending(run.tasks, ACTORS)) == {a.id, c.id}


def test_ids_that_end_a_millisecond_are_found_again(run) -> None:
    for entry_id in ("5-0", "5-1", "6-0"):
        run.streams.client.xadd(run.tasks, {"uid": entry_id, "m": b""}, id=entry_id)
    assert len(consumer(run).claim(3)) == 3
    assert [entry.uid for entry in consumer(run).claim(3)] == ["5-0", "5-1", "6-0"]
