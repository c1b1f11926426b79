"""Arithmetic on curves. Pure. n points, of which some may be NaN (nothing was measured there)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]
MOST_POINTS: Final = 300
"""Points of one drawn line at most; a plot is about as many pixels wide."""


def window_of(points: int) -> int:
    """Width of the moving mean: odd, about a twentieth of the run."""
    return max(1, points // 20) | 1 if points >= 10 else 1


def smooth(values: Sequence[float] | Curve, window: int) -> Curve:
    """Centred moving mean over the finite values of ``window`` (odd) points; NaN where there are none."""
    curve = np.asarray(values, dtype=np.float64)
    if window <= 1 or len(curve) < window:
        return curve.copy()
    finite = np.isfinite(curve)
    ones = np.ones(window)
    count = np.convolve(finite, ones, mode="same")
    sums = np.convolve(np.where(finite, curve, 0.0), ones, mode="same")
    return np.where(count > 0.5, sums / np.maximum(count, 1.0), np.nan)


def finite(steps: Sequence[float] | Curve, values: Sequence[float] | Curve) -> tuple[Curve, Curve]:
    """Only the points that were measured, so that a line joins them over the gaps."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    measured = np.isfinite(y)
    return x[measured], y[measured]


def thin(x: Curve, y: Curve, most: int = MOST_POINTS) -> tuple[Curve, Curve]:
    """Every k-th point of a smooth line, its ends included."""
    if len(x) <= most:
        return x, y
    chosen = np.linspace(0, len(x) - 1, most).round().astype(np.intp)
    return x[chosen], y[chosen]


def envelope(x: Curve, y: Curve, most: int = MOST_POINTS) -> tuple[Curve, Curve, Curve]:
    """Middle, lowest and highest of at most ``most`` runs of neighbouring points: no outlier gets lost."""
    bins = np.array_split(np.arange(len(x)), min(most, len(x)))
    middle = np.array([x[members].mean() for members in bins])
    low = np.array([y[members].min() for members in bins])
    high = np.array([y[members].max() for members in bins])
    return middle, low, high


def shares(parts: Sequence[Sequence[float]]) -> list[Curve]:
    """Each part over the sum of all parts, point by point; NaN parts count as 0, an empty sum gives 0."""
    stack = np.nan_to_num(np.asarray(parts, dtype=np.float64))
    whole = stack.sum(axis=0)
    return list(stack / np.where(whole > 0, whole, 1.0))


def ratio(above: Sequence[float], below: Sequence[float]) -> Curve:
    """Point by point; NaN where ``below`` is not positive."""
    denominator = np.asarray(below, dtype=np.float64)
    positive = denominator > 0
    return np.where(positive, np.asarray(above, dtype=np.float64) / np.where(positive, denominator, 1.0), np.nan)


def last(values: Curve) -> float | None:
    """The last finite value."""
    measured = values[np.isfinite(values)]
    return float(measured[-1]) if len(measured) else None
