"""How fast a run is: differences of counts between two snapshots, and of the learner's metrics. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cli.report.history import STEP, Row, total
from cli.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Of one stage or member; None where nothing is known yet."""

    groups_s: float | None = None
    tokens_s: float | None = None
    waits: float | None = None
    """Share of its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    issue: Pace
    generate: Pace
    recycle: Pace
    filtered: Pace
    train: Pace
    steps_s: float | None
    actors: Mapping[str, Pace]


NOTHING = Rates(issue=Pace(), generate=Pace(), recycle=Pace(), filtered=Pace(), train=Pace(), steps_s=None, actors={})
STILL_S: Final = 10.0
STILL_STEPS: Final = 3.0
"""Without new weights for so long, and for the time of so many batches, the last ones say nothing about now."""


def rates(older: Snapshot | None, newer: Snapshot) -> Rates:
    """``older``: some seconds ago; without it only the metrics tell."""
    actors = _actors(older, newer) if older else {}
    still = stands_still(newer)
    return Rates(
        issue=Pace(groups_s=_issued(older, newer, "policy")),
        generate=Pace(
            groups_s=_sum(p.groups_s for p in actors.values()), tokens_s=_sum(p.tokens_s for p in actors.values())
        ),
        recycle=Pace(groups_s=_issued(older, newer, "judge")),
        filtered=Pace() if still else _ended(newer.rows, "filtered/"),
        train=Pace() if still else _ended(newer.rows, "trained/", tokens="tokens"),
        steps_s=None if still else _steps(newer.rows),
        actors=actors,
    )


def _issued(older: Snapshot | None, newer: Snapshot, kind: str) -> float | None:
    if older is None:
        return None
    seconds = (newer.server.now_ms - older.server.now_ms) / 1000
    counts = [snapshot.ledger.kinds["policy" if kind == "policy" else "judge"]["issued"] for snapshot in (older, newer)]
    return max(0, counts[1] - counts[0]) / seconds if seconds > 0 else None


def _actors(older: Snapshot, newer: Snapshot) -> dict[str, Pace]:
    """Of actors that are in both; the counts of one that was started again begin anew."""
    paces = {}
    for name, beat in newer.living("actor").items():
        before = older.living("actor").get(name)
        if before is None:
            continue
        seconds = said_at(newer, name) - said_at(older, name)
        if seconds <= 0 or _count(beat, "rollouts") < _count(before, "rollouts"):
            continue
        paces[name] = Pace(
            groups_s=(_count(beat, "groups") - _count(before, "groups")) / seconds,
            tokens_s=(_count(beat, "tokens") - _count(before, "tokens")) / seconds,
            waits=min(1.0, (_count(beat, "waited_s") - _count(before, "waited_s")) / seconds),
        )
    return paces


def said_at(snapshot: Snapshot, member: str) -> float:
    """When its last heartbeat was sent, by the server's clock; when it was read, if that is not known."""
    return snapshot.server.now_ms / 1000 - snapshot.heard_s.get(member, 0.0)


def _count(beat: Mapping[str, object], name: str) -> float:
    value = beat.get(name, 0)
    return float(value) if isinstance(value, int | float) else 0.0


def _sum(values: object) -> float | None:
    known = [value for value in values if value is not None]  # type: ignore[attr-defined]
    return sum(known) if known else None


def stands_still(s: Snapshot) -> bool:
    """No step is made: the run is paused, or has made none for longer than its pace explains."""
    if s.steering.mode == "paused":
        return True
    a_batch_s = _elapsed(s.rows) / max(1, len(s.rows) - 1)
    return s.weights is not None and s.weights.age_s > max(STILL_S, STILL_STEPS * a_batch_s)


def _elapsed(rows: Sequence[Row]) -> float:
    """Seconds from the first to the last of these batches, without pauses."""
    if not rows:
        return 0.0
    paused = sum(row.get("seconds/paused", 0.0) for row in rows[1:])
    return rows[-1].get("elapsed_s", 0.0) - rows[0].get("elapsed_s", 0.0) - paused


def _ended(rows: Sequence[Row], outcome: str, *, tokens: str = "") -> Pace:
    """How the groups of the last batches ended, over the time between the first and the last of them."""
    seconds, later = _elapsed(rows), rows[1:]
    if seconds <= 0:
        return Pace()
    groups = sum(total(row, outcome) for row in later)
    counted = sum(row.get(tokens, 0.0) for row in later)
    return Pace(groups_s=groups / seconds, tokens_s=counted / seconds if counted else None)


def _steps(rows: Sequence[Row]) -> float | None:
    seconds = _elapsed(rows)
    return (rows[-1][STEP] - rows[0][STEP]) / seconds if seconds > 0 else None


def staleness_shares(rows: Sequence[Row]) -> dict[int, float]:
    """Share of the tokens of the last batches by their staleness in versions; empty when no metric tells."""
    tokens: dict[int, float] = {}
    for row in rows:
        for name, value in row.items():
            lag = name.removeprefix("tokens/staleness_")
            if lag != name and lag.isdigit():
                tokens[int(lag)] = tokens.get(int(lag), 0.0) + value
    whole = sum(tokens.values())
    return {lag: tokens[lag] / whole for lag in sorted(tokens)} if whole else {}
