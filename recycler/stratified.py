"""The recipes ``balanced`` and ``natural``: which tasks to make of which groups.

A plan opens one group after the other and decides all of its tasks before the next, so the order in
which tasks were decided is the order in which they are emitted, and the balance holds for every window
of the stream. Each step: the objective with the largest deficit names the family and the class that are
due; a group that can serve them is opened; it may then serve whatever else is still wanted and due.

``natural`` differs in one point: the share of right answers among pointwise tasks is the rollouts' own
rate, and a class without a source does not block.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

from common.errors import SettingsError
from common.messages import Task
from common.settings import Recycler
from common.templates import PairwiseTemplate, PointwiseTemplate, ReflectTemplate
from recycler.balance import Balance, Shares
from recycler.drafts import Draft, Families, Need, Shelves
from recycler.judge_tasks import KINDS, GroupKind, Plan, Sources, TaskBuilder


class Stratified:
    def __init__(self, recycler: Recycler, builder: TaskBuilder) -> None:
        reflect = builder.templates.reflect
        self._natural = recycler.recipe == "natural"
        self._recycler, self._builder = recycler, builder
        self._mix = Shares(recycler.mix.model_dump())
        self._balance = Balance(builder.seed)
        self._pointwise: Families[PointwiseTemplate] = Families(builder.templates.pointwise)
        self._pairwise: Families[PairwiseTemplate] = Families(builder.templates.pairwise)
        self._neutral: Families[ReflectTemplate] = Families([one for one in reflect if one.neutral])
        self._told_wrong: Families[ReflectTemplate] = Families([one for one in reflect if not one.neutral])
        self._right_rate = 0.5
        self._policy_version = 0
        self._refuse_missing_templates(self._mix)

    def use(self, recycler: Recycler) -> None:
        """Other shares from the next plan on. Another mix begins its turn-taking anew, as a restart does."""
        if recycler.mix != self._recycler.mix:
            mix = Shares(recycler.mix.model_dump())
            self._refuse_missing_templates(mix)
            self._mix = mix
        self._recycler = recycler

    def _refuse_missing_templates(self, mix: Shares) -> None:
        families = {"pointwise": self._pointwise, "pairwise": self._pairwise, "reflect": self._neutral}
        for objective in mix.names:
            if not families[objective]:
                raise SettingsError(
                    f"template set {self._builder.templates.name!r} has no {objective} template (reflect: no neutral "
                    f"one); add one, or set recycler.mix.{objective} to 0"
                )

    def plan(self, groups: Iterable[Sources], room: int, policy_version: int, right_rate: float) -> Plan:
        """Tasks for at most ``room``, each with the group it was made of; groups not in it stay undecided."""
        self._policy_version, self._right_rate = policy_version, right_rate
        shelves = Shelves(groups)
        # Spread over as many groups as there are, so that a plan asks about many questions.
        limits = {kind: math.ceil(room / max(1, shelves[kind])) for kind in KINDS}
        plan: Plan = []
        names = self._mix.names
        while room > 0 and names:
            wanted = self._mix.split(room, names)
            made = self._fill(shelves, limits, wanted, names)
            room -= sum(len(tasks) for _, tasks in made)
            plan += made
            names = tuple(name for name in names if not wanted[name])  # the others ran out of sources
        return plan

    def _fill(
        self, shelves: Shelves, limits: Mapping[GroupKind, int], wanted: Counter[str], names: Sequence[str]
    ) -> Plan:
        """Counts down ``wanted``; what stays above 0 cannot be served from what is left on the shelves."""
        plan: Plan = []
        names = list(names)
        while live := [name for name in names if wanted[name]]:
            objective = self._mix.order(live)[0]
            sources = self._open(objective, shelves)
            if sources is None:
                names.remove(objective)
                continue
            draft = Draft(sources=sources)
            limit = min(self._recycler.max_tasks_per_group, limits[sources.kind])
            while len(draft.tasks) < limit and (served := self._serve(draft, [name for name in names if wanted[name]])):
                self._mix.record(served, names)
                wanted[served] -= 1
            if draft.tasks:
                plan.append((sources, tuple(draft.tasks)))
        return plan

    def _open(self, objective: str, shelves: Shelves) -> Sources | None:
        for need in self._needs(objective):
            if sources := shelves.open(need.served_by):
                return sources
        return None

    def _serve(self, draft: Draft, live: Sequence[str]) -> str | None:
        """Add one task to the draft; the objective it belongs to, or None when nothing that is due fits."""
        for objective in self._mix.order(live):
            for need in self._needs(objective):
                if task := self._meet(need, draft):
                    draft.tasks.append(task)
                    return objective
        return None

    def _needs(self, objective: str) -> Iterator[Need]:
        """What may come next, best first. Per family only one class is due."""
        if objective == "pointwise":
            for family in self._pointwise.order():
                due = self._balance.due(("pointwise", family), self._right_share)
                for right in (due, not due) if self._natural else (due,):
                    yield Need(objective="pointwise", family=family, right=right, wrong=not right)
        elif objective == "pairwise":
            for family in self._pairwise.order():
                yield Need(objective="pairwise", family=family, right=True, wrong=True)
        else:
            yield from self._reflect_needs()

    def _reflect_needs(self) -> Iterator[Need]:
        if self._told_wrong and self._balance.due("told_wrong", self._recycler.told_wrong_share):
            for family in self._told_wrong.order():
                yield Need(objective="reflect", family=family, right=False, wrong=True, told_wrong=True)
        for family in self._neutral.order():
            right = self._balance.due(("reflect", family), self._recycler.correct_share)
            yield Need(objective="reflect", family=family, right=right, wrong=not right)

    @property
    def _right_share(self) -> float:
        return self._right_rate if self._natural else 0.5

    def _meet(self, need: Need, draft: Draft) -> Task | None:
        if need.objective == "pointwise":
            return self._make_pointwise(need, draft)
        return self._make_pair(need, draft) if need.objective == "pairwise" else self._make_reflection(need, draft)

    def _make_pointwise(self, need: Need, draft: Draft) -> Task | None:
        source = draft.take(need.right, "pointwise")
        if source is None:
            return None
        swapped = self._pointwise.first(need.family).permuted and self._next(("swapped", need.family, need.right))
        self._balance.record(("pointwise", need.family), need.right, self._right_share)
        template = self._pointwise.take(need.family, (need.right, swapped))
        return self._builder.pointwise(source, template, swapped=swapped, policy_version=self._policy_version)

    def _make_pair(self, need: Need, draft: Draft) -> Task | None:
        wrong = draft.take(False, "pairwise") if draft.sources.kind == "mixed" else None
        right = draft.take(True, ("beside", wrong.sample)) if wrong else None
        if wrong is None or right is None:
            return None
        a_right = self._next(("pairwise", need.family))
        template = self._pairwise.take(need.family, a_right)
        return self._builder.pairwise(right, wrong, template, a_right=a_right, policy_version=self._policy_version)

    def _make_reflection(self, need: Need, draft: Draft) -> Task | None:
        families = self._told_wrong if need.told_wrong else self._neutral
        by_response = families.first(need.family).shows_response
        source = draft.take(need.right, ("reflect", by_response), by_response)
        if source is None:
            return None
        self._balance.record("told_wrong", need.told_wrong, self._recycler.told_wrong_share)
        if not need.told_wrong:
            self._balance.record(("reflect", need.family), need.right, self._recycler.correct_share)
        template = families.take(need.family, need.right)
        return self._builder.reflect(source, template, policy_version=self._policy_version)

    def _next(self, key: Hashable) -> bool:
        """Alternate: a choice that no source constrains."""
        due = self._balance.due(key, 0.5)
        self._balance.record(key, due, 0.5)
        return due
