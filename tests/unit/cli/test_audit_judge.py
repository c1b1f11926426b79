"""The audit's verdict: right histories give no alarm, and each thing that can go wrong is found with its uid."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cli.audit_judge import Evidence, Findings, Violation, judge
from cli.audit_replay import KINDS, Replay
from common.errors import SparkError
from common.messages import Kind, Outcome

ENDS: tuple[Outcome, ...] = ("trained", "filtered", "dropped_stale")


@dataclass
class Server:
    """What a power cut may take back to a moment ago, and a wipe takes away."""

    cursor: int = 0
    judged: int = 0
    flight: dict[str, Kind] = field(default_factory=dict)
    dead: dict[str, Kind] = field(default_factory=dict)
    events: list[dict[str, str]] = field(default_factory=list)
    ledger: Counter[str] = field(default_factory=Counter)

    def log(self, event: str, name: str, uids: list[str], **fields: str) -> None:
        self.ledger[name] += len(uids)
        self.events.append({"event": event, "uids": " ".join(uids), **fields})


class History:
    """A run that does everything right, on a server that may lose its last moment, or everything."""

    def __init__(self) -> None:
        self.server = Server()
        self.moment = deepcopy(self.server)
        self.disk: list[dict[str, str]] = []
        self.ended: dict[str, tuple[Outcome, Kind]] = {}
        self.saved_cursor = 0

    def issue(self, number: int) -> None:
        server = self.server
        uids = [f"p{server.cursor + index}" for index in range(number)]
        server.cursor += number
        server.flight |= dict.fromkeys(uids, "policy")
        server.log("issued", "issued:policy", uids, kind="policy")

    def recycle(self, number: int) -> None:
        """After a rebuild with the same uids as before it: they come of the same answers."""
        uids = [f"j{self.server.judged + index}" for index in range(number)]
        self.server.judged += number
        self.server.flight |= dict.fromkeys(uids, "judge")
        self.server.log("issued", "issued:judge", uids, kind="judge")

    def save(self, number: int) -> None:
        """A checkpoint that ends something, not acknowledged yet."""
        for index, (uid, kind) in enumerate(list(self.server.flight.items())[:number]):
            self.ended.setdefault(uid, (ENDS[index % 3], kind))
        self.saved_cursor = max(self.saved_cursor, self.server.cursor)

    def settle(self, _: int) -> None:
        for uid, kind in list(self.server.flight.items()):
            if uid in self.ended:
                del self.server.flight[uid]
                name = f"{self.ended[uid][0]}:{kind}"
                self.server.log("ended", name, [uid], outcome=name)

    def die(self, number: int) -> None:
        for uid, kind in [item for item in self.server.flight.items() if item[0] not in self.ended][-number:]:
            self.server.dead[uid] = self.server.flight.pop(uid)
            self.server.log("ended", f"dead:{kind}", [uid], outcome=f"dead:{kind}", reason="it broke")

    def revive(self, number: int) -> None:
        for uid, kind in list(self.server.dead.items())[:number]:
            self.server.flight[uid] = self.server.dead.pop(uid)
            self.server.ledger[f"dead:{kind}"] -= 1
            self.server.events.append({"event": "revived", "kind": kind, "uids": uid})

    def spool(self, _: int) -> None:
        """Only what a power cut cannot take back goes to disk."""
        self.disk += self.server.events
        self.server.events = []
        self.moment = deepcopy(self.server)

    def power_cut(self, _: int) -> None:
        self.server = deepcopy(self.moment)

    def wipe_and_rebuild(self, _: int) -> None:
        counts = Counter(f"{outcome}:{kind}" for outcome, kind in self.ended.values())
        counts["issued:policy"] = self.saved_cursor
        counts["issued:judge"] = sum(kind == "judge" for _, kind in self.ended.values())
        parked = [f"p{position}" for position in range(self.saved_cursor)]
        self.server = Server(
            cursor=self.saved_cursor,
            flight=dict.fromkeys((uid for uid in parked if uid not in self.ended), "policy"),
            ledger=counts,
        )
        told = " ".join(f"{name}={number}" for name, number in counts.items())
        self.server.events.append({"event": "rebuilt", "counts": told})
        self.moment = deepcopy(self.server)

    def evidence(self) -> Evidence:
        flight = self.server.flight
        return Evidence(
            in_flight={kind: [uid for uid, of in flight.items() if of == kind] for kind in KINDS},
            counters=(self.server.ledger, self.server.ledger),
            events=[*self.disk, *self.server.events],
            ended=dict(self.ended),
            trained=sum(outcome == "trained" for outcome, _ in self.ended.values()),
        )


ACTIONS = ("issue", "recycle", "save", "settle", "die", "revive", "spool", "power_cut", "wipe_and_rebuild")
STEPS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(min_value=1, max_value=4)), max_size=40)


def played(steps: list[tuple[str, int]]) -> History:
    history = History()
    for action, number in steps:
        getattr(history, action)(number)
    return history


def dead_and_trained(history: History) -> set[tuple[str, str, str]]:
    """The one thing the audit must object to: a power cut took back a revival whose task was trained meanwhile."""
    return {("otherwise", kind, uid) for uid, kind in history.server.dead.items() if uid in history.ended}


@example([("issue", 1), ("die", 1), ("spool", 1), ("revive", 1), ("save", 1), ("power_cut", 1)])
@example([(step, 1) for step in ("recycle", "spool", "wipe_and_rebuild", "recycle", "save", "power_cut")])
@given(STEPS)
@settings(max_examples=300)
def test_whatever_happens_to_a_run_that_does_everything_right_is_no_violation(steps) -> None:
    history = played(steps)
    found = judge(history.evidence())
    assert {(v.what, v.kind, v.uid) for v in found.violations} == dead_and_trained(history)
    for kind, counts in found.kinds.items():
        ended = sum(counts[outcome] for outcome in (*ENDS, "dead"))
        assert (
            counts["issued"] == ended + counts["in_flight"] == ended + list(history.server.flight.values()).count(kind)
        )


@given(STEPS, st.integers(min_value=0))
@settings(max_examples=300)
def test_a_uid_that_is_in_no_stream_any_more_is_lost_whatever_happened_before(steps, index) -> None:
    history = played([*steps, ("issue", 1)])
    unended = [uid for uid in history.server.flight if uid not in history.ended]
    uid = unended[index % len(unended)] if unended else None
    if uid is None:  # all that is in flight comes a second time: the checkpoint has ended it
        return
    kind = history.server.flight.pop(uid)
    found = judge(history.evidence()).violations
    [violation] = [v for v in found if (v.what, v.kind, v.uid) not in dead_and_trained(history)]
    named = any(uid in event.get("uids", "").split() for event in history.evidence().events)
    assert (violation.what, violation.kind, violation.uid) == ("lost", kind, uid if named else "")


@given(STEPS, st.integers(min_value=0))
@settings(max_examples=300)
def test_a_uid_that_ends_once_more_is_found_whatever_happened_before(steps, index) -> None:
    history = played([*steps, ("issue", 1), ("save", 1), ("settle", 1)])
    ended = [uid for uid in history.ended if uid not in history.server.flight]
    if not ended:
        return
    uid = ended[index % len(ended)]
    outcome, kind = history.ended[uid]
    told = Replay(history.evidence().events)
    by_the_log = told.fates[kind].get(uid) in ENDS
    history.server.log("ended", f"{outcome}:{kind}", [uid], outcome=f"{outcome}:{kind}")
    found = judge(history.evidence())
    assert not found.ok or uid not in told.fates[kind]
    if by_the_log:
        assert found.uids("twice") == {uid}


# -- one thing wrong at a time --------------------------------------------------------------------------------


def issued(*uids: str, kind: str = "policy") -> dict[str, str]:
    return {"event": "issued", "kind": kind, "uids": " ".join(uids)}


def ended(name: str, *uids: str) -> dict[str, str]:
    return {"event": "ended", "outcome": name, "uids": " ".join(uids)}


def evidence(*events: dict[str, str], policy: tuple[str, ...] = (), judge: tuple[str, ...] = (), **others: Any):
    counts = Replay(events).counts
    known = {
        uid: (outcome, kind) for kind, uids in Replay(events).acknowledged.items() for uid, outcome in uids.items()
    }
    fields = {"ended": known, "counters": (counts, counts), **others}
    fields.setdefault("trained", sum(outcome == "trained" for outcome, _ in fields["ended"].values()))
    return Evidence(in_flight={"policy": policy, "judge": judge}, events=events, **fields)


def found(at: Findings) -> list[tuple[str, str, str]]:
    return [(v.what, v.kind, v.uid) for v in at.violations]


REVIVED = {"event": "revived", "kind": "policy", "uids": "a"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (evidence(issued("a", "b"), ended("trained:policy", "a"), policy=("b",)), []),
        (evidence(issued("a"), ended("dead:policy", "a"), REVIVED, ended("trained:policy", "a")), []),
        (evidence(issued("a", "b"), policy=("a",)), [("lost", "policy", "b")]),
        (evidence(issued("a", kind="judge"), policy=()), [("lost", "judge", "a")]),
        (evidence(issued("a"), issued("a"), policy=("a",)), [("twice", "policy", "a")]),
        (evidence(issued("a"), ended("dead:policy", "a"), ended("dead:policy", "a")), [("twice", "policy", "a")]),
        (evidence(issued("a"), REVIVED, policy=("a",)), [("twice", "policy", "a")]),
        (evidence(issued("a"), policy=("a", "a")), [("two_places", "policy", "a")]),
        (evidence(issued("a"), ended("filtered:policy", "a"), policy=("a",)), [("two_places", "policy", "a")]),
        (evidence(ended("trained:policy", "a")), [("unissued", "policy", "a")]),
        (evidence(policy=("a",)), [("unissued", "policy", "a")]),
        (evidence(issued("a"), ended("trained:policy", "a"), ended={}), [("undurable", "policy", "a")]),
        (evidence(issued("a"), ended("dead:policy", "a"), ended={}), []),
        (
            evidence(issued("a"), ended("trained:policy", "a"), ended={"a": ("filtered", "policy")}),
            [("otherwise", "policy", "a")],
        ),
        (
            evidence(issued("a"), ended("dead:policy", "a"), ended={"a": ("trained", "policy")}),
            [("otherwise", "policy", "a")],
        ),
        (evidence(issued("a"), ended("trained:policy", "a"), trained=2), [("retrained", "policy", "")]),
        (
            evidence(issued("a"), policy=("a",), counters=({"issued:policy": 2}, {"issued:policy": 2})),
            [("counter", "policy", "issued:policy")],
        ),
        (evidence(issued("a"), policy=("a",), counters=({"issued:policy": 0}, {"issued:policy": 2})), []),
        (
            evidence(issued("a"), policy=("a",), counters=({}, {})),
            [("counter", "policy", "issued:policy")],
        ),
        (  # while it is read, letters are retried: a count that falls
            evidence(
                issued("a"),
                ended("dead:policy", "a"),
                counters=({"issued:policy": 1, "dead:policy": 2}, {"issued:policy": 1, "dead:policy": 0}),
            ),
            [],
        ),
        (evidence(counters=({"dead:judge": 1}, {"dead:judge": 1})), [("counter", "judge", "dead:judge")]),
    ],
)
def test_what_is_wrong_is_named(given: Evidence, expected: list[tuple[str, str, str]]) -> None:
    assert found(judge(given)) == expected


# -- after a rebuild --------------------------------------------------------------------------------------------


def rebuilt(**counts: int) -> dict[str, str]:
    return {"event": "rebuilt", "counts": " ".join(f"{name.replace('_', ':')}={n}" for name, n in counts.items())}


def test_judge_tasks_that_were_in_flight_at_a_rebuild_are_forgotten_and_counted() -> None:
    at = evidence(issued("a"), issued("x", "y", kind="judge"), rebuilt(issued_policy=1), policy=("a",))
    verdict = judge(at)
    assert (verdict.ok, verdict.kinds["judge"]["forgotten"], verdict.kinds["judge"]["issued"]) == (True, 2, 0)


def test_a_policy_task_that_a_rebuild_did_not_bring_back_is_lost() -> None:
    at = evidence(issued("a", "b"), ended("dead:policy", "b"), rebuilt(issued_policy=2), policy=("a",))
    assert found(judge(at)) == [("lost", "policy", "b")]
    assert judge(replace(at, in_flight={"policy": ("a", "b"), "judge": ()})).ok  # the dead go out again


def test_tasks_beyond_the_cursor_of_a_rebuild_are_not_issued_any_more() -> None:
    at = evidence(issued("a", "b", "c"), rebuilt(issued_policy=1), issued("b"), policy=("a", "b"))
    assert judge(at).ok
    assert judge(at).kinds["policy"]["issued"] == 2


def test_a_lost_task_whose_event_the_server_lost_too_is_counted() -> None:
    at = evidence(issued("a"), rebuilt(issued_policy=3), policy=("a", "b"))
    [violation] = judge(at).violations
    assert (violation.what, violation.uid, violation.detail[:7]) == ("lost", "", "1 more,")
    assert judge(at).kinds["policy"]["lost"] == 1


def test_more_tasks_than_the_rebuild_speaks_of_were_never_issued() -> None:
    at = evidence(issued("a"), rebuilt(issued_policy=2), policy=("a", "b", "c"))
    assert judge(at).uids("unissued") == {"b", "c"}


def test_a_checkpoint_without_what_the_rebuild_counted_is_found() -> None:
    at = evidence(rebuilt(issued_policy=2, trained_policy=2), ended={"a": ("trained", "policy")})
    assert [v.uid for v in judge(at).of("counter")] == ["trained:policy at the rebuild"]


def test_trained_before_a_rebuild_and_once_more_after_it_is_twice() -> None:
    at = evidence(
        issued("a"),
        ended("trained:policy", "a"),
        rebuilt(issued_policy=1, trained_policy=1),
        ended("trained:policy", "a"),
    )
    assert judge(at).uids("twice") == {"a"}


def test_a_log_of_another_version_is_refused() -> None:
    for event in ({"event": "moved"}, ended("lost:policy", "a"), issued("a", kind="solve")):
        with pytest.raises(SparkError, match="version"):
            Replay([event])


def test_only_what_two_looks_have_shown_is_kept() -> None:
    def at(*uids: str) -> Findings:
        lost = tuple(Violation(what="lost", kind="policy", uid=uid, detail=str(uids)) for uid in uids)
        return Findings(kinds={"policy": {"issued": len(uids)}}, violations=lost)

    again = at("a", "b").seen_again(at("b", "c", "d"))
    assert (again.lost, again.kinds["policy"]["issued"]) == ({"b"}, 3)
    assert again.violations[0].detail == "('b', 'c', 'd')"
