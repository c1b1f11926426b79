"""Issuing: a compare-and-set on the cursor, under the fence."""

from __future__ import annotations

import pytest

from common.codec import decode
from common.errors import Fenced
from common.keys import ACTORS
from common.messages import Task
from common.streams import Streams


def test_a_fresh_server_has_no_cursor(streams: Streams) -> None:
    assert streams.cursor() is None


def test_tasks_arrive_as_they_were_issued(run, make_task) -> None:
    assert run.streams.issue(run.token, 0, [make_task("a"), make_task("b")]) == 2
    entries = run.streams.read_new(ACTORS, "c", [run.tasks], 10, None)
    assert [entry.uid for entry in entries] == ["a", "b"]
    assert decode(Task, entries[1].payload) == make_task("b")
    assert run.streams.cursor() == 2
    assert run.streams.ledger()["issued:policy"] == 2
    assert run.events() == [{"event": "issued", "kind": "policy", "uids": "a b"}]


def test_a_repeat_changes_nothing(run, make_task) -> None:
    for _ in range(2):
        assert run.streams.issue(run.token, 0, [make_task("a")]) == 1
    assert run.uids(run.tasks) == ["a"]
    assert run.streams.ledger()["issued:policy"] == 1
    assert len(run.events()) == 1


@pytest.mark.parametrize("expected", [0, 2, 5])
def test_another_cursor_changes_nothing_and_learns_the_right_one(run, expected: int, make_task) -> None:
    run.issue("a")
    assert run.streams.issue(run.token, expected, [make_task("b")]) == 1
    assert run.uids(run.tasks) == ["a"]


def test_a_foreign_fence_changes_nothing(run, make_task) -> None:
    assert run.streams.take_fence(2, "2:newer")
    with pytest.raises(Fenced):
        run.streams.issue(run.token, 0, [make_task("a")])
    assert run.uids(run.tasks) == []
    assert run.streams.cursor() is None


def test_nobody_issues_before_the_fence_is_taken(streams: Streams, make_task) -> None:
    with pytest.raises(Fenced):
        streams.issue("1:a", 0, [make_task("a")])


def test_hundreds_of_tasks_go_in_one_call(run) -> None:
    run.issue(*(f"u{i}" for i in range(700)))
    assert len(run.uids(run.tasks)) == 700
