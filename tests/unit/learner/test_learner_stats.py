"""What a step reports of its tokens, and what the groups between two steps say."""

from __future__ import annotations

import math

import pytest
import torch

from learner.group_stats import GroupStats
from learner.token_stats import TokenColumns, TokenStats


def columns(ratios, *, entropy=None, kl_reference=None, objectives=None, staleness=None) -> TokenColumns:
    n = len(ratios)
    behaviour = torch.full((n,), -1.0)
    return TokenColumns(
        logprobs=behaviour + torch.tensor(ratios).log(),
        behaviour=behaviour,
        entropy=torch.arange(n).float() if entropy is None else torch.tensor(entropy),
        kl_reference=torch.full((n,), torch.nan) if kl_reference is None else torch.tensor(kl_reference),
        objectives=torch.tensor(objectives or [0] * n),
        staleness=torch.tensor(staleness or [0] * n),
        losses=torch.zeros(n),
        samples=torch.zeros(n, dtype=torch.int64),
    )


def summary(ratios, *, clip=0.2, **others):
    stats = TokenStats()
    stats.add(columns(ratios, **others))
    return stats.summary(clip)


def test_on_policy_tokens() -> None:
    found = summary([1.0, 1.0, 1.0])
    assert (found["kl"], found["clipped"], found["ess"], found["ratio_max"]) == pytest.approx((0, 0, 1, 1))
    assert (found["tokens"], found["entropy"]) == (3, 1)


def test_ratios_by_hand() -> None:
    found = summary([2.0, 0.5, 1.1, 1.0])
    assert found["ess"] == pytest.approx(4.6**2 / (4 * (4 + 0.25 + 1.21 + 1)))
    logs = [math.log(r) for r in (2.0, 0.5, 1.1, 1.0)]
    assert found["kl"] == pytest.approx(sum(r - 1 - x for r, x in zip((2.0, 0.5, 1.1, 1.0), logs, strict=True)) / 4)
    assert found["clipped"] == 0.5
    assert found["ratio_max"] == pytest.approx(2.0)


def test_the_divergence_from_a_reference_is_told_where_there_is_one() -> None:
    assert not [name for name in summary([1.0, 1.0]) if name.startswith("kl_reference")]
    found = summary([1.0, 1.0, 1.0], kl_reference=[0.25, 0.5, 0.75], objectives=[0, 0, 3])
    assert (found["kl_reference"], found["kl_reference/solve"], found["kl_reference/reflect"]) == (0.5, 0.375, 0.75)


def test_one_token_that_weighs_all_is_one_effective_sample() -> None:
    assert summary([1e4, 1e-4, 1e-4, 1e-4])["ess"] == pytest.approx(0.25, rel=1e-3)


def test_objectives_and_staleness_are_told_apart() -> None:
    found = summary([1.0, 1.0, 2.0, 2.0], objectives=[0, 3, 3, 3], staleness=[0, 0, 0, 2])
    assert found["ratio_max/solve"] == 1
    assert found["ratio_max/reflect"] == pytest.approx(2)
    assert "ratio_max/pairwise" not in found
    assert (found["tokens/staleness_0"], found["tokens/staleness_2"]) == (3, 1)
    assert (found["entropy/solve"], found["entropy/reflect"]) == (0, 2)
    assert found["kl/staleness_2"] == pytest.approx(1 - math.log(2))


def test_microbatches_are_one_step() -> None:
    stats = TokenStats()
    for ratio in ([1.0], [], [3.0]):
        stats.add(columns(ratio))
    assert stats.summary(0.2)["ess"] == pytest.approx(16 / (2 * 10))
    assert TokenStats().summary(0.2) == {}
    empty = TokenStats()
    empty.add(columns([]))
    assert empty.summary(0.2) == {}


def test_tokens_without_an_entropy_are_left_out_of_it() -> None:
    nan = float("nan")
    found = summary([1.0] * 4, entropy=[1.0, nan, 3.0, nan], objectives=[0, 0, 0, 3])
    assert (found["entropy"], found["entropy/solve"], found["tokens"]) == (2.0, 2.0, 4.0)
    assert "entropy/reflect" not in found
    assert found["kl/reflect"] == 0


def test_columns_travel_as_arrays() -> None:
    sent = columns([1.0, 2.0], objectives=[0, 3], staleness=[1, 2])
    read = TokenColumns.from_arrays(sent.arrays())
    for name in sent.arrays():
        torch.testing.assert_close(getattr(read, name), getattr(sent, name), rtol=0, atol=0, equal_nan=True)


def test_rates_of_the_judge(make_group) -> None:
    """TPR: accepted among right answers. TNR: refused among wrong ones. A judge that always accepts has TNR 0."""
    stats = GroupStats()
    stats.arrived(make_group(0, (1, 1, 1, 0), objective="pointwise", positive=True))
    stats.arrived(make_group(1, (0, 0), objective="pointwise", positive=False))
    stats.arrived(make_group(2, (1, 0), objective="pairwise", positive=True))
    found = stats.take()
    assert (found["judge/tpr"], found["judge/tnr"]) == (0.75, 0.0)
    assert (found["positive/pointwise"], found["positive/pairwise"]) == (0.5, 1.0)
    assert found["reward/pointwise"] == 0.5


def test_reflection_tells_what_it_fixed_from_what_it_kept(make_group) -> None:
    stats = GroupStats()
    stats.arrived(make_group(0, (1, 0), objective="reflect", positive=False))
    stats.arrived(make_group(1, (1, 1, 1, 0), objective="reflect", positive=True))
    found = stats.take()
    assert (found["reflect/fixed"], found["reflect/kept"]) == (0.5, 0.75)


def test_errors_are_counted_and_are_no_rewards(make_group) -> None:
    stats = GroupStats()
    stats.arrived(make_group(0, (1.0, None, None)))
    found = stats.take()
    assert (found["reward/solve"], found["verifier_errors"], found["samples"]) == (1.0, 2, 3)


def test_staleness_and_endings_since_the_last_report(make_group) -> None:
    stats = GroupStats()
    stats.trained(make_group(0, version=3), 1, 0)
    stats.trained(make_group(1, version=1), 3, 0)
    stats.trained(make_group(2, objective="reflect", version=4, content_version=0), 0, 4)
    stats.ended("filtered", "policy")
    found = stats.take()
    assert found["staleness"] == pytest.approx(4 / 3)
    assert (found["staleness_max"], found["content_staleness"], found["content_staleness_max"]) == (3, 4, 4)
    assert found["filtered/policy"] == 1
    assert stats.take() == {}
