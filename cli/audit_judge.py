"""The audit's verdict: every issued uid ends exactly once, or is in flight in exactly one place. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from cli.audit_replay import KINDS, Replay
from common.messages import OUTCOMES, Kind, Outcome

What = Literal["lost", "twice", "two_places", "unissued", "undurable", "otherwise", "retrained", "counter"]
MEANINGS: Final[Mapping[What, str]] = {
    "lost": "issued, but neither ended nor in any stream",
    "twice": "issued or ended more than once",
    "two_places": "in flight twice, or although it ended",
    "unissued": "ended or in flight, but never issued",
    "undurable": "acknowledged as ended, but not in the newest checkpoint",
    "otherwise": "ended in another way than the newest checkpoint says",
    "retrained": "the checkpoint trained another number of groups than of uids",
    "counter": "the server's ledger disagrees with the event log",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """``uid`` is what it is about: a uid, the name of a counter, or empty when nobody knows the uid."""

    what: What
    kind: Kind
    uid: str
    detail: str = field(default="", compare=False)
    """What was found; it may change while the run goes on, so it does not count for equality."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Per kind: issued and every outcome as the log counts them; uids in_flight, forgotten, lost, twice. And what is
    wrong. In a sound run issued is the sum of the outcomes and what is in flight."""

    kinds: Mapping[Kind, Mapping[str, int]]
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        return not self.violations

    def of(self, what: What) -> tuple[Violation, ...]:
        return tuple(violation for violation in self.violations if violation.what == what)

    def uids(self, what: What) -> set[str]:
        return {violation.uid for violation in self.of(what)}

    @property
    def lost(self) -> set[str]:
        return self.uids("lost")

    @property
    def twice(self) -> set[str]:
        return self.uids("twice") | self.uids("two_places")

    def seen_again(self, again: Findings) -> Findings:
        """A second look: what it says, but only the violations that were there before."""
        before = set(self.violations)
        return replace(again, violations=tuple(v for v in again.violations if v in before))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was read of a run, in this order, so that a run that goes on meanwhile gives little false alarm."""

    in_flight: Mapping[Kind, Sequence[str]]
    """uids of the entries that wait for an actor or the learner; one uid for each entry."""
    counters: tuple[Mapping[str, int], Mapping[str, int]]
    """The server's ledger before and after the events were read."""
    events: Sequence[Mapping[str, str]]
    """Oldest first."""
    ended: Mapping[str, tuple[Outcome, Kind]]
    """uid -> how it ended by the newest checkpoint."""
    trained: int
    """Groups that went into the weights by the newest checkpoint."""


def judge(evidence: Evidence) -> Findings:
    """Everything that is wrong, with the uids."""
    replay = Replay(evidence.events)
    views = [_View(kind, replay, evidence) for kind in KINDS]
    found = [violation for view in views for violation in view.violations]
    found += _of_counters(replay, evidence)
    found += _of_the_rebuild(replay, evidence)
    found += _of_training(evidence)
    ordered = sorted(found, key=lambda v: (v.what, v.kind, v.uid))
    return Findings(kinds={view.kind: view.counts() for view in views}, violations=tuple(ordered))


class _View:
    """One kind of task: every uid of the log put where it is."""

    def __init__(self, kind: Kind, replay: Replay, evidence: Evidence) -> None:
        self.kind = kind
        self._replay = replay
        self._here = Counter(evidence.in_flight[kind])
        self._checkpoint = {uid: end for uid, (end, of) in evidence.ended.items() if of == kind}
        self._fates = {uid: self._settled(uid, fate) for uid, fate in replay.fates[kind].items()}
        unknown = self._here.keys() - self._fates.keys()
        self._strangers = replay.strangers[kind] | unknown
        self._fates.update(dict.fromkeys(unknown, "in_flight"))
        self._unnamed = self._without_a_name()
        self.violations = tuple(self._violations())

    def _settled(self, uid: str, fate: str) -> str:
        """A fate that the log and the other sources agree on: an outcome, in_flight, lost or forgotten."""
        if fate == "in_flight" or (fate == "unsettled" and uid in self._here):
            return "in_flight" if uid in self._here else "lost"
        if fate == "unsettled":
            return self._checkpoint.get(uid, "forgotten" if self.kind == "judge" else "lost")
        return fate

    def _without_a_name(self) -> int:
        """Issued uids that are nowhere, and that no event names either."""
        if self.kind == "judge":
            return 0
        named = self._strangers | (self._checkpoint.keys() - self._replay.fates[self.kind].keys())
        return max(0, self._replay.unnamed - len(named))

    def counts(self) -> dict[str, int]:
        numbers = Counter(self._fates.values())
        told = {name: self._replay.counts[f"{name}:{self.kind}"] for name in ("issued", *OUTCOMES)}
        kept = {"in_flight": numbers["in_flight"], "forgotten": numbers["forgotten"]}
        twice = {v.uid for v in self.violations if v.what in ("twice", "two_places")}
        return {**told, **kept, "lost": numbers["lost"] + self._unnamed, "twice": len(twice)}

    def _violations(self) -> Iterator[Violation]:
        for uid, fate in self._fates.items():
            if fate == "lost":
                yield self._violation("lost", uid)
        if self._unnamed:
            yield self._violation("lost", "", f"{self._unnamed} more, issued before the rebuild, that no event names")
        for uid, detail in self._replay.twice[self.kind].items():
            yield self._violation("twice", uid, detail)
        yield from self._two_places()
        if len(self._strangers) > (self._replay.unnamed if self.kind == "policy" else 0):
            for uid in self._strangers:
                yield self._violation("unissued", uid, self._fates[uid])
        yield from self._against_the_checkpoint()

    def _two_places(self) -> Iterator[Violation]:
        for uid, times in self._here.items():
            if self._fates[uid] in OUTCOMES:
                yield self._violation("two_places", uid, f"{self._fates[uid]}, and in a stream")
            elif times > 1:
                yield self._violation("two_places", uid, f"in {times} entries")

    def _against_the_checkpoint(self) -> Iterator[Violation]:
        for uid, outcome in self._replay.acknowledged[self.kind].items():
            if uid not in self._checkpoint:
                yield self._violation("undurable", uid, outcome)
            elif self._checkpoint[uid] != outcome:
                yield self._violation("otherwise", uid, f"{outcome}, {self._checkpoint[uid]} by the checkpoint")
        for uid, fate in self._fates.items():
            if fate == "dead" and uid in self._checkpoint:
                yield self._violation("otherwise", uid, f"dead, {self._checkpoint[uid]} by the checkpoint")

    def _violation(self, what: What, uid: str, detail: str = "") -> Violation:
        return Violation(what=what, kind=self.kind, uid=uid, detail=detail)


def _of_counters(replay: Replay, evidence: Evidence) -> Iterator[Violation]:
    """The counts of the log must lie between what the ledger said before and after it was read."""
    before, after = evidence.counters
    for name in sorted(replay.counts.keys() | before.keys() | after.keys()):
        bounds = (before.get(name, 0), after.get(name, 0))
        if not min(bounds) <= replay.counts[name] <= max(bounds):
            detail = f"{bounds[1]}, but {replay.counts[name]} by the events"
            yield Violation(what="counter", kind=_kind_of(name), uid=name, detail=detail)


def _of_the_rebuild(replay: Replay, evidence: Evidence) -> Iterator[Violation]:
    """What had ended at the last rebuild is what the checkpoint has now, without what ended since.

    It may have up to ``more`` of it: a uid that no event names may also have been issued after the events were read,
    and a judge uid that the log does not show as acknowledged may have ended before or since: it is made of the same
    answers, and a power cut of the server may have taken the events that said so.
    """
    if replay.rebuilt is None:
        return
    here = {kind: set(uids) for kind, uids in evidence.in_flight.items()}
    sure, more = Counter[str](), Counter[str]()
    for uid, (outcome, kind) in evidence.ended.items():
        if kind == "judge" and uid in replay.issued_since[kind]:
            more[f"{outcome}:{kind}"] += 1
        elif uid in replay.ended_since[kind] or uid in here[kind]:
            continue
        elif uid not in replay.fates[kind] or (kind == "judge" and uid not in replay.acknowledged[kind]):
            more[f"{outcome}:{kind}"] += 1
        elif uid not in replay.issued_since[kind]:
            sure[f"{outcome}:{kind}"] += 1
    for name in sorted((sure.keys() | replay.rebuilt.keys()) - {f"issued:{kind}" for kind in KINDS}):
        if not sure[name] <= replay.rebuilt[name] <= sure[name] + more[name]:
            detail = f"{replay.rebuilt[name]}, but {sure[name]} to {sure[name] + more[name]} by the checkpoint"
            yield Violation(what="counter", kind=_kind_of(name), uid=f"{name} at the rebuild", detail=detail)


def _of_training(evidence: Evidence) -> Iterator[Violation]:
    uids = sum(outcome == "trained" for outcome, _ in evidence.ended.values())
    if evidence.trained != uids:
        detail = f"{evidence.trained} groups went into the weights, of {uids} uids"
        yield Violation(what="retrained", kind="policy", uid="", detail=detail)


def _kind_of(counter: str) -> Kind:
    return "judge" if counter.endswith(":judge") else "policy"
