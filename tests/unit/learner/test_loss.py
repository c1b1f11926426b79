"""Policy losses: values and gradients by hand, KL, and the weights of tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.messages import OBJECTIVES
from common.settings import Loss
from learner.loss import kl_to_reference, objective_weights, policy_loss, token_weights

PPO = Loss(kind="ppo", clip_low=0.2, clip_high=0.3)


def value_and_gradient(ratio: float, advantage: float, loss: Loss, old_over_behaviour: float = 1.0):
    """Loss of one token with pi / old = ``ratio``, and its derivative by log pi."""
    old = torch.tensor([-1.0])
    logprob = (old + math.log(ratio)).requires_grad_()
    behaviour = old - math.log(old_over_behaviour)
    value = policy_loss(logprob, old, behaviour, torch.tensor([advantage]), loss)
    [gradient] = torch.autograd.grad(value.sum(), logprob)
    return value.item(), gradient.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # at ratio 1: the policy gradient, -A grad log pi
        (1.0, -2.0, 2.0, 2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.6, 0.0),  # has gone far enough up: clipped at 1.3
        (0.5, -2.0, 1.6, 0.0),  # has gone far enough down: clipped at 0.8
        (0.5, 2.0, -1.0, -1.0),  # has gone the wrong way: never clipped
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_ppo_by_hand(ratio, advantage, value, gradient) -> None:
    assert value_and_gradient(ratio, advantage, PPO) == pytest.approx((value, gradient), abs=1e-5)


@pytest.mark.parametrize(("weight", "used"), [(0.5, 0.5), (1.0, 1.0), (1.9, 1.9), (7.0, 2.0)])
def test_cispo_weighs_every_token_and_caps_the_weight_not_the_gradient(weight, used) -> None:
    """Its gradient is -min(r, cap) A: a clipped token still teaches."""
    cispo = Loss(kind="cispo", cap=2.0)
    value, gradient = value_and_gradient(weight, 3.0, cispo)
    assert gradient == pytest.approx(-used * 3.0, rel=1e-5)
    assert value == pytest.approx(-used * 3.0 * (-1.0 + math.log(weight)), rel=1e-5)


def test_cispo_takes_its_ratio_to_the_behaviour_policy() -> None:
    _, gradient = value_and_gradient(1.0, 1.0, Loss(kind="cispo", cap=2.0), old_over_behaviour=1.5)
    assert gradient == pytest.approx(-1.5, rel=1e-5)


@pytest.mark.parametrize(("old_over_behaviour", "used"), [(0.5, 0.5), (1.5, 1.5), (9.0, 2.0)])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5])
def test_tis_is_ppo_times_a_truncated_weight(ratio, old_over_behaviour, used) -> None:
    tis = Loss(kind="tis", clip_low=0.2, clip_high=0.3, cap=2.0)
    ppo_value, ppo_gradient = value_and_gradient(ratio, 1.0, PPO)
    found = value_and_gradient(ratio, 1.0, tis, old_over_behaviour)
    assert found == pytest.approx((used * ppo_value, used * ppo_gradient), rel=1e-5)


def test_on_policy_all_losses_have_the_same_gradient() -> None:
    gradients = {kind: value_and_gradient(1.0, 0.7, Loss(kind=kind))[1] for kind in ("ppo", "cispo", "tis")}
    assert gradients == pytest.approx(dict.fromkeys(gradients, -0.7))


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative_and_zero_at_equality(logprob, reference) -> None:
    kl, none = (kl_to_reference(torch.tensor([logprob]), torch.tensor([r])).item() for r in (reference, logprob))
    assert kl >= -1e-6  # of rounding
    assert none == 0
    expected = math.exp(reference - logprob) - 1 - (reference - logprob)
    assert kl == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_k3_is_an_unbiased_estimate() -> None:
    """Its mean over tokens drawn from the policy is the KL divergence."""
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    assert (p * kl_to_reference(p.log(), q.log())).sum().item() == pytest.approx((p * (p / q).log()).sum().item())


COUNTS = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any)


def every_token(counts):
    return torch.repeat_interleave(torch.arange(4), torch.tensor(counts))


@given(COUNTS, st.sampled_from(["objective", "token"]))
def test_the_weights_of_all_tokens_sum_to_one(counts, normalise) -> None:
    weights = token_weights(every_token(counts), torch.tensor(counts), Loss(normalise=normalise))
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert (weights > 0).all()


@given(COUNTS)
def test_each_objective_gets_its_share_however_short_it_is(counts) -> None:
    loss = Loss(solve_weight=1.0, pointwise_weight=0.25, pairwise_weight=0.5, reflect_weight=2.0)
    objectives = every_token(counts)
    weights = token_weights(objectives, torch.tensor(counts), loss)
    total = sum(w for w, count in zip(objective_weights(loss), counts, strict=True) if count)
    for index, (weight, count) in enumerate(zip(objective_weights(loss), counts, strict=True)):
        assert weights[objectives == index].sum().item() == pytest.approx(weight / total if count else 0, abs=1e-5)


@given(COUNTS)
def test_token_mode_is_one_mean(counts) -> None:
    weights = token_weights(every_token(counts), torch.tensor(counts), Loss(normalise="token"))
    assert weights.tolist() == pytest.approx([1 / sum(counts)] * sum(counts))


def test_an_objective_of_weight_zero_teaches_nothing() -> None:
    weights = token_weights(every_token([2, 2, 0, 0]), torch.tensor([2, 2, 0, 0]), Loss(pointwise_weight=0.0))
    assert weights.tolist() == pytest.approx([0.5, 0.5, 0.0, 0.0])


def test_the_weights_are_in_the_order_of_the_objectives() -> None:
    loss = Loss(solve_weight=1, pointwise_weight=2, pairwise_weight=3, reflect_weight=4)
    assert dict(zip(OBJECTIVES, objective_weights(loss), strict=True)) == {
        "solve": 1,
        "pointwise": 2,
        "pairwise": 3,
        "reflect": 4,
    }
