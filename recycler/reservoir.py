"""Scored groups that wait, un-acked, to become judge tasks.

Each group is decided once: all tasks made of it are in the one Emission that acknowledges its entry, so
the entry's ack and its tasks are one atomic transfer. A recycler that is killed loses and repeats
nothing: what was not emitted is still pending on the stream.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import Literal

from common.lineage import ONE_LINE, Lineage
from common.messages import RolloutGroup, Task
from common.settings import Recycler, Sampling
from common.templates import TemplateSet
from recycler.judge_tasks import KINDS, GroupKind, Sources, TaskBuilder, extract
from recycler.original import Original
from recycler.stratified import Stratified

Reason = Literal["recycled", "unusable", "expired", "overflow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """The decision on one group: acknowledge ``entry_id`` and append ``tasks``, in one transfer."""

    entry_id: str
    uid: str
    tasks: tuple[Task, ...]
    reason: Reason


class Reservoir:
    """Holds groups and decides them. The same groups, settings and calls give the same tasks.

    ``counts`` is for telemetry: groups by kind, rollouts not usable, emissions by reason, tasks by class.
    """

    def __init__(self, recycler: Recycler, sampling: Sampling, templates: TemplateSet, *, run: str, seed: int) -> None:
        """Raises SettingsError when the template set lacks what the recipe needs."""
        builder = TaskBuilder(run=run, seed=seed, sampling=sampling, templates=templates)
        self._recipe = (Original if recycler.recipe == "original" else Stratified)(recycler, builder)
        self._seed = seed
        self._limit = recycler.reservoir_groups
        self._held: dict[str, Sources] = {}
        self._recent: deque[tuple[int, int]] = deque(maxlen=self._limit)
        self.counts: Counter[str] = Counter()

    def use(self, recycler: Recycler) -> None:
        """Other settings from the next plan on. Raises SettingsError when the template set lacks what they need."""
        self._recipe.use(recycler)

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, entry_id: str) -> bool:
        return entry_id in self._held

    @property
    def kinds(self) -> Counter[GroupKind]:
        return Counter(sources.kind for sources in self._held.values())

    @property
    def right_rate(self) -> float:
        """Share of right answers among the usable rollouts of recently added groups; 0.5 before the first."""
        right, usable = (sum(column) for column in zip(*self._recent, strict=True)) if self._recent else (0, 0)
        return right / usable if usable else 0.5

    def add(self, entry_id: str, group: RolloutGroup) -> bool:
        """Hold a group until it is decided; False if this entry is already held (it was read again)."""
        if entry_id in self._held:
            return False
        sources = extract(group, self._seed)
        if any(held.uid == sources.uid for held in self._held.values()):
            sources = replace(sources, right=(), wrong=())  # one group under two entries: its twin is decided
        self._held[entry_id] = sources
        self._recent.append((len(sources.right), len(sources.right) + len(sources.wrong)))
        self.counts[f"groups.{sources.kind}"] += 1
        self.counts["rollouts.no_answer"] += sources.no_answer
        self.counts["rollouts.contradictory"] += sources.contradictory
        return True

    def plan(self, room: int, policy_version: int) -> list[Emission]:
        """Decide groups that become tasks, at most ``room`` tasks in all; the others stay.

        Call ``expire`` first: a plan does not look at content staleness.
        """
        entries = {sources.uid: entry_id for entry_id, sources in self._held.items() if sources.kind in KINDS}
        planned = self._recipe.plan(self._held.values(), room, policy_version, self.right_rate)
        return [self._decide(entries[sources.uid], "recycled", tasks) for sources, tasks in planned]

    def expire(self, policy_version: int, content_bound: int, lineage: Lineage = ONE_LINE) -> list[Emission]:
        """Decide groups that become nothing, oldest first.

        Those without a usable answer, those more than ``content_bound`` versions behind, and beyond
        ``reservoir_groups`` the oldest of the fullest kind: wrong answers get scarce as a policy improves.
        """
        oldest_first = sorted(self._held.items(), key=lambda item: (item[1].version, item[1].rank))
        dropped: list[Emission] = []
        for entry_id, sources in oldest_first:
            if lineage.distance(sources.epoch, sources.version, policy_version) > content_bound:
                dropped.append(self._decide(entry_id, "expired"))
            elif sources.kind == "unusable":
                dropped.append(self._decide(entry_id, "unusable"))
        return dropped + self._overflow()

    def _overflow(self) -> list[Emission]:
        if len(self._held) <= self._limit:
            return []
        shelves: dict[GroupKind, deque[tuple[Sources, str]]] = {kind: deque() for kind in (*KINDS, "unusable")}
        held = [(sources, entry_id) for entry_id, sources in self._held.items()]
        for sources, entry_id in sorted(held, key=lambda pair: (pair[0].version, pair[0].rank)):
            shelves[sources.kind].append((sources, entry_id))
        dropped: list[Emission] = []
        while len(self._held) > self._limit:
            fullest = max(shelves, key=lambda kind: len(shelves[kind]))
            dropped.append(self._decide(shelves[fullest].popleft()[1], "overflow"))
        return dropped

    def _decide(self, entry_id: str, reason: Reason, tasks: tuple[Task, ...] = ()) -> Emission:
        sources = self._held.pop(entry_id)
        self.counts[f"decided.{reason}"] += 1
        for task in tasks:
            self.counts[f"tasks.{task.objective}.{'positive' if task.positive else 'negative'}"] += 1
        return Emission(entry_id=entry_id, uid=sources.uid, tasks=tasks, reason=reason)
