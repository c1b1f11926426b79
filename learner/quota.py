"""What goes into a batch: how many groups of each stream, and which (pure)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common.messages import Objective, RolloutGroup
from common.settings import Learner


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Groups wanted in one batch. Policy groups are waited for; judge groups only ``judge_wait_s``."""

    policy: int
    judge: int


def quota_of(learner: Learner, turn: int) -> Quota:
    """What a batch wants: all alike when joint, policy and judge in turn when alternating."""
    policy, judge = learner.groups_per_step, learner.judge_groups_per_step
    if learner.mixing == "joint" or judge == 0:
        return Quota(policy=policy, judge=judge)
    return Quota(policy=0, judge=judge) if turn % 2 else Quota(policy=policy, judge=0)


def oldest_first(group: RolloutGroup) -> tuple[int, str]:
    """Sort key. The uid makes the order of a batch independent of the order of arrival."""
    return group.oldest_version, group.uid


class DeficitRoundRobin:
    """Fills judge quotas so that over time every objective gets its share, oldest groups first.

    An objective with nothing ready never blocks: the others take its place, and it catches up later.
    """

    def __init__(self, shares: Mapping[Objective, float]) -> None:
        self._shares: dict[Objective, float] = {}
        self._deficit = dict.fromkeys(shares, 0.0)
        self.use(shares)

    def use(self, shares: Mapping[Objective, float]) -> None:
        """Other shares from now on, of the same objectives; what is owed stays owed."""
        total = sum(shares.values()) or 1.0
        self._shares = {objective: share / total for objective, share in shares.items()}

    def choose(
        self, ready: Sequence[RolloutGroup], count: int, last_chance: Callable[[RolloutGroup], bool] = lambda _: False
    ) -> list[RolloutGroup]:
        """Up to ``count`` groups; those on their ``last_chance`` before they are too stale go before all others."""
        if count == 0:  # a pure policy batch is nobody's turn
            return []
        chosen = sorted(filter(last_chance, ready), key=oldest_first)[:count]
        for group in chosen:
            self._deficit[group.task.objective] -= 1.0
        taken = {group.uid for group in chosen}
        waiting: dict[Objective, list[RolloutGroup]] = {objective: [] for objective in self._shares}
        for group in sorted(ready, key=oldest_first, reverse=True):
            if group.uid not in taken:
                waiting[group.task.objective].append(group)
        while len(chosen) < count and any(waiting.values()):
            for objective, share in self._shares.items():
                self._deficit[objective] += share
            objective = max((o for o in waiting if waiting[o]), key=lambda o: self._deficit[o])
            self._deficit[objective] -= 1.0
            chosen.append(waiting[objective].pop())
        # What an idle objective missed is owed for one batch at most: a judge that was off must not flood the next.
        for objective, share in self._shares.items():
            most = max(1.0, share * count)
            self._deficit[objective] = max(-most, min(most, self._deficit[objective]))
        return chosen
