"""From scored groups to training samples, and how a batch is split into updates (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.messages import Objective, RolloutGroup
from learner.advantage import Estimator, advantages, rewards


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One completion with its advantage."""

    objective: Objective
    prompt_token_ids: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    behaviour_logprobs: NDArray[np.float32]
    advantage: float
    staleness: int

    def __len__(self) -> int:
        return len(self.prompt_token_ids) + len(self.token_ids)


def to_samples(group: RolloutGroup, staleness: int, estimator: Estimator, eps: float) -> list[Sample]:
    """The scored siblings as samples; the others are excluded."""
    return [
        Sample(
            objective=group.task.objective,
            prompt_token_ids=group.prompt_token_ids,
            token_ids=rollout.completion.token_ids,
            behaviour_logprobs=rollout.completion.logprobs,
            advantage=float(advantage),
            staleness=staleness,
        )
        for rollout, advantage in zip(group.scored, advantages(rewards(group), estimator, eps), strict=True)
    ]


def split(groups: Sequence[RolloutGroup], parts: int) -> list[list[RolloutGroup]]:
    """Groups dealt out to ``parts`` updates, each with its share of every objective; empty parts are left out."""
    by_objective = sorted(groups, key=lambda group: group.task.objective)  # stable: order within is kept
    return [part for index in range(parts) if (part := by_objective[index::parts])]
