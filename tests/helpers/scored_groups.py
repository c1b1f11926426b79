"""Groups written by hand, for what reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.messages import Completion, Rollout, RolloutGroup, Task, Verdict


def scored_group(task: Task, rewards: Sequence[float] = (1.0, 0.0), version: int = 0) -> RolloutGroup:
    """A completion of two tokens for each reward."""
    completion = Completion(
        token_ids=np.array([5, 2], dtype=np.int32),
        logprobs=np.array([-1.0, -1.0], dtype=np.float32),
        spans=((version, 0),),
        finish_reason="stop",
        text="t",
    )
    verdicts = [Verdict(status="ok", reward=reward, verifier="exact@1") for reward in rewards]
    return RolloutGroup(
        task=task,
        prompt_token_ids=np.array([1], dtype=np.int32),
        rollouts=tuple(Rollout(completion=completion, verdict=verdict) for verdict in verdicts),
        actor="actor-0",
        weights_epoch=1,
        generated_at=0.0,
    )
