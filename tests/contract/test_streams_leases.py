"""Who holds an entry: leases, their renewal, their end, and the learner's adoption."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from common.consumer import Consumer
from common.keys import ACTORS, LEARNER

LEASE_MS = 60_000


def let_expire(run, consumer: str, ids: list[str]) -> None:
    """Age entries past any lease; their owner does not notice."""
    assert run.streams.hand_back(run.tasks, ACTORS, consumer, ids) == set(ids)


class Clock:
    """Every look at it is a minute later, so each claim looks for expired leases and each renewal is due."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 60.0
        return self.now


@pytest.fixture
def actor(run) -> Callable[[str], Consumer]:
    return lambda name: Consumer(run.streams, ACTORS, name, [run.judge_tasks, run.tasks], lease_s=60.0, clock=Clock())


def test_a_living_lease_is_not_taken(run, actor) -> None:
    run.issue("a")
    assert len(actor("one").claim(1)) == 1
    assert actor("two").claim(1) == []


def test_an_expired_lease_is_taken_by_one_other_and_the_delivery_counted(run, actor) -> None:
    run.issue("a")
    [entry] = actor("one").claim(1)
    assert entry.deliveries == 1
    for expected, (owner, thief) in enumerate([("one", "two"), ("two", "three"), ("three", "four")], start=2):
        let_expire(run, owner, [entry.id])
        [taken] = actor(thief).claim(1)
        assert (taken.id, taken.uid, taken.payload) == (entry.id, "a", entry.payload)
        assert taken.deliveries == expected
        assert actor("late").claim(1) == []


def test_leases_that_expire_by_the_servers_clock(run, wait_until) -> None:
    run.issue("a")
    run.streams.read_new(ACTORS, "one", [run.tasks], 1, None)
    taken = []

    def take() -> bool:
        taken.extend(run.streams.read_expired(ACTORS, "two", run.tasks, 30, 10))
        return bool(taken)

    assert not run.streams.read_expired(ACTORS, "two", run.tasks, LEASE_MS, 10)
    wait_until(take)
    assert [entry.uid for entry in taken] == ["a"]


def test_an_expired_entry_is_found_behind_any_number_of_living_ones(run, actor) -> None:
    """XAUTOCLAIM with COUNT 1 looks at ten entries and gives up."""
    run.issue(*(f"u{i}" for i in range(300)))
    entries = run.streams.read_new(ACTORS, "one", [run.tasks], 300, None)
    let_expire(run, "one", [entries[-1].id])
    assert [entry.uid for entry in actor("two").claim(1)] == ["u299"]


def test_no_more_expired_entries_are_taken_than_asked_for(run, actor) -> None:
    run.issue("a", "b", "c")
    run.streams.client.xadd(run.judge_tasks, {"uid": "j", "m": b""})
    for stream in (run.judge_tasks, run.tasks):
        entries = run.streams.read_new(ACTORS, "one", [stream], 10, None)
        run.streams.hand_back(stream, ACTORS, "one", [entry.id for entry in entries])
    two = actor("two")
    assert [entry.uid for entry in two.claim(2)] == ["j", "a"]
    assert [entry.uid for entry in two.claim(5)] == ["b", "c"]


def test_renewing_keeps_a_lease_alive(run, actor) -> None:
    run.issue("a", "b")
    one = actor("one")
    kept, lost = one.claim(2)
    let_expire(run, "one", [kept.id, lost.id])
    one.done(lost)
    assert one.renew() == set()
    assert [entry.uid for entry in actor("two").claim(2)] == [lost.uid]


def test_a_zombie_cannot_steal_back(run, actor) -> None:
    run.issue("a")
    zombie = actor("zombie")
    [entry] = zombie.claim(1)
    let_expire(run, "zombie", [entry.id])
    assert len(actor("owner").claim(1)) == 1
    assert run.streams.renew(run.tasks, ACTORS, "zombie", [entry.id]) == set()
    assert run.streams.hand_back(run.tasks, ACTORS, "zombie", [entry.id]) == set()
    assert run.pending(run.tasks, ACTORS)[entry.id] == ("owner", 2)
    assert actor("third").claim(1) == []  # the zombie's hand-back did not end the owner's lease
    assert zombie.renew() == {entry.id}
    assert zombie.held[run.tasks] == set()


def test_renewal_is_no_delivery(run, actor) -> None:
    run.issue("a")
    one = actor("one")
    [entry] = one.claim(1)
    for _ in range(10):
        assert one.renew() == set()
    assert run.pending(run.tasks, ACTORS)[entry.id] == ("one", 1)


def test_an_entry_held_by_this_consumer_is_not_delivered_to_it_again(run, actor) -> None:
    """It was too slow to renew, and nobody else wanted it."""
    run.issue("a")
    one = actor("one")
    [entry] = one.claim(1)
    let_expire(run, "one", [entry.id])
    assert one.claim(1) == []
    assert run.pending(run.tasks, ACTORS)[entry.id] == ("one", 1)


def test_an_entry_taken_away_between_two_looks_is_not_delivered(run) -> None:
    run.issue("a", "b", "c")
    one = [entry.id for entry in run.streams.read_new(ACTORS, "one", [run.tasks], 3, None)]
    rows = run.streams.own_pending(ACTORS, "one", run.tasks, "0-0", 10)
    assert rows == [(entry_id, 1) for entry_id in one]
    let_expire(run, "one", [one[0]])
    run.streams.read_expired(ACTORS, "two", run.tasks, LEASE_MS, 1)
    assert [entry.uid for entry in run.streams.read_own(ACTORS, "one", run.tasks, rows[:2])] == ["b"]
    assert run.pending(run.tasks, ACTORS)[one[0]] == ("two", 2)


def test_what_is_handed_back_is_claimable_at_once(run, actor) -> None:
    run.issue("a", "b")
    run.streams.client.xadd(run.judge_tasks, {"uid": "j", "m": b""})
    one = actor("one")
    assert len(one.claim(10)) == 3
    assert one.hand_back_all() == 3
    assert all(not ids for ids in one.held.values())
    assert {entry.uid for entry in actor("two").claim(10)} == {"j", "a", "b"}


def test_what_is_handed_back_and_left_lying_comes_back(run) -> None:
    run.issue("a")
    recycler = Consumer(run.streams, ACTORS, "one", [run.tasks])
    assert len(recycler.claim(1)) == 1
    recycler.hand_back_all()
    assert [entry.uid for entry in recycler.claim(1)] == ["a"]


def test_the_learner_adopts_what_older_epochs_hold(run) -> None:
    run.issue(*(f"u{i}" for i in range(450)))
    for consumer, count in (("L1", 240), ("L2", 210)):
        assert len(run.streams.read_new(ACTORS, consumer, [run.tasks], count, None)) == count
    run.streams.client.xgroup_createconsumer(run.tasks, ACTORS, "L0")
    assert run.streams.adopt(run.tasks, ACTORS, "L3") == 450
    pending = run.pending(run.tasks, ACTORS)
    assert set(pending.values()) == {("L3", 1)}  # moved, not delivered
    assert len(pending) == 450
    consumers = [info["name"] for info in run.streams.client.xinfo_consumers(run.tasks, ACTORS)]
    assert consumers == [b"L3"]
    adopted = Consumer(run.streams, ACTORS, "L3", [run.tasks]).claim(1000)
    assert [entry.uid for entry in adopted] == [f"u{i}" for i in range(450)]


def test_a_consumer_with_pending_entries_is_never_removed(run) -> None:
    """XGROUP DELCONSUMER would discard what it holds, and nobody would get it again."""
    run.issue("a")
    run.streams.read_new(ACTORS, "old", [run.tasks], 1, None)
    run.streams.adopt(run.tasks, ACTORS, "new")
    run.streams.read_expired(ACTORS, "zombie", run.tasks, 0, 1)  # it wakes up and reads after the adoption
    assert run.streams.adopt(run.tasks, ACTORS, "new") == 1
    assert [owner for owner, _ in run.pending(run.tasks, ACTORS).values()] == ["new"]


def test_what_a_fenced_consumer_claims_too_late_is_adopted_and_delivered(run) -> None:
    run.issue("a", "b")
    new = Consumer(run.streams, ACTORS, "new", [run.judge_tasks, run.tasks])
    assert new.adopt() == 0
    assert [entry.uid for entry in new.claim(1)] == ["a"]
    assert len(run.streams.read_new(ACTORS, "zombie", [run.tasks], 1, None)) == 1
    assert new.claim(1) == []
    assert new.adopt() == 1
    assert [entry.uid for entry in new.claim(5)] == ["b"]
    assert new.adopt() == 0
    assert new.claim(5) == []


def test_adopting_touches_one_group_only(run) -> None:
    run.streams.client.xadd(run.rollouts, {"uid": "a", "m": b""})
    for group in (LEARNER, "recycler"):
        run.streams.read_new(group, "old", [run.rollouts], 1, None)
    run.streams.adopt(run.rollouts, LEARNER, "new")
    assert [owner for owner, _ in run.pending(run.rollouts, "recycler").values()] == ["old"]


def test_an_idle_actor_finds_what_was_handed_back_long_before_a_quarter_of_the_lease(run) -> None:
    now = [0.0]
    sources = [run.judge_tasks, run.tasks]
    one, two = (Consumer(run.streams, ACTORS, n, sources, lease_s=60.0, clock=lambda: now[0]) for n in ("one", "two"))
    run.issue("a")
    assert len(one.claim(1)) == 1
    assert one.hand_back_all() == 1
    now[0] += 0.4
    assert two.claim(1) == []  # not at every tick
    now[0] += 0.2
    assert [entry.uid for entry in two.claim(1)] == ["a"]


# -- a server whose clock is set back -------------------------------------------------------------------------


def test_when_the_servers_clock_goes_back_every_lease_begins_anew(run, actor) -> None:
    run.issue("a", "b")
    entries = actor("one").claim(2)
    let_expire(run, "one", [entry.id for entry in entries])
    run.streams.heartbeat("one", {"role": "actor"}, ttl_s=60.0)
    assert run.streams.mend_leases() == 0
    assert actor("two").claim(1) != []  # nothing was touched
    seconds, _ = run.streams.client.time()
    run.streams.client.set(run.streams.keys.clock, (seconds + 3600) * 1000)  # it was an hour later when last looked at
    assert run.streams.mend_leases() == 2
    assert actor("three").claim(2) == []
    assert dict(run.pending(run.tasks, ACTORS).values()) == {"one": 1, "two": 2}
    assert run.streams.members() == {"one": None}  # until it says that it lives
    assert run.streams.mend_leases() == 0
