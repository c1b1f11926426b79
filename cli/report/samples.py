"""Which samples of a run the report shows: the best, the worst, and those that were judged wrong. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from common.archive import ArchivedGroup
from common.messages import Objective, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """One completion: a group and the place of the sibling in it."""

    record: ArchivedGroup
    sample: int

    @property
    def rollout(self) -> Rollout:
        return self.record.group.rollouts[self.sample]


Score = Callable[[ArchivedGroup, int], float | None]
"""How well a sibling fits, the more the better; None when it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    title: str
    most: int
    score: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """A heading of the report, and what stands under it."""

    title: str
    explanation: str
    rubrics: tuple[Rubric, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    title: str
    explanation: str
    picks: tuple[tuple[str, Pick], ...]
    """Title of the rubric, and the pick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    shelves: tuple[Shown, ...] = ()
    looked_at: int = 0
    """Groups that the choice was made among."""
    oldest: int = 0
    latest: int = 0
    """Lowest and highest policy version of them."""

    @property
    def picks(self) -> list[Pick]:
        return [pick for shelf in self.shelves for _, pick in shelf.picks]


def _by_advantage(objective: Objective, *, right: bool, positive: bool | None = None) -> Score:
    """Trained siblings that went the other way than most of their group."""

    def score(record: ArchivedGroup, sample: int) -> float | None:
        task, verdict = record.group.task, record.group.rollouts[sample].verdict
        if task.objective != objective or task.positive is not positive or record.outcome != "trained":
            return None
        if not verdict.scored or verdict.correct is not right:
            return None
        return record.advantages[sample] if right else -record.advantages[sample]

    return score


def _misjudged(objective: Objective, positive: bool | None) -> Score:
    """Readable verdicts that are wrong, by the share of wrong ones in the group: the surest errors first."""

    def score(record: ArchivedGroup, sample: int) -> float | None:
        task, verdict = record.group.task, record.group.rollouts[sample].verdict
        if task.objective != objective or (positive is not None and task.positive is not positive):
            return None
        if verdict.status != "ok" or verdict.correct:
            return None
        return sum(not rollout.verdict.correct for rollout in record.group.scored) / len(record.group.rollouts)

    return score


SHELVES: Final = (
    Shelf(
        title="Best",
        explanation="Right where most of the group was wrong: the completions with the highest advantage.",
        rubrics=(
            Rubric(title="Solved", most=2, score=_by_advantage("solve", right=True)),
            Rubric(title="Wrong answer repaired", most=1, score=_by_advantage("reflect", right=True, positive=False)),
        ),
    ),
    Shelf(
        title="Worst",
        explanation="Wrong where most of the group was right: the completions with the lowest advantage.",
        rubrics=(
            Rubric(title="Not solved", most=2, score=_by_advantage("solve", right=False)),
            Rubric(title="Right answer spoilt", most=1, score=_by_advantage("reflect", right=False, positive=True)),
        ),
    ),
    Shelf(
        title="Judged wrong",
        explanation="Verdicts that contradict the verifier, from the groups that were most agreed on them. A group "
        "that is wrong as one teaches nothing: it is filtered, not trained.",
        rubrics=(
            Rubric(title="Wrong answer accepted", most=1, score=_misjudged("pointwise", False)),
            Rubric(title="Right answer rejected", most=1, score=_misjudged("pointwise", True)),
            Rubric(title="Wrong one of two preferred", most=1, score=_misjudged("pairwise", None)),
        ),
    ),
)


@dataclass(slots=True)
class _Top:
    """The best few of a rubric, at most one sibling of each group."""

    rubric: Rubric
    kept: list[tuple[float, int, str, int, ArchivedGroup]] = field(default_factory=list)

    def offer(self, record: ArchivedGroup) -> None:
        scores = [(self.rubric.score(record, sample), -sample) for sample in range(len(record.group.rollouts))]
        fitting = [(score, place) for score, place in scores if score is not None]
        if not fitting:
            return
        score, place = max(fitting)
        # the uid is unique, so groups themselves are never compared; of equals the latest counts
        item = (round(score, 6), record.policy_version, record.uid, -place, record)
        (heapq.heappush if len(self.kept) < self.rubric.most else heapq.heappushpop)(self.kept, item)

    def picks(self) -> list[tuple[str, Pick]]:
        best_first = sorted(self.kept, key=lambda item: item[:3], reverse=True)
        return [(self.rubric.title, Pick(record=record, sample=sample)) for _, _, _, sample, record in best_first]


def choose(records: Iterable[ArchivedGroup], shelves: Sequence[Shelf] = SHELVES) -> Chosen:
    """One pass over ``records``, each uid at most once."""
    tops = [[_Top(rubric) for rubric in shelf.rubrics] for shelf in shelves]
    versions: list[int] = []
    for record in records:
        versions.append(record.policy_version)
        for top in (top for row in tops for top in row):
            top.offer(record)
    shown = [
        Shown(
            title=shelf.title, explanation=shelf.explanation, picks=tuple(pick for top in row for pick in top.picks())
        )
        for shelf, row in zip(shelves, tops, strict=True)
    ]
    return Chosen(
        shelves=tuple(shelf for shelf in shown if shelf.picks),
        looked_at=len(versions),
        oldest=min(versions, default=0),
        latest=max(versions, default=0),
    )
