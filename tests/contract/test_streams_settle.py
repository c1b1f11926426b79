"""How uids end: settled by the learner that holds the fence, or buried with a reason."""

from __future__ import annotations

import pytest
import redis

from common.errors import Fenced
from common.keys import ACTORS, LEARNER, RECYCLER
from common.streams import CALL_ENTRIES, Delivery, Ending, Product


def arrive(run, *uids: str) -> list[Delivery]:
    """Issue tasks, ship their groups and claim these for the learner."""
    run.issue(*uids)
    tasks = run.streams.read_new(ACTORS, "a", [run.tasks], 1000, None)
    moves = [(task.id, [Product(uid=task.uid, payload=b"g")]) for task in tasks]
    run.streams.transfer(run.tasks, ACTORS, run.rollouts, moves)
    return run.streams.read_new(LEARNER, "l", [run.rollouts], 1000, None)


def ending(delivery: Delivery, outcome: str = "trained", *, uid: str | None = None, kind: str = "policy") -> Ending:
    uid = delivery.uid if uid is None else uid
    return Ending(stream=delivery.stream, id=delivery.id, uid=uid, outcome=outcome, kind=kind)


def settle(run, *endings: Ending, version: int = 7) -> int:
    return run.streams.settle(run.token, LEARNER, version, endings)


def counts(run) -> dict[str, int]:
    return {name: count for name, count in run.streams.ledger().items() if count}


def test_endings_are_acked_counted_and_told(run) -> None:
    a, b, c = arrive(run, "a", "b", "c")
    assert settle(run, ending(a), ending(b), ending(c, "dropped_stale")) == 3
    assert counts(run) == {"issued:policy": 3, "trained:policy": 2, "dropped_stale:policy": 1}
    assert run.pending(run.rollouts, LEARNER) == {}
    told = sorted((event["outcome"], event["policy_version"], event["uids"]) for event in run.events()[1:])
    assert told == [("dropped_stale:policy", "7", "c"), ("trained:policy", "7", "a b")]


def test_a_repeat_counts_nothing(run) -> None:
    [a] = arrive(run, "a")
    assert [settle(run, ending(a)) for _ in range(3)] == [1, 0, 0]
    assert counts(run) == {"issued:policy": 1, "trained:policy": 1}
    assert len(run.events()) == 2


def test_a_second_opinion_on_an_ended_entry_is_not_heard(run) -> None:
    [a] = arrive(run, "a")
    settle(run, ending(a, "filtered"))
    assert settle(run, ending(a, "trained")) == 0
    assert counts(run) == {"issued:policy": 1, "filtered:policy": 1}


def test_a_fenced_learner_settles_nothing(run) -> None:
    [a] = arrive(run, "a")
    assert run.streams.take_fence(2, "2:newer")
    with pytest.raises(Fenced):
        settle(run, ending(a))
    assert set(run.pending(run.rollouts, LEARNER)) == {a.id}
    assert counts(run) == {"issued:policy": 1}


def test_an_unknown_id_counts_nothing(run) -> None:
    [a] = arrive(run, "a")
    ghost = Ending(stream=run.rollouts, id="1-1", uid="ghost", outcome="trained", kind="policy")
    assert settle(run, ghost, ending(a)) == 1
    assert counts(run) == {"issued:policy": 1, "trained:policy": 1}


def test_a_call_with_an_impossible_id_settles_nothing(run) -> None:
    [a] = arrive(run, "a")
    bad = Ending(stream=run.rollouts, id="nonsense", uid="x", outcome="trained", kind="policy")
    with pytest.raises(redis.ResponseError, match="nonsense is no stream id"):
        settle(run, ending(a), bad)
    assert set(run.pending(run.rollouts, LEARNER)) == {a.id}


def test_a_duplicate_is_acked_and_counts_nowhere(run) -> None:
    a, twin = arrive(run, "a", "a")
    assert settle(run, ending(a), ending(twin, uid="")) == 2
    assert run.pending(run.rollouts, LEARNER) == {}
    assert counts(run)["trained:policy"] == 1
    assert [event["uids"] for event in run.events()[1:]] == ["a"]


def test_entries_of_both_streams_settle_in_one_call(run) -> None:
    [a] = arrive(run, "a")
    run.streams.client.xadd(run.judge_rollouts, {"uid": "j", "m": b""})
    [j] = run.streams.read_new(LEARNER, "l", [run.judge_rollouts], 1, None)
    assert settle(run, ending(j, kind="judge"), ending(a)) == 2
    assert counts(run)["trained:judge"] == counts(run)["trained:policy"] == 1
    assert run.pending(run.judge_rollouts, LEARNER) == run.pending(run.rollouts, LEARNER) == {}


def test_the_other_group_keeps_its_own_account(run) -> None:
    [a] = arrive(run, "a")
    run.streams.read_new(RECYCLER, "r", [run.rollouts], 10, None)
    settle(run, ending(a))
    assert set(run.pending(run.rollouts, RECYCLER)) == {a.id}


def test_more_endings_than_one_call_takes(run) -> None:
    deliveries = arrive(run, *(f"u{i}" for i in range(CALL_ENTRIES + 7)))
    assert settle(run, *map(ending, deliveries)) == CALL_ENTRIES + 7
    assert counts(run)["trained:policy"] == CALL_ENTRIES + 7


def test_a_burial_keeps_the_entry_and_its_reason(run) -> None:
    [a] = arrive(run, "a")
    assert run.streams.bury(a, LEARNER, "no such schema", "policy")
    [(_, letter)] = run.streams.client.xrange(run.streams.keys.dead)
    assert letter == {
        b"stream": run.rollouts.encode(),
        b"group": b"learner",
        b"uid": b"a",
        b"kind": b"policy",
        b"reason": b"no such schema",
        b"deliveries": b"1",
        b"m": b"g",
    }
    assert counts(run) == {"issued:policy": 1, "dead:policy": 1}
    assert run.pending(run.rollouts, LEARNER) == {}
    assert run.events()[-1] == {"event": "ended", "outcome": "dead:policy", "reason": "no such schema", "uids": "a"}


def test_nobody_is_buried_twice_or_after_its_end(run) -> None:
    a, b = arrive(run, "a", "b")
    assert [run.streams.bury(a, LEARNER, "r", "policy") for _ in range(2)] == [True, False]
    settle(run, ending(b))
    assert not run.streams.bury(b, LEARNER, "r", "policy")
    assert run.streams.client.xlen(run.streams.keys.dead) == 1
    assert counts(run) == {"issued:policy": 2, "dead:policy": 1, "trained:policy": 1}


def test_the_recyclers_burial_ends_no_uid(run) -> None:
    """The learner still has the group; only the recycler could do nothing with it."""
    arrive(run, "a")
    [a] = run.streams.read_new(RECYCLER, "r", [run.rollouts], 10, None)
    assert run.streams.bury(a, RECYCLER, "r", None)
    assert counts(run) == {"issued:policy": 1}
    assert len(run.events()) == 1


def test_poison_without_any_sense_can_be_read_and_buried(run) -> None:
    client = run.streams.client
    client.xadd(run.tasks, {b"uid": b"\xff\xfe", b"m": b"\xc1"})
    client.xadd(run.tasks, {b"something": b"else"})
    first, second = run.streams.read_new(ACTORS, "a", [run.tasks], 10, None)
    assert (first.uid, first.payload) == ("\\xff\\xfe", b"\xc1")
    assert (second.uid, second.payload) == ("", b"")
    assert run.streams.bury(first, ACTORS, "poison", "policy")
    assert run.streams.bury(second, ACTORS, "poison", "policy")
    assert counts(run) == {"dead:policy": 2}
