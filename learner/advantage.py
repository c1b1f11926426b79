"""Group-relative advantages (pure).

Shape letters: G scored siblings of one group.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.messages import RolloutGroup

Estimator = Literal["group_norm", "group_norm_unbiased", "mean"]


def rewards(group: RolloutGroup) -> NDArray[np.float64]:
    """Rewards [G] of the siblings that were scored; errors and timeouts are left out, never 0."""
    return np.array([rollout.verdict.reward for rollout in group.scored])


def has_contrast(group: RolloutGroup) -> bool:
    """At least two scored siblings that differ in reward. Without it every advantage is 0."""
    rewards_G = rewards(group)
    return len(rewards_G) > 1 and bool(np.ptp(rewards_G) > 0)


def advantages(rewards_G: NDArray[np.float64], estimator: Estimator, eps: float) -> NDArray[np.float64]:
    """Advantages [G].

    ``group_norm`` is SPARK's equation 3, (r - mean) / (std + eps) with the population (1/n) standard deviation;
    its released code has the unbiased (1/(n - 1)) one, ``group_norm_unbiased``. ``mean`` is r - mean, which Dr.GRPO
    (arXiv 2503.20783) proposes to avoid the difficulty bias.
    """
    if len(rewards_G) == 0:
        return rewards_G
    centred_G: NDArray[np.float64] = rewards_G - rewards_G.mean()
    if estimator == "mean" or len(rewards_G) == 1:  # of one, all are 0 already
        return centred_G
    deviation = float(rewards_G.std(ddof=int(estimator == "group_norm_unbiased")))
    return centred_G / (deviation + eps)
