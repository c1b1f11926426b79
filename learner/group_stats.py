"""What the groups between two batches say: reward by objective, the judge's TPR and TNR, staleness, endings.

Beside them the judge panel, which looks further back (``learner/judge_panel.py``).
"""

from __future__ import annotations

from collections import Counter, defaultdict

from common.messages import Kind, Outcome, RolloutGroup
from common.settings import Metrics
from learner.judge_panel import JudgePanel


class GroupStats:
    """Rewards are taken over every group that arrived, filtered ones too: the trained ones alone would flatter."""

    def __init__(self, settings: Metrics | None = None) -> None:
        self.judge = JudgePanel(settings or Metrics())
        self._counts: Counter[str] = Counter()
        self._values: defaultdict[str, list[float]] = defaultdict(list)

    def arrived(self, group: RolloutGroup, content_staleness: int = 0) -> None:
        objective = group.task.objective
        self.judge.arrived(group, content_staleness)
        self._counts["samples"] += len(group.rollouts)
        self._counts[f"groups/{objective}"] += 1
        self._counts["verifier_errors"] += len(group.rollouts) - len(group.scored)
        for rollout in group.scored:
            self._values[f"reward/{objective}"].append(rollout.verdict.reward)
            self._values[f"no_answer/{objective}"].append(rollout.verdict.status == "no_answer")
            self._values["length"].append(len(rollout.completion.token_ids))
            if objective == "pointwise":
                self._values["judge/tpr" if group.task.positive else "judge/tnr"].append(rollout.verdict.reward)
            if objective == "reflect":
                name = "reflect/kept" if group.task.positive else "reflect/fixed"
                self._values[name].append(rollout.verdict.reward)
        if group.task.positive is not None:
            self._values[f"positive/{objective}"].append(group.task.positive)

    def trained(self, group: RolloutGroup, staleness: int, content_staleness: int) -> None:
        self._values["staleness"].append(staleness)
        if group.task.sources:
            self._values["content_staleness"].append(content_staleness)

    def ended(self, outcome: Outcome, kind: Kind) -> None:
        self._counts[f"{outcome}/{kind}"] += 1

    def mean(self, name: str) -> float | None:
        """Since the last ``take``; None where nothing came."""
        values = self._values.get(name)
        return sum(values) / len(values) if values else None

    def take(self) -> dict[str, float]:
        """Means and counts since the last call, and the judge panel where a judge task came."""
        metrics = {name: sum(values) / len(values) for name, values in self._values.items() if values}
        for name in ("staleness", "content_staleness"):
            if self._values[name]:
                metrics[f"{name}_max"] = max(self._values[name])
        metrics |= {name: float(count) for name, count in self._counts.items()}
        self._counts.clear()
        self._values.clear()
        return metrics | self.judge.take_news()
