"""The event log, replayed: what it says of every uid. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from common.errors import SparkError
from common.messages import OUTCOMES, Kind, Outcome

KINDS: Final[tuple[Kind, ...]] = ("policy", "judge")
Fate = Outcome | Literal["in_flight", "unsettled"]
"""Where a uid is by the log. ``unsettled``: a rebuild came after it, so only the checkpoint knows."""


class Replay:
    """What the log says after all events that were applied, oldest first.

    A rebuild forgets: policy uids beyond its cursor are not issued any more, dead ones go out again, and judge uids may
    be made anew. What was issued below the cursor but stood only in the part of the log that the server lost has no
    name here: ``unnamed`` counts it.
    """

    def __init__(self, events: Iterable[Mapping[str, str]] = ()) -> None:
        self.fates: dict[Kind, dict[str, Fate]] = {kind: {} for kind in KINDS}
        self.twice: dict[Kind, dict[str, str]] = {kind: {} for kind in KINDS}
        """uid -> what happened to it once too often."""
        self.strangers: dict[Kind, set[str]] = {kind: set() for kind in KINDS}
        """Ended or revived, but no event issued them."""
        self.acknowledged: dict[Kind, dict[str, Outcome]] = {kind: {} for kind in KINDS}
        """uid -> how the learner ended it, rebuilds or not: every one must be in its checkpoint."""
        self.counts: Counter[str] = Counter()
        """What the server's ledger must say: ``issued:KIND`` and ``OUTCOME:KIND`` -> number of uids."""
        self.rebuilt: Counter[str] | None = None
        """``counts`` as the last rebuild set them."""
        self.ended_since: dict[Kind, set[str]] = {kind: set() for kind in KINDS}
        """Ended since the last rebuild."""
        self.issued_since: dict[Kind, set[str]] = {kind: set() for kind in KINDS}
        """Issued since the last rebuild."""
        self._order: list[str | None] = []
        """Policy uids in the order of the prompts."""
        for event in events:
            self.apply(event)

    @property
    def unnamed(self) -> int:
        """Policy uids that were issued, but whose event the server lost before it was on disk."""
        return self._order.count(None)

    def apply(self, event: Mapping[str, str]) -> None:
        """Raises SparkError for an event of another version."""
        uids = event.get("uids", "").split()
        match event.get("event"):
            case "issued":
                self._issued(_kind(event["kind"]), uids)
            case "ended":
                outcome, _, kind = event["outcome"].partition(":")
                self._ended(_outcome(outcome), _kind(kind), uids)
            case "revived":
                self._revived(_kind(event["kind"]), uids)
            case "rebuilt":
                self._rebuilt(Counter({name: int(number) for name, number in _pairs(event["counts"])}))
            case "steered":  # what a user said; it moves no task
                pass
            case other:
                raise SparkError(f"the event log holds an event {other!r}; audit a run with the version that wrote it")

    def _issued(self, kind: Kind, uids: list[str]) -> None:
        self.counts[f"issued:{kind}"] += len(uids)
        for uid in uids:
            fate = self.fates[kind].get(uid)
            if fate is not None and (kind, fate) != ("judge", "unsettled"):
                self.twice[kind][uid] = "issued twice"
            self.fates[kind][uid] = "in_flight"
        if self.rebuilt is not None:
            self.issued_since[kind].update(uids)
        if kind == "policy":
            self._order += uids

    def _ended(self, outcome: Outcome, kind: Kind, uids: list[str]) -> None:
        self.counts[f"{outcome}:{kind}"] += len(uids)
        for uid in uids:
            fate = self.fates[kind].get(uid)
            if fate is None:
                self.strangers[kind].add(uid)
            elif fate in OUTCOMES:
                self.twice[kind][uid] = f"ended twice: {fate}, then {outcome}"
            self.fates[kind][uid] = outcome
            if outcome != "dead":
                self.acknowledged[kind][uid] = outcome
        if self.rebuilt is not None:
            self.ended_since[kind].update(uids)

    def _revived(self, kind: Kind, uids: list[str]) -> None:
        self.counts[f"dead:{kind}"] -= len(uids)
        for uid in uids:
            fate = self.fates[kind].get(uid)
            if fate is None:
                self.strangers[kind].add(uid)
            elif fate != "dead":
                self.twice[kind][uid] = f"revived, but not dead: {fate}"
            self.fates[kind][uid] = "in_flight"

    def _rebuilt(self, counts: Counter[str]) -> None:
        self.rebuilt, self.counts = counts, counts.copy()
        cursor = counts["issued:policy"]
        for uid in self._order[cursor:]:
            if uid is not None:
                self.fates["policy"].pop(uid, None)
        self._order = self._order[:cursor] + [None] * (cursor - len(self._order))
        policy, judge = self.fates["policy"], self.fates["judge"]
        policy.update(
            dict.fromkeys([uid for uid, fate in policy.items() if fate in ("in_flight", "dead")], "unsettled")
        )
        judge.update(dict.fromkeys(judge, "unsettled"))
        for since in (*self.ended_since.values(), *self.issued_since.values()):
            since.clear()


def _pairs(counts: str) -> Iterable[tuple[str, str]]:
    for pair in counts.split():
        name, _, number = pair.partition("=")
        yield name, number


def _kind(word: str) -> Kind:
    if word not in KINDS:
        raise SparkError(f"the event log speaks of {word!r} tasks; audit a run with the version that wrote it")
    return word


def _outcome(word: str) -> Outcome:
    if word not in OUTCOMES:
        raise SparkError(f"the event log holds an ending {word!r}; audit a run with the version that wrote it")
    return word
