"""The recipe ``original``: the table of SPARK's released code, kept as a baseline (docs/algorithm.md, section 1).

Every group gives one judge task, and one reflection if it holds a wrong answer; a random half of each
fills a phase, or nothing is emitted. Labels follow the accuracy of the policy and only wrong answers are
reflected on: that is the point of the baseline. What a group gives is drawn once, from its uid.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import cycle

from common.errors import SettingsError
from common.messages import Task, uid_of
from common.settings import Recycler
from common.templates import ReflectTemplate
from recycler.judge_tasks import Plan, Sources, TaskBuilder

POINTWISE_IN_MIXED = 0.3


class Original:
    def __init__(self, recycler: Recycler, builder: TaskBuilder) -> None:
        templates = builder.templates
        self._builder = builder
        self._told_wrong_share = recycler.told_wrong_share
        self._pointwise = [template for template in templates.pointwise if not template.permuted]
        self._pairwise = templates.pairwise
        forms = [[one for one in templates.reflect if one.shows_response is shown] for shown in (True, False)]
        self._forms = cycle([form for form in forms if form])
        if not (self._pointwise and self._pairwise and templates.reflect):
            raise SettingsError(
                f"template set {templates.name!r}: recycler.recipe 'original' needs pointwise templates with fixed "
                "verdict words, pairwise and reflect templates; add them, or choose another recipe"
            )

    def use(self, recycler: Recycler) -> None:
        """Other shares from the next plan on: the table of this recipe has but one."""
        self._told_wrong_share = recycler.told_wrong_share

    def plan(self, groups: Iterable[Sources], room: int, policy_version: int, right_rate: float) -> Plan:
        """Tasks that fill exactly ``room``, half of them reflections; nothing while the groups cannot."""
        usable = [sources for sources in groups if sources.kind != "unusable"]
        reflectable = [sources for sources in usable if sources.wrong]
        reflections = room // 2
        if room <= 0 or len(usable) < room - reflections or len(reflectable) < reflections:
            return []
        made: dict[str, tuple[Sources, list[Task]]] = {}
        for sources in self._draw("judge", usable, room - reflections):
            made.setdefault(sources.uid, (sources, []))[1].append(self._judge(sources, policy_version))
        for sources in self._draw("reflect", reflectable, reflections):
            made.setdefault(sources.uid, (sources, []))[1].append(self._reflect(sources, policy_version))
        return [(sources, tuple(tasks)) for sources, tasks in made.values()]

    def _draw(self, what: str, groups: list[Sources], count: int) -> list[Sources]:
        return sorted(groups, key=lambda sources: uid_of(self._builder.seed, what, sources.uid))[:count]

    def _judge(self, sources: Sources, policy_version: int) -> Task:
        rng = random.Random(sources.rank)
        if sources.kind == "mixed" and rng.random() >= POINTWISE_IN_MIXED:
            return self._builder.pairwise(
                rng.choice(sources.right),
                rng.choice(sources.wrong),
                rng.choice(self._pairwise),
                a_right=rng.random() < 0.5,
                policy_version=policy_version,
            )
        if sources.kind == "right":
            source = sources.right[0]
        elif sources.kind == "wrong":
            source = rng.choice(sources.wrong)
        else:
            source = rng.choice(sources.right if rng.random() < 0.5 else sources.wrong)
        return self._builder.pointwise(source, rng.choice(self._pointwise), policy_version=policy_version)

    def _reflect(self, sources: Sources, policy_version: int) -> Task:
        rng = random.Random(uid_of(sources.rank, "reflect"))
        told_wrong = rng.random() < self._told_wrong_share
        template = rng.choice(_preferring(next(self._forms), lambda one: one.neutral is not told_wrong))
        return self._builder.reflect(rng.choice(sources.wrong), template, policy_version=policy_version)


def _preferring(templates: list[ReflectTemplate], wanted: Callable[[ReflectTemplate], bool]) -> list[ReflectTemplate]:
    return [template for template in templates if wanted(template)] or templates
