"""What an actor tells of each group: how long it was generated and verified, and in which trace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from common.messages import RolloutGroup
from common.streams import Delivery
from common.telemetry import span_names as names
from common.telemetry.metric_names import APPLY, GENERATION, TOKEN_USAGE, VERIFICATION
from common.telemetry.quiet import QUIET, Attribute, Telemetry


@dataclass(slots=True)
class _Times:
    """Unix seconds."""

    begun: float
    generated: float = 0.0


class GroupSpans:
    """Told when a group is begun, generated, shipped; keyed by its delivery. Does nothing while telemetry is off."""

    def __init__(self, telemetry: Telemetry = QUIET, model: str = "", clock: Callable[[], float] = time.time) -> None:
        """``model``: its name, of which only the last part is told: the rest may be a path of this machine."""
        self._telemetry = telemetry
        self._clock = clock
        self._times: dict[str, _Times] = {}
        self._about: dict[str, str] = {
            names.OPERATION: names.CHAT,
            names.PROVIDER: names.OURS,
            names.MODEL: PurePath(model).name,
        }

    def begun(self, key: str) -> None:
        if self._telemetry.on:
            self._times[key] = _Times(self._clock())

    def generated(self, key: str) -> None:
        if times := self._times.get(key):
            times.generated = self._clock()

    def gone(self, key: str) -> None:
        """It is shipped, dead, or another actor's."""
        self._times.pop(key, None)

    def applied(self, seconds: float) -> None:
        """New weights are in place, so long after they were noticed."""
        if self._telemetry.on:
            self._telemetry.meters.record(APPLY, seconds)

    def shipped(self, delivery: Delivery, group: RolloutGroup) -> None:
        """The group is on its stream."""
        if times := self._times.get(delivery.key):
            now = self._clock()
            self._measure(group, times, now)
            self._trace(delivery, group, times, now)

    def _measure(self, group: RolloutGroup, times: _Times, now: float) -> None:
        objective = {"objective": group.task.objective}
        labels = {**self._about, **objective}
        record = self._telemetry.meters.record
        record(GENERATION, times.generated - times.begun, labels)
        record(VERIFICATION, now - times.generated, objective)
        record(TOKEN_USAGE, len(group.prompt_token_ids), {**labels, names.TOKEN_TYPE: "input"})
        record(TOKEN_USAGE, _tokens(group), {**labels, names.TOKEN_TYPE: "output"})

    def _trace(self, delivery: Delivery, group: RolloutGroup, times: _Times, now: float) -> None:
        span, parent = self._telemetry.traces.span, group.task.trace
        generation: dict[str, Attribute] = {
            names.OBJECTIVE_OF: group.task.objective,
            **self._about,
            names.INPUT_TOKENS: len(group.prompt_token_ids),
            names.OUTPUT_TOKENS: _tokens(group),
            names.OLDEST_VERSION: group.oldest_version,
            names.VERSION: max(rollout.completion.spans[-1][0] for rollout in group.rollouts),
            names.EPOCH: group.weights_epoch,
            names.DELIVERIES: delivery.deliveries,
        }
        rewards = [rollout.verdict.reward for rollout in group.scored]
        verification: dict[str, Attribute] = {
            names.EVALUATION: group.rollouts[0].verdict.verifier,
            names.SCORE: sum(rewards) / len(rewards),
        }
        span(names.GENERATE, generation, start_s=times.begun, end_s=times.generated, parent=parent)
        span(names.VERIFY, verification, start_s=times.generated, end_s=now, parent=parent)


def _tokens(group: RolloutGroup) -> int:
    return sum(len(rollout.completion.token_ids) for rollout in group.rollouts)
