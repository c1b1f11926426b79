"""Group-relative advantages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.advantage import advantages, has_contrast, rewards
from learner.samples import to_samples

REWARDS = st.lists(st.floats(0, 1).map(lambda value: round(value, 3)), min_size=2, max_size=16).map(np.array)


@given(REWARDS, st.sampled_from(["group_norm", "group_norm_unbiased", "mean"]))
def test_they_sum_to_zero_and_keep_the_order_of_the_rewards(rewards_G, estimator) -> None:
    advantages_G = advantages(rewards_G, estimator, 1e-4)
    assert advantages_G.sum() == pytest.approx(0.0, abs=1e-5)
    order = np.argsort(rewards_G, kind="stable")
    assert (np.diff(advantages_G[order]) >= 0).all()


@given(REWARDS)
def test_group_norm_divides_by_the_population_deviation(rewards_G) -> None:
    deviation = np.sqrt(np.mean((rewards_G - rewards_G.mean()) ** 2))
    expected = (rewards_G - rewards_G.mean()) / (deviation + 1e-4)
    np.testing.assert_allclose(advantages(rewards_G, "group_norm", 1e-4), expected, atol=1e-12)


def test_group_norm_by_hand() -> None:
    """Mean 1/4; population deviation sqrt(3)/4 = 0.433 (the unbiased one would be 0.5)."""
    found = advantages(np.array([1.0, 0.0, 0.0, 0.0]), "group_norm", 1e-12)
    np.testing.assert_allclose(found, [np.sqrt(3), *[-1 / np.sqrt(3)] * 3], rtol=1e-9)
    unbiased = advantages(np.array([1.0, 0.0, 0.0, 0.0]), "group_norm_unbiased", 1e-12)
    np.testing.assert_allclose(unbiased, [1.5, -0.5, -0.5, -0.5], rtol=1e-9)
    assert advantages(np.array([1.0]), "group_norm_unbiased", 1e-4) == 0  # nothing to be unbiased about


@given(REWARDS.filter(lambda r: np.ptp(r) > 0.1), st.floats(0.1, 10), st.floats(-5, 5))
def test_group_norm_does_not_see_scale_or_shift(rewards_G, scale, shift) -> None:
    one, other = (advantages(r, "group_norm", 1e-12) for r in (rewards_G, scale * rewards_G + shift))
    np.testing.assert_allclose(one, other, atol=1e-6)


@given(REWARDS, st.randoms(use_true_random=False))
def test_siblings_have_no_order(rewards_G, random) -> None:
    order = list(range(len(rewards_G)))
    random.shuffle(order)
    np.testing.assert_allclose(
        advantages(rewards_G[order], "group_norm", 1e-4), advantages(rewards_G, "group_norm", 1e-4)[order], atol=1e-9
    )


def test_equal_rewards_and_an_empty_group_give_nothing_to_learn() -> None:
    assert (advantages(np.ones(4), "group_norm", 1e-4) == 0).all()
    assert advantages(np.array([]), "group_norm", 1e-4).shape == (0,)


def test_an_error_is_left_out_and_never_a_zero(make_group) -> None:
    group = make_group(rewards=(1.0, None, 0.0, None, 1.0))
    assert rewards(group).tolist() == [1.0, 0.0, 1.0]
    samples = to_samples(group, 0, "mean", 1e-4)
    assert [sample.advantage for sample in samples] == pytest.approx([1 / 3, -2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((1.0, 0.0), True),
        ((1.0, 1.0), False),
        ((0.0, 0.0), False),
        ((1.0, None), False),  # as a zero, the error would make a contrast
        ((None, None), False),
        ((1.0, None, 0.5), True),
    ],
)
def test_contrast_is_between_scored_siblings(make_group, codes, expected) -> None:
    assert has_contrast(make_group(rewards=codes)) is expected
