"""The learning rate of each optimizer step (pure). Counts all steps, of whatever objective."""

from __future__ import annotations

import math

from common.settings import Learner


def learning_rate(step: int, learner: Learner) -> float:
    """Rate of optimizer step ``step`` (the first is 1): linear warm-up, then the schedule down to its floor."""
    rising = warmup_steps(learner)
    warm = min(1.0, step / rising) if rising else 1.0
    done = min(1.0, max(0, step - rising) / max(1, learner.max_steps - rising))
    floor = learner.lr_min_ratio
    shape = {
        "constant": 1.0,
        "linear": 1.0 - (1.0 - floor) * done,
        "cosine": floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done)),
    }[learner.lr_schedule]
    return learner.lr * warm * shape


def warmup_steps(learner: Learner) -> int:
    ratio = learner.warmup_ratio
    return learner.warmup_steps if ratio is None else math.ceil(ratio * learner.max_steps)
