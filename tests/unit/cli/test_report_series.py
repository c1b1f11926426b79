"""Arithmetic on curves: smoothing, thinning, shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.report import series

VALUES = st.lists(st.one_of(st.floats(-1e3, 1e3), st.just(float("nan"))), min_size=1, max_size=60)
WINDOWS = st.integers(0, 8).map(lambda half: 2 * half + 1)


@given(VALUES, WINDOWS)
def test_smoothing_stays_between_the_extremes_and_keeps_the_length(values: list[float], window: int) -> None:
    smoothed = series.smooth(values, window)
    assert len(smoothed) == len(values)
    finite = [value for value in values if np.isfinite(value)]
    measured = smoothed[np.isfinite(smoothed)]
    if finite:
        assert measured.min() >= min(finite) - 1e-6
        assert measured.max() <= max(finite) + 1e-6
    else:
        assert len(measured) == 0


def test_smoothing_is_a_centred_mean_that_skips_gaps() -> None:
    smoothed = series.smooth([1.0, float("nan"), 3.0, 5.0, 7.0], 3)
    assert smoothed.tolist() == [1.0, 2.0, 4.0, 5.0, 6.0]


@given(st.integers(0, 20_000))
def test_the_window_is_odd_and_much_shorter_than_the_run(points: int) -> None:
    window = series.window_of(points)
    assert window % 2 == 1
    assert window <= max(1, points // 9)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=900))
def test_an_envelope_keeps_the_extremes_and_thinning_the_ends(values: list[float]) -> None:
    x, y = np.arange(len(values), dtype=float), np.array(values)
    middle, low, high = series.envelope(x, y, most=50)
    assert len(middle) == len(low) == len(high) <= 50
    assert low.min() == y.min()
    assert high.max() == y.max()
    thin_x, thin_y = series.thin(x, y, most=50)
    assert len(thin_x) <= 50
    assert (thin_x[0], thin_x[-1]) == (x[0], x[-1])
    assert (thin_y[0], thin_y[-1]) == (y[0], y[-1])


def test_shares_sum_to_one_where_there_is_anything() -> None:
    first, second = series.shares([[1.0, 0.0, float("nan")], [3.0, 0.0, 2.0]])
    assert first.tolist() == [0.25, 0.0, 0.0]
    assert second.tolist() == [0.75, 0.0, 1.0]


def test_a_ratio_over_nothing_is_a_gap() -> None:
    values = series.ratio([4.0, 4.0], [2.0, 0.0])
    assert values[0] == 2.0
    assert np.isnan(values[1])


def test_the_last_value_is_the_last_finite_one() -> None:
    assert series.last(np.array([1.0, 2.0, np.nan])) == 2.0
    assert series.last(np.array([np.nan])) is None


def test_only_measured_points_are_joined() -> None:
    x, y = series.finite([1, 2, 3], [5.0, float("inf"), 7.0])
    assert x.tolist() == [1, 3]
    assert y.tolist() == [5.0, 7.0]
    with pytest.raises(IndexError):
        series.finite([1, 2], [5.0, float("nan"), 7.0])
