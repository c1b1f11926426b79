"""The ack-guarded transfer: an entry moves once, whoever asks, however often."""

from __future__ import annotations

import pytest
import redis

from common.keys import ACTORS, RECYCLER
from common.streams import CALL_ENTRIES, Product


def product(uid: str) -> Product:
    return Product(uid=uid, payload=uid.encode())


def claim(run, consumer: str = "c", count: int = 1000) -> list[str]:
    return [entry.id for entry in run.streams.read_new(ACTORS, consumer, [run.tasks], count, None)]


def ship(run, *moves: tuple[str, list[Product]]) -> list[bool]:
    return run.streams.transfer(run.tasks, ACTORS, run.rollouts, moves)


def test_an_entry_moves_with_its_product(run) -> None:
    run.issue("a")
    [entry] = claim(run)
    assert ship(run, (entry, [product("a")])) == [True]
    assert run.pending(run.tasks, ACTORS) == {}
    [arrived] = run.streams.read_new(RECYCLER, "r", [run.rollouts], 10, None)
    assert (arrived.uid, arrived.payload) == ("a", b"a")


def test_a_repeat_appends_nothing(run) -> None:
    run.issue("a")
    [entry] = claim(run)
    assert [ship(run, (entry, [product("a")])) for _ in range(3)] == [[True], [False], [False]]
    assert run.uids(run.rollouts) == ["a"]


def test_the_same_entry_twice_in_one_call_moves_once(run) -> None:
    run.issue("a")
    [entry] = claim(run)
    assert ship(run, (entry, [product("a")]), (entry, [product("a")])) == [True, False]
    assert run.uids(run.rollouts) == ["a"]


def test_of_an_owner_and_its_zombie_only_the_first_is_heard(run) -> None:
    """The lease ran out, another actor took the task, both finish."""
    run.issue("a")
    [entry] = claim(run, "zombie")
    run.streams.hand_back(run.tasks, ACTORS, "zombie", [entry])
    [taken] = run.streams.read_expired(ACTORS, "owner", run.tasks, 60_000, 10)
    assert taken.id == entry
    assert ship(run, (entry, [Product(uid="a", payload=b"the owner's")])) == [True]
    assert ship(run, (entry, [Product(uid="a", payload=b"the zombie's")])) == [False]
    [arrived] = run.streams.read_new(RECYCLER, "r", [run.rollouts], 10, None)
    assert arrived.payload == b"the owner's"


def test_an_entry_becomes_none_one_or_many(run) -> None:
    run.issue("a", "b", "c")
    a, b, c = claim(run)
    products = [product(f"c{i}") for i in range(5)]
    assert ship(run, (a, []), (b, [product("b")]), (c, products)) == [True, True, True]
    assert run.uids(run.rollouts) == ["b", "c0", "c1", "c2", "c3", "c4"]
    assert run.pending(run.tasks, ACTORS) == {}


def test_more_entries_than_one_call_takes(run) -> None:
    uids = [f"u{i}" for i in range(2 * CALL_ENTRIES + 50)]
    run.issue(*uids)
    moves = [(entry, [product(uid)]) for entry, uid in zip(claim(run), uids, strict=True)]
    assert ship(run, *moves) == [True] * len(uids)
    assert run.uids(run.rollouts) == uids
    assert ship(run, *moves) == [False] * len(uids)


def test_judge_tasks_are_counted_as_issued_exactly_when_they_are(run) -> None:
    run.issue("a", "b")
    entries = claim(run)
    for _ in range(2):
        moves = [(entries[0], [product("j0"), product("j1")]), (entries[1], [])]
        run.streams.transfer(run.tasks, ACTORS, run.judge_tasks, moves, issues="judge")
    assert run.streams.ledger()["issued:judge"] == 2
    assert run.streams.ledger()["issued:policy"] == 2
    assert run.events()[1:] == [{"event": "issued", "kind": "judge", "uids": "j0 j1"}]


def test_rollouts_are_not_counted_as_issued_again(run) -> None:
    run.issue("a")
    [entry] = claim(run)
    ship(run, (entry, [product("a")]))
    assert run.streams.ledger()["issued:policy"] == 1
    assert len(run.events()) == 1


def test_entries_that_are_gone_do_not_hold_up_their_neighbours(run) -> None:
    run.issue("a", "b", "c")
    a, b, c = claim(run)
    [again] = run.streams.read_own(ACTORS, "c", run.tasks, [(b, 1)])
    assert run.streams.bury(again, ACTORS, "poison", "policy")
    moves = [(entry, [product(uid)]) for entry, uid in ((a, "a"), (b, "b"), ("1-1", "none"), (c, "c"))]
    assert ship(run, *moves) == [True, False, False, True]
    assert run.uids(run.rollouts) == ["a", "c"]


def test_a_call_with_an_impossible_id_applies_to_no_entry(run) -> None:
    run.issue("a", "b")
    a, b = claim(run)
    with pytest.raises(redis.ResponseError, match="poison is no stream id"):
        ship(run, (a, [product("a")]), ("poison", [product("x")]), (b, [product("b")]))
    assert run.uids(run.rollouts) == []
    assert set(run.pending(run.tasks, ACTORS)) == {a, b}


def test_a_task_that_was_never_claimed_cannot_be_shipped(run) -> None:
    run.issue("a")
    [(entry, _)] = run.streams.client.xrange(run.tasks)
    assert ship(run, (entry.decode(), [product("a")])) == [False]
    assert run.uids(run.rollouts) == []


def test_nothing_to_ship_is_no_call(run) -> None:
    assert ship(run) == []
