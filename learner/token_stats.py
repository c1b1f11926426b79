"""What a step says about its tokens, by objective and by staleness: ratio, ESS, KLs, entropy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.messages import OBJECTIVES


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenColumns:
    """The completion tokens of a microbatch, all [N], without a gradient."""

    logprobs: Tensor
    behaviour: Tensor
    """Log-probs while sampling."""
    entropy: Tensor
    """NaN where it was not computed."""
    kl_reference: Tensor
    """k3 estimate of KL(current || reference) of the token; NaN without a reference model."""
    objectives: Tensor
    """Index into ``OBJECTIVES``."""
    staleness: Tensor
    """In versions."""
    losses: Tensor
    """What each token adds to the loss of the step."""
    samples: Tensor
    """``Microbatch.samples_S`` of each token."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Name -> array on the host: what one rank sends to another."""
        return {field.name: getattr(self, field.name).cpu().numpy() for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> TokenColumns:
        """The inverse of ``arrays``. Raises KeyError when one is missing."""
        return cls(**{field.name: torch.from_numpy(arrays[field.name]) for field in fields(cls)})


class TokenStats:
    """Collects the completion tokens of a step; ``summary`` turns them into metrics."""

    def __init__(self) -> None:
        self._parts: list[TokenColumns] = []
        self._on_host: TokenColumns | None = None

    def add(self, columns: TokenColumns) -> None:
        self._parts.append(columns)
        self._on_host = None

    def columns(self) -> TokenColumns:
        """All that was added, on the host: one wait for the device in a step. Raises RuntimeError when nothing was."""
        if self._on_host is None:
            columns = {f.name: torch.cat([getattr(part, f.name) for part in self._parts]) for f in fields(TokenColumns)}
            self._on_host = TokenColumns(**{name: column.cpu() for name, column in columns.items()})
        return self._on_host

    def sample_losses(self, samples: int) -> NDArray[np.float64]:
        """What each of so many samples added to the loss of the step, in the order in which they were packed."""
        if not self._parts:
            return np.zeros(samples)
        columns = self.columns()
        losses: NDArray[np.float64] = columns.losses.double().numpy()
        return np.bincount(columns.samples.numpy(), losses, minlength=samples).astype(np.float64, copy=False)

    def summary(self, clip: float) -> dict[str, float]:
        """Metrics over all tokens, then ``NAME/OBJECTIVE`` and ``NAME/staleness_K`` for each present."""
        if not sum(len(part.logprobs) for part in self._parts):
            return {}
        columns = self.columns()
        log_ratio = columns.logprobs - columns.behaviour
        metrics = {"tokens": float(len(log_ratio)), **_ratio_metrics(log_ratio, clip)}
        metrics |= _mean("entropy", columns.entropy) | _mean("kl_reference", columns.kl_reference)
        for index, objective in enumerate(OBJECTIVES):
            mine = columns.objectives == index
            if mine.any():
                metrics |= _mean(f"entropy/{objective}", columns.entropy[mine])
                metrics |= _mean(f"kl_reference/{objective}", columns.kl_reference[mine])
                metrics |= {f"{k}/{objective}": v for k, v in _ratio_metrics(log_ratio[mine], clip).items()}
        for lag in sorted(set(columns.staleness.tolist())):
            mine = columns.staleness == lag
            metrics[f"tokens/staleness_{lag}"] = float(mine.sum())
            metrics |= {f"{k}/staleness_{lag}": v for k, v in _ratio_metrics(log_ratio[mine], clip).items()}
        return metrics


def _mean(name: str, column: Tensor) -> dict[str, float]:
    """Over the tokens that have one; no metric when none has."""
    known = column[~column.isnan()]
    return {name: float(known.mean())} if len(known) else {}


def _ratio_metrics(log_ratio: Tensor, clip: float) -> dict[str, float]:
    """``kl``: k3 estimate of KL(behaviour || current); ``ess``: effective sample size as a share of the tokens."""
    ratio = log_ratio.double().exp()
    return {
        "kl": float((ratio - 1.0 - log_ratio).mean()),
        "ratio_max": float(ratio.max()),
        "clipped": float(((ratio - 1.0).abs() > clip).double().mean()),
        "ess": float(ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum())),
    }
