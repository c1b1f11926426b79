"""The loss of one microbatch: the same for every engine, whatever wraps its model.

Shape letters: N completion tokens of the microbatch, K objectives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.settings import Loss
from learner.layout import to_device
from learner.loss import kl_to_reference, policy_loss, token_weights
from learner.packing import Microbatch
from learner.scorer import Scorer
from learner.token_stats import TokenColumns


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicrobatchLoss:
    loss: Tensor
    """Normalised by the whole batch: its sum over all microbatches, of all ranks, is the loss of the step."""
    columns: TokenColumns


class BatchLoss:
    """``reference``: the frozen model that the policy is kept near; needed when ``settings.kl_coef`` is above 0."""

    def __init__(self, scorer: Scorer, reference: Scorer | None, settings: Loss) -> None:
        self.scorer = scorer
        self._reference = reference
        self._settings = settings

    def use(self, settings: Loss) -> None:
        """Other settings from the next batch on."""
        self._settings = settings

    def __call__(
        self, batch: Microbatch, counts_K: NDArray[np.int64], old: Tensor | None = None, model: Any = None
    ) -> MicrobatchLoss:
        """``counts_K``: ``tokens_by_objective`` of the whole joint batch. ``old`` [N]: what the ratio is taken to.

        ``model``: a wrapper of the scored model to run in its place.
        """
        device, segment_N = self.scorer.device, batch.segment_of_N
        behaviour = to_device(batch.behaviour_logprobs_T[batch.targets_N], device)
        advantages = to_device(batch.advantages_S[segment_N], device)
        objectives = torch.from_numpy(batch.objectives_S[segment_N])
        weights = to_device(token_weights(objectives, torch.from_numpy(counts_K), self._settings).numpy(), device)
        scores = self.scorer(batch, model)
        per_token = policy_loss(
            scores.logprobs, behaviour if old is None else old, behaviour, advantages, self._settings
        )
        kl_reference = torch.full_like(behaviour, torch.nan)
        if self._reference is not None:
            with torch.no_grad():
                reference = self._reference(batch).logprobs
            kl = kl_to_reference(scores.logprobs, reference)
            kl_reference, per_token = kl.detach(), per_token + self._settings.kl_coef * kl
        per_token = per_token * weights
        return MicrobatchLoss(
            loss=per_token.sum(),
            columns=TokenColumns(
                logprobs=scores.logprobs.detach(),
                behaviour=behaviour,
                entropy=scores.entropy,
                kl_reference=kl_reference,
                objectives=to_device(objectives.numpy(), device),
                staleness=to_device(batch.staleness_S[segment_N], device),
                losses=per_token.detach(),
                samples=to_device(batch.samples_S[segment_N], device),
            ),
        )

    @torch.no_grad()
    def logprobs(self, batch: Microbatch, model: Any = None) -> Tensor:
        """Log-probs [N] of the completion tokens under the weights as they are now."""
        return self.scorer(batch, model).logprobs
