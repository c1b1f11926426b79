"""What the learner tells of each batch and of the groups in it: figures, the step's span, and how each group ended.

A trained group's trace ends with a span that is linked to its step, and the step is linked to every group: from either
the other is found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.messages import Outcome, RolloutGroup
from common.telemetry import span_names as names
from common.telemetry.metric_names import CONTENT_STALENESS, STALENESS
from common.telemetry.quiet import Attribute, Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    group: RolloutGroup
    outcome: Outcome
    staleness: int
    at: float
    """Unix seconds."""


class BatchSpans:
    """``consumed`` hears how groups end, ``batch`` the metrics when their batch is published and saved."""

    def __init__(self, telemetry: Telemetry, epoch: int, clock: Callable[[], float] = time.time) -> None:
        self._telemetry = telemetry
        self._epoch = epoch
        self._clock = clock
        self._ended: list[_Ended] = []

    def consumed(
        self, group: RolloutGroup, outcome: Outcome, policy_version: int, staleness: int, content_staleness: int
    ) -> None:
        """A group has ended. ``policy_version``: of the learner at that time."""
        if not self._telemetry.on:
            return
        self._ended.append(_Ended(group=group, outcome=outcome, staleness=staleness, at=self._clock()))
        if outcome == "trained":
            labels = {"objective": group.task.objective}
            self._telemetry.meters.record(STALENESS, staleness, labels)
            if group.task.sources:
                self._telemetry.meters.record(CONTENT_STALENESS, content_staleness, labels)

    def batch(self, metrics: Mapping[str, Any]) -> None:
        """A batch is over: trained, published, saved if that was due."""
        if not self._telemetry.on:
            return
        self._telemetry.meters.batch(metrics)
        ended, self._ended = self._ended, []
        step = self._step(metrics, [one.group for one in ended if one.outcome == "trained"])
        for one in ended:
            self._end(one, int(metrics["policy_version"]), step)

    def _step(self, metrics: Mapping[str, Any], groups: list[RolloutGroup]) -> str:
        """The step's span, its stages one after the other up to now; returns its context."""
        end_s = self._clock()
        stages = [(name, float(metrics.get(f"seconds/{stage}", 0.0))) for stage, name in names.STAGES.items()]
        at = end_s - sum(seconds for _, seconds in stages)
        about: dict[str, Attribute] = {
            names.VERSION: int(metrics["policy_version"]),
            names.EPOCH: self._epoch,
            names.GROUPS: len(groups),
            names.SAMPLES: sum(len(group.rollouts) for group in groups),
        }
        links = [group.task.trace for group in groups]
        step = self._telemetry.traces.root()
        self._telemetry.traces.span(names.STEP, about, start_s=at, end_s=end_s, context=step, links=links)
        for name, seconds in stages:
            self._telemetry.traces.span(name, {}, start_s=at, end_s=at + seconds, parent=step)
            at += seconds
        return step

    def _end(self, one: _Ended, policy_version: int, step: str) -> None:
        trace, trained = one.group.task.trace, one.outcome == "trained"
        about: dict[str, Attribute] = {
            names.OUTCOME: one.outcome,
            names.STALENESS_OF: one.staleness,
            names.VERSION: policy_version,
        }
        end_s = self._clock() if trained else one.at
        links = [step] if trained else []
        self._telemetry.traces.span(names.END, about, start_s=one.at, end_s=end_s, parent=trace, links=links)
