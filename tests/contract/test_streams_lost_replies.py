"""The server runs a command, its reply is lost: one effect each, nothing stranded, nothing claimed twice."""

from __future__ import annotations

import pytest

from common.consumer import Consumer
from common.errors import Fenced
from common.keys import ACTORS, LEARNER
from common.streams import Ending, Product, Streams

LOSSES = 3


def test_issue_applies_once(run, proxy, lossy: Streams, make_task) -> None:
    proxy.lose("spark_issue", LOSSES)
    assert lossy.issue(run.token, 0, [make_task("a"), make_task("b")]) == 2
    assert proxy.lost == LOSSES
    assert run.uids(run.tasks) == ["a", "b"]
    assert run.streams.ledger()["issued:policy"] == 2


def test_transfer_applies_once(run, proxy, lossy: Streams) -> None:
    run.issue("a", "b")
    entries = run.streams.read_new(ACTORS, "c", [run.tasks], 10, None)
    moves = [(entry.id, [Product(uid=f"j-{entry.uid}", payload=b"")] * 1) for entry in entries]
    proxy.lose("spark_transfer", LOSSES)
    applied = lossy.transfer(run.tasks, ACTORS, run.judge_tasks, moves, issues="judge")
    assert proxy.lost == LOSSES
    assert applied == [False, False]  # not by the attempt whose reply arrived
    assert run.uids(run.judge_tasks) == ["j-a", "j-b"]
    assert run.streams.ledger()["issued:judge"] == 2


def test_settle_applies_once(run, proxy, lossy: Streams) -> None:
    run.streams.client.xadd(run.rollouts, {"uid": "a", "m": b""})
    [a] = run.streams.read_new(LEARNER, "l", [run.rollouts], 1, None)
    end = Ending(stream=run.rollouts, id=a.id, uid="a", outcome="trained", kind="policy")
    proxy.lose("spark_settle", LOSSES)
    lossy.settle(run.token, LEARNER, 1, [end])
    assert proxy.lost == LOSSES
    assert run.streams.ledger()["trained:policy"] == 1
    assert len(run.events()) == 1
    assert run.pending(run.rollouts, LEARNER) == {}


def test_bury_applies_once(run, proxy, lossy: Streams) -> None:
    run.issue("a")
    [a] = run.streams.read_new(ACTORS, "c", [run.tasks], 1, None)
    proxy.lose("spark_bury", LOSSES)
    lossy.bury(a, ACTORS, "poison", "policy")
    assert proxy.lost == LOSSES
    assert run.streams.client.xlen(run.streams.keys.dead) == 1
    assert run.streams.ledger()["dead:policy"] == 1


def test_the_fence_is_taken_by_the_one_who_took_it(run, proxy, lossy: Streams) -> None:
    proxy.lose("spark_take_fence", LOSSES)
    assert lossy.take_fence(2, "2:new")
    assert proxy.lost == LOSSES
    with pytest.raises(Fenced):
        run.issue("a")


def test_renewal_hand_back_adoption_and_trim_may_be_repeated(run, proxy, lossy: Streams) -> None:
    run.issue("a", "b")
    a, b = (entry.id for entry in run.streams.read_new(ACTORS, "c", [run.tasks], 10, None))
    for marker, call, expected in [
        ("spark_set_idle", lambda: lossy.renew(run.tasks, ACTORS, "c", [a, b]), {a, b}),
        ("spark_set_idle", lambda: lossy.hand_back(run.tasks, ACTORS, "c", [b]), {b}),
        ("spark_discard", lambda: lossy.transfer(run.tasks, ACTORS, run.rollouts, [(a, [])]), [False]),
        ("spark_trim", lambda: run.streams.client.xlen(run.tasks) - lossy.trim(run.tasks), 2),
        ("spark_adopt", lambda: lossy.adopt(run.tasks, ACTORS, "d"), 0),
    ]:
        proxy.lost = 0
        proxy.lose(marker, LOSSES)
        assert call() == expected, marker
        assert proxy.lost == LOSSES, marker
    assert run.uids(run.tasks) == ["b"]
    assert run.pending(run.tasks, ACTORS) == {b: ("d", 1)}


@pytest.mark.parametrize("losses", [1, 3])
@pytest.mark.parametrize("block_ms", [None, 1000])
def test_a_lost_read_strands_nothing(run, proxy, lossy: Streams, losses: int, block_ms: int | None) -> None:
    run.issue("a", "b", "c", "d", "e")
    consumer = Consumer(lossy, ACTORS, "c", [run.judge_tasks, run.tasks])
    first = consumer.claim(2)
    proxy.lose("XREADGROUP", losses)
    claimed = list(first)
    while len(claimed) < 5:
        claimed += consumer.claim(2, block_ms)
    assert proxy.lost == losses
    assert sorted(entry.uid for entry in claimed) == ["a", "b", "c", "d", "e"]
    assert consumer.claim(2) == []
    assert {entry.id for entry in claimed} == consumer.held[run.tasks] == set(run.pending(run.tasks, ACTORS))


def test_a_lost_reply_delivers_again_only_what_was_lost(run, proxy, lossy: Streams) -> None:
    """Each recovery must not count as a delivery of what is safely in hand, or healthy tasks end as poison."""
    run.issue("kept", "lost")
    consumer = Consumer(lossy, ACTORS, "c", [run.tasks])
    [kept] = consumer.claim(1)
    proxy.lose("XREADGROUP", 1)
    assert consumer.claim(1) == []
    [lost] = consumer.claim(1)
    assert (lost.uid, lost.deliveries) == ("lost", 2)
    for _ in range(5):
        proxy.lose("XREADGROUP", 1)
        assert consumer.claim(1) == []
        assert consumer.claim(1) == []
    assert run.pending(run.tasks, ACTORS) == {kept.id: ("c", 1), lost.id: ("c", 2)}


def test_a_lost_take_over_strands_nothing(run, proxy, lossy: Streams) -> None:
    run.issue("a")
    [a] = run.streams.read_new(ACTORS, "dead", [run.tasks], 1, None)
    run.streams.hand_back(run.tasks, ACTORS, "dead", [a.id])
    ticks = iter(range(0, 10_000, 60))
    consumer = Consumer(lossy, ACTORS, "c", [run.tasks], lease_s=60.0, clock=lambda: float(next(ticks)))
    proxy.lose("XCLAIM", 1)
    assert consumer.claim(1) == []
    assert proxy.lost == 1
    assert [entry.uid for entry in consumer.claim(1)] == ["a"]


def test_a_signal_in_the_middle_of_a_read_strands_nothing(run) -> None:
    """The server has already marked the entry as ours when the process is interrupted."""

    class Signal(BaseException):
        pass

    class Interrupted(Streams):
        def read_new(self, *args, **options):
            if super().read_new(*args, **options):
                raise Signal

    run.issue("a")
    consumer = Consumer(Interrupted(run.streams.client, "test"), ACTORS, "c", [run.tasks])
    with pytest.raises(Signal):
        consumer.claim(1)
    assert [entry.uid for entry in consumer.claim(1)] == ["a"]
