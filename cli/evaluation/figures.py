"""Figures with 95 % intervals. Pure.

An outcome is True, False, or None where the verifier itself failed: that is no wrong answer, so it does not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from common.errors import SparkError

Outcome = bool | None
Z: Final = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A share in [0, 1] or a difference of shares, over ``n`` draws, with its 95 % interval."""

    value: float
    n: int
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's score interval of a share over ``n`` draws (an effective number need not be whole)."""
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def share_of(outcomes: Iterable[Outcome], what: str) -> Figure:
    """Share of True among independent draws. Raises SparkError when none could be scored."""
    return clustered_share(([outcome] for outcome in outcomes), what)


def clustered_share(clusters: Iterable[Sequence[Outcome]], what: str) -> Figure:
    """Share of True over draws of which those of one cluster (one prompt) depend on each other.

    Wilson's interval at the effective number of draws: between the number of clusters (draws of a cluster
    always agree) and the number of draws. Raises SparkError when no draw could be scored.
    """
    counts = [(sum(map(bool, scored)), len(scored)) for cluster in clusters if (scored := _scored(cluster))]
    n = sum(size for _, size in counts)
    if not n:
        raise SparkError(f"{what}: not one draw could be scored; the verifier failed every time (see the log)")
    value = sum(right for right, _ in counts) / n
    variance = sum((right - value * size) ** 2 for right, size in counts) / n**2  # of a ratio of cluster totals
    effective = value * (1 - value) / variance if variance else 0.0
    low, high = wilson(value, min(max(effective, len(counts)), n))
    return Figure(value=value, n=n, low=low, high=high)


def mean_of(one: Figure, other: Figure) -> Figure:
    """Mean of two independent shares, such as TPR and TNR; the interval combines the distances to their limits."""
    value = (one.value + other.value) / 2
    below = math.hypot(one.value - one.low, other.value - other.low) / 2
    above = math.hypot(one.high - one.value, other.high - other.value) / 2
    return Figure(value=value, n=one.n + other.n, low=value - below, high=value + above)


def paired_difference(after: Sequence[Outcome], before: Sequence[Outcome], what: str) -> Figure:
    """Share after minus share before on the same prompts; ``n`` counts prompts with both outcomes.

    Wald's interval after adding half a prompt to each of the four cells (Agresti and Min), so that a handful of
    changes in one direction is not taken for certainty. Raises SparkError without a single pair.
    """
    pairs = [(a, b) for a, b in zip(after, before, strict=True) if a is not None and b is not None]
    n = len(pairs)
    if not n:
        raise SparkError(f"{what}: not one prompt could be scored both times; the verifier failed every time")
    won, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    net, changed, size = won - lost, won + lost + 1, n + 2
    half = Z * math.sqrt(changed - net**2 / size) / size
    return Figure(value=net / n, n=n, low=max(-1.0, net / size - half), high=min(1.0, net / size + half))


def _scored(cluster: Sequence[Outcome]) -> list[bool]:
    return [outcome for outcome in cluster if outcome is not None]
