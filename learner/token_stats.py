"""What a step says about its tokens, by objective and by staleness: ratio, ESS, KL, entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from common.messages import OBJECTIVES


class TokenStats:
    """Collects the completion tokens of a step; ``summary`` turns them into metrics."""

    def __init__(self) -> None:
        self._columns: list[tuple[Tensor, ...]] = []

    def add(self, logprobs: Tensor, behaviour: Tensor, entropy: Tensor, objectives: Tensor, staleness: Tensor) -> None:
        """All [N]: log-probs now and while sampling, entropy, index of the objective, staleness in versions."""
        self._columns.append((logprobs, behaviour, entropy, objectives, staleness))

    def summary(self, clip: float) -> dict[str, float]:
        """Metrics over all tokens, then ``NAME/OBJECTIVE`` and ``NAME/staleness_K`` for each present."""
        if not self._columns:
            return {}
        logprobs, behaviour, entropy, objectives, staleness = (torch.cat(c) for c in zip(*self._columns, strict=True))
        log_ratio = logprobs - behaviour
        metrics = {"tokens": float(len(logprobs)), **_ratio_metrics(log_ratio, clip), "entropy": float(entropy.mean())}
        for index, objective in enumerate(OBJECTIVES):
            mine = objectives == index
            if mine.any():
                metrics[f"entropy/{objective}"] = float(entropy[mine].mean())
                metrics |= {f"{k}/{objective}": v for k, v in _ratio_metrics(log_ratio[mine], clip).items()}
        for lag in sorted(set(staleness.tolist())):
            mine = staleness == lag
            metrics[f"tokens/staleness_{lag}"] = float(mine.sum())
            metrics |= {f"{k}/staleness_{lag}": v for k, v in _ratio_metrics(log_ratio[mine], clip).items()}
        return metrics


def _ratio_metrics(log_ratio: Tensor, clip: float) -> dict[str, float]:
    """``kl``: k3 estimate of KL(behaviour || current); ``ess``: effective sample size as a share of the tokens."""
    ratio = log_ratio.double().exp()
    return {
        "kl": float((ratio - 1.0 - log_ratio).mean()),
        "ratio_max": float(ratio.max()),
        "clipped": float(((ratio - 1.0).abs() > clip).double().mean()),
        "ess": float(ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum())),
    }
