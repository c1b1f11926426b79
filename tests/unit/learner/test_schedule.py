"""The learning rate counts every optimizer step: in SPARK's released code it rose again at the end (D17)."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.settings import Learner
from learner.schedule import learning_rate


def rates(**fields):
    learner = Learner(lr=1.0, **fields)
    return [learning_rate(step, learner) for step in range(1, learner.max_steps + 1)]


@given(st.sampled_from(["linear", "cosine"]), st.integers(1, 60), st.integers(0, 20), st.floats(0, 1))
def test_it_falls_once_warm_and_ends_at_its_floor(schedule, steps, warmup, floor) -> None:
    found = rates(max_steps=steps, lr_schedule=schedule, warmup_steps=warmup, lr_min_ratio=floor)
    cooling = found[warmup:]
    assert all(after <= before + 1e-12 for before, after in pairwise(cooling))
    assert all(rate <= 1.0 for rate in found)
    if steps > warmup:
        assert found[-1] == pytest.approx(floor)


def test_warm_up_is_linear() -> None:
    assert rates(max_steps=8, warmup_steps=4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_warm_up_as_a_share_of_the_run() -> None:
    assert rates(max_steps=40, warmup_ratio=0.1, warmup_steps=30)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates(max_steps=10, warmup_ratio=0.03)[0] == 1.0  # rounded up to one step
    assert rates(max_steps=3, warmup_ratio=0.0) == [1.0, 1.0, 1.0]


def test_no_warm_up_starts_at_the_peak() -> None:
    assert rates(max_steps=3, warmup_steps=0) == [1.0, 1.0, 1.0]


def test_half_way_by_hand() -> None:
    half = {"linear": 0.55, "cosine": 0.55}
    for schedule, expected in half.items():
        found = rates(max_steps=100, warmup_steps=0, lr_schedule=schedule, lr_min_ratio=0.1)
        assert found[49] == pytest.approx(expected)
    assert rates(max_steps=100, warmup_steps=0, lr_schedule="cosine", lr_min_ratio=0.0)[24] == pytest.approx(0.853553)


def test_steps_beyond_the_horizon_stay_at_the_floor() -> None:
    learner = Learner(lr=1.0, max_steps=10, warmup_steps=2, lr_schedule="cosine", lr_min_ratio=0.1)
    assert [learning_rate(step, learner) for step in (10, 11, 20, 1000)] == pytest.approx([0.1] * 4)


def test_alternating_batches_share_one_horizon() -> None:
    """D17: eight policy updates and eight judge updates per round are sixteen steps of the schedule."""
    learner = Learner(
        lr=1.0, max_steps=32, warmup_steps=0, lr_schedule="cosine", mixing="alternate", updates_per_batch=8
    )
    found = [learning_rate(step, learner) for step in range(1, 33)]
    assert found == sorted(found, reverse=True)
    assert found[15] > 0.5  # half-time: the released code was at its floor here
