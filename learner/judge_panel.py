"""The judge panel: how well the model judges, over the newest judge tasks that came back.

A step brings too few judge tasks to tell anything, so all figures but ``judge/tpr`` and ``judge/tnr`` of a step
(``learner/group_stats.py``) are over a window: the newest ``metrics.judge_window`` pointwise and as many pairwise
tasks, filtered ones included. The window is empty after a restart. What each figure means: docs/metrics.md.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from common.messages import RolloutGroup, SourceRef
from common.settings import Metrics
from learner.calibration import Votes, agreement, auroc, calibration
from learner.probes import ProbeKind, probe_of

LEAST_TASKS: Final = 16
"""Tasks in the window before calibration and ranking are shown."""
CLASS_OF: Final = {"tpr": True, "tnr": False}
"""Which answers a rate is about: the right ones, or the wrong ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointwise:
    """One pointwise task with its scored verdicts."""

    votes: Votes
    unread: int
    """Verdicts that name none of the choices: they neither accept nor reject."""
    age: int
    """Content staleness when the task came back, in versions."""
    probe: ProbeKind | None

    @property
    def verdicts(self) -> int:
        return len(self.votes.yes) + self.unread

    @property
    def correct(self) -> int:
        """Verdicts that are right about the answer."""
        return sum(yes is self.votes.positive for yes in self.votes.yes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairwise:
    """One pairwise task. ``right`` and ``wrong``: the shares of its verdicts that name that answer."""

    pair: Hashable
    """The two answers, whatever their order."""
    a_right: bool
    right: float
    wrong: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A share of verdicts, and of how many tasks."""

    value: float
    tasks: int
    unread: float
    """Share of the verdicts that cannot be read."""


class JudgePanel:
    """Fed with every group that arrives; ``figures`` reads it."""

    def __init__(self, settings: Metrics) -> None:
        self._pointwise: deque[Pointwise] = deque(maxlen=settings.judge_window)
        self._pairwise: deque[Pairwise] = deque(maxlen=settings.judge_window)
        # by class, so that an alarm looks at as many right answers as wrong ones, however seldom one of them comes
        self._newest = {positive: deque[Pointwise](maxlen=settings.alarm_window) for positive in (True, False)}
        self._news = False
        self.shown: dict[str, float] = {}
        """All figures, as of the last ``take_news``."""

    def arrived(self, group: RolloutGroup, content_staleness: int) -> None:
        """Takes a group of any objective; only verdicts on answers count, and only where a verdict was scored."""
        if group.task.positive is None or not group.scored:
            return
        if group.task.objective == "pointwise":
            task = pointwise_of(group, content_staleness)
            self._pointwise.append(task)
            self._newest[task.votes.positive].append(task)
            self._news = True
        elif group.task.objective == "pairwise":
            self._pairwise.append(pairwise_of(group))
            self._news = True

    def take_news(self) -> dict[str, float]:
        """The figures as metrics, if a judge task came since the last call."""
        if not self._news:
            return {}
        figures = self.figures()
        self._news = False
        self.shown = {name: round(value, 4) for name, value in {**self._rates(), **figures}.items()}
        return {f"judge/{name}": value for name, value in figures.items()}

    def figures(self) -> dict[str, float]:
        """Name -> value, of those that the window has tasks for. ``judge/tpr`` and ``judge/tnr`` are of one step."""
        tasks = list(self._pointwise)
        return {**_balanced(tasks), **_confidence(tasks), **_by_age(tasks), **_probes(tasks), **_pairs(self._pairwise)}

    def _rates(self) -> dict[str, float]:
        """``tpr`` and ``tnr`` over the whole window."""
        found = {name: rate(t for t in self._pointwise if t.votes.positive is of) for name, of in CLASS_OF.items()}
        return {name: value.value for name, value in found.items() if value}

    def newest(self, name: str) -> Rate | None:
        """``tpr`` or ``tnr`` of the newest ``metrics.alarm_window`` tasks of its class; None before so many came."""
        tasks = self._newest[CLASS_OF[name]]
        return rate(tasks) if len(tasks) == tasks.maxlen else None


def pointwise_of(group: RolloutGroup, content_staleness: int) -> Pointwise:
    """There are two choices: a readable verdict that is not the right one is the other one."""
    positive = bool(group.task.positive)
    read = [rollout.verdict for rollout in group.scored if rollout.verdict.status == "ok"]
    return Pointwise(
        votes=Votes(positive=positive, yes=tuple(verdict.correct is positive for verdict in read)),
        unread=len(group.scored) - len(read),
        age=content_staleness,
        probe=probe_of(group.task.sources[0].answer_hash) if group.task.sources and not positive else None,
    )


def pairwise_of(group: RolloutGroup) -> Pairwise:
    verdicts = [rollout.verdict for rollout in group.scored]
    return Pairwise(
        pair=frozenset(map(_identity, group.task.sources)),
        a_right=bool(group.task.positive),
        right=sum(verdict.correct for verdict in verdicts) / len(verdicts),
        wrong=sum(verdict.status == "ok" and not verdict.correct for verdict in verdicts) / len(verdicts),
    )


def rate(tasks: Iterable[Pointwise]) -> Rate | None:
    """Share of the verdicts that are right; one that cannot be read is wrong. None without tasks."""
    listed = list(tasks)
    if not listed:
        return None
    verdicts = sum(task.verdicts for task in listed)
    return Rate(
        value=sum(task.correct for task in listed) / verdicts,
        tasks=len(listed),
        unread=sum(task.unread for task in listed) / verdicts,
    )


def balanced_accuracy(tasks: Sequence[Pointwise]) -> float | None:
    """Mean of TPR and TNR; None while a class is missing."""
    rates = [rate(task for task in tasks if task.votes.positive is positive) for positive in (True, False)]
    return sum(r.value for r in rates if r) / 2 if all(rates) else None


def _balanced(tasks: Sequence[Pointwise]) -> dict[str, float]:
    found = balanced_accuracy(tasks)
    return {} if found is None else {"balanced_accuracy": found}


def _confidence(tasks: Sequence[Pointwise]) -> dict[str, float]:
    votes = [task.votes for task in tasks]
    if len(votes) < LEAST_TASKS:
        return {}
    measures: dict[str, Callable[[Sequence[Votes]], float | None]] = {"auroc": auroc, "confidence": agreement}
    figures = {name: value for name, of in measures.items() if (value := of(votes)) is not None}
    if error := calibration(votes):
        figures |= {"ece": error.error, "ece_floor": error.floor}
    return figures


def _by_age(tasks: Sequence[Pointwise]) -> dict[str, float]:
    ages: defaultdict[int, list[Pointwise]] = defaultdict(list)
    for task in tasks:
        ages[task.age].append(task)
    found = {f"accuracy/age_{age}": balanced_accuracy(ages[age]) for age in sorted(ages)}
    return {name: value for name, value in found.items() if value is not None}


def _probes(tasks: Sequence[Pointwise]) -> dict[str, float]:
    """Share of the verdicts that accept such an answer."""
    figures = {}
    for kind in sorted({task.probe for task in tasks if task.probe}):
        shown = [task for task in tasks if task.probe == kind]
        accepted = sum(sum(task.votes.yes) for task in shown)
        figures[f"false_positive/{kind}"] = accepted / sum(task.verdicts for task in shown)
    return figures


def _pairs(tasks: Iterable[Pairwise]) -> dict[str, float]:
    """``swap_consistency``: chance that a verdict in one order names the same answer as one in the other order.

    Only of pairs that were judged in both; a verdict that cannot be read is consistent with none.
    """
    listed = list(tasks)
    if not listed:
        return {}
    figures = {"pairwise_accuracy": sum(task.right for task in listed) / len(listed)}
    a_right = {task.pair: task for task in listed if task.a_right}
    both = [(a_right[task.pair], task) for task in listed if not task.a_right and task.pair in a_right]
    if both:
        same = (one.right * other.right + one.wrong * other.wrong for one, other in both)
        figures["swap_consistency"] = sum(same) / len(both)
    return figures


def _identity(source: SourceRef) -> tuple[str, str]:
    return source.uid, source.answer_hash
