"""Policy losses per token (pure). All arguments are [N]: the N completion tokens of a microbatch.

``logprobs`` are of the policy being trained, ``behaviour`` those the engine recorded while sampling,
``old`` what the ratio is taken to (the behaviour policy by default).
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.settings import Loss


def policy_loss(logprobs: Tensor, old: Tensor, behaviour: Tensor, advantages: Tensor, loss: Loss) -> Tensor:
    """Loss of every token [N]; its mean is minimised.

    ppo    -min(r A, clip(r, 1 - low, 1 + high) A), r = pi / old           (arXiv 1707.06347, eq. 7)
    cispo  -sg(min(pi / behaviour, cap)) A log pi                          (arXiv 2506.13585, eq. 4-5)
    tis    min(old / behaviour, cap) * ppo, old = the policy at the start of the batch
    """
    if loss.kind == "cispo":
        weight = (logprobs - behaviour).exp().clamp(max=loss.cap).detach()
        return -weight * advantages * logprobs
    ratio = (logprobs - old).exp()
    clipped = ratio.clamp(1.0 - loss.clip_low, 1.0 + loss.clip_high)
    surrogate = -torch.minimum(ratio * advantages, clipped * advantages)
    if loss.kind == "tis":
        surrogate = (old - behaviour).exp().clamp(max=loss.cap) * surrogate
    return surrogate


def kl_to_reference(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) for every token [N]; never negative."""
    log_ratio = reference - logprobs
    return log_ratio.exp() - 1.0 - log_ratio


def objective_weights(loss: Loss) -> list[float]:
    """Weights in the order of ``OBJECTIVES``."""
    return [loss.solve_weight, loss.pointwise_weight, loss.pairwise_weight, loss.reflect_weight]


def token_weights(objectives: Tensor, tokens_by_objective: Tensor, loss: Loss) -> Tensor:
    """What each token [N] counts in the batch's loss; over the whole batch they sum to 1.

    ``objective``: objective k gets w_k / (sum of w over those present), shared equally by its own tokens, so
    that short verdicts neither vanish nor dominate. ``token``: every token of the batch counts the same.
    """
    counts = tokens_by_objective.float()
    if loss.normalise == "token":
        return torch.full_like(objectives, 1.0, dtype=torch.float32) / counts.sum().clamp(min=1.0)
    weights = torch.tensor(objective_weights(loss)) * (counts > 0)
    per_token = weights / weights.sum().clamp(min=1e-12) / counts.clamp(min=1.0)
    return per_token[objectives]
