"""The parts of a stratified plan: whose turn it is, what may come next, and a group being decided."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from common.messages import Objective, Task
from common.templates import Template
from recycler.balance import Shares
from recycler.judge_tasks import GroupKind, Source, Sources

T = TypeVar("T", bound=Template)
_SERVED_BY: Final[dict[tuple[bool, bool], tuple[GroupKind, ...]]] = {
    (True, False): ("right", "mixed"),
    (False, True): ("wrong", "mixed"),
    (True, True): ("mixed",),
}


class Families(Generic[T]):
    """The templates of one objective by family, and whose turn it is."""

    def __init__(self, templates: Sequence[T]) -> None:
        self._families: dict[str, list[T]] = {}
        for template in templates:
            self._families.setdefault(template.family, []).append(template)
        self._shares = Shares(dict.fromkeys(self._families, 1.0))
        self._turns: Counter[Hashable] = Counter()

    def __bool__(self) -> bool:
        return bool(self._families)

    def order(self) -> list[str]:
        """Family names, the least used first."""
        return self._shares.order(self._shares.names)

    def first(self, family: str) -> T:
        return self._families[family][0]

    def take(self, family: str, cell: Hashable) -> T:
        """The family's next template in ``cell``: within every cell its templates take turns."""
        self._shares.record(family, self._shares.names)
        self._turns[family, cell] += 1
        return self._families[family][self._turns[family, cell] % len(self._families[family])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What may come next of one objective. ``right`` and ``wrong``: which sources it shows."""

    objective: Objective
    family: str
    right: bool
    wrong: bool
    told_wrong: bool = False

    @property
    def served_by(self) -> tuple[GroupKind, ...]:
        """The kinds of groups that can always serve it, while nothing was made of them."""
        return _SERVED_BY[self.right, self.wrong]


@dataclass(slots=True, kw_only=True, eq=False)
class Draft:
    """An opened group: its tasks so far, and which of its rollouts have been shown how often."""

    sources: Sources
    tasks: list[Task] = field(default_factory=list)
    _shown: set[Hashable] = field(default_factory=set)
    _uses: Counter[int] = field(default_factory=Counter)
    _shuffled: dict[bool, list[Source]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = random.Random(self.sources.rank)
        for correct, listed in ((True, self.sources.right), (False, self.sources.wrong)):
            self._shuffled[correct] = rng.sample(listed, len(listed))

    def take(self, correct: bool, how: Hashable, by_response: bool = False) -> Source | None:
        """The least used rollout whose content was not yet shown in this way; None when there is none."""

        def content(source: Source) -> Hashable:
            return (how, correct, source.sample if by_response else source.canonical)

        unseen = [source for source in self._shuffled[correct] if content(source) not in self._shown]
        if not unseen:
            return None
        source = min(unseen, key=lambda source: self._uses[source.sample])
        self._shown.add(content(source))
        self._uses[source.sample] += 1
        return source


class Shelves:
    """Undecided groups by kind."""

    def __init__(self, groups: Iterable[Sources]) -> None:
        """The freshest groups come first; among equally fresh ones a seeded order."""
        self._shelves: defaultdict[GroupKind, list[Sources]] = defaultdict(list)
        for sources in sorted(groups, key=lambda sources: (sources.version, sources.rank)):
            self._shelves[sources.kind].append(sources)

    def __getitem__(self, kind: GroupKind) -> int:
        return len(self._shelves[kind])

    def open(self, kinds: Sequence[GroupKind]) -> Sources | None:
        """Take the freshest group of the kind that there is most of: what is scarce is spared."""
        kind = max(kinds, key=lambda kind: len(self._shelves[kind]))
        return self._shelves[kind].pop() if self._shelves[kind] else None
