"""Samples to microbatches, groups to updates."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages import JUDGE_OBJECTIVES, OBJECTIVES
from learner.packing import pack, tokens_by_objective
from learner.samples import split, to_samples

SHAPES = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from(OBJECTIVES), st.integers(0, 4)),
    min_size=1,
    max_size=30,
)


@pytest.fixture(scope="session")
def samples_of(make_sample):
    def build(shapes, seed=0):
        rng = np.random.default_rng(seed)
        return [make_sample(rng, prompt=p, tokens=t, objective=o, staleness=s) for p, t, o, s in shapes]

    return build


def rows_of(batches):
    """Every row as plain values: what a sample must have become."""
    for batch in batches:
        for row, token_ids in enumerate(batch.token_ids_RL):
            length, target = int(batch.attention_RL[row].sum()), batch.is_target_RL[row]
            assert batch.attention_RL[row].tolist() == [1] * length + [0] * (len(token_ids) - length)
            yield (
                tuple(token_ids[:length].tolist()),
                tuple(token_ids[target].tolist()),
                tuple(batch.behaviour_logprobs_RL[row][target].tolist()),
                float(batch.advantages_R[row]),
                OBJECTIVES[batch.objectives_R[row]],
                int(batch.staleness_R[row]),
            )


def row_of(sample):
    return (
        (*sample.prompt_token_ids.tolist(), *sample.token_ids.tolist()),
        tuple(sample.token_ids.tolist()),
        tuple(sample.behaviour_logprobs.tolist()),
        float(np.float32(sample.advantage)),
        sample.objective,
        sample.staleness,
    )


@given(shapes=SHAPES, budget=st.integers(1, 120))
def test_every_sample_is_in_one_row_with_all_that_belongs_to_it(samples_of, shapes, budget) -> None:
    samples = samples_of(shapes)
    assert Counter(rows_of(pack(samples, budget))) == Counter(map(row_of, samples))


@given(shapes=SHAPES, budget=st.integers(1, 120))
def test_the_budget_holds_unless_a_lone_sample_is_longer(samples_of, shapes, budget) -> None:
    for batch in pack(samples_of(shapes), budget):
        assert batch.token_ids_RL.size <= budget or len(batch.token_ids_RL) == 1


@given(shapes=SHAPES)
def test_behaviour_is_zero_and_nothing_is_a_target_outside_the_completion(samples_of, shapes) -> None:
    for batch in pack(samples_of(shapes), 64):
        assert not batch.is_target_RL[:, 0].any()
        assert (batch.behaviour_logprobs_RL[~batch.is_target_RL] == 0).all()
        assert not (batch.is_target_RL & (batch.attention_RL == 0)).any()


@given(shapes=SHAPES, budget=st.integers(1, 120))
def test_the_denominators_do_not_depend_on_the_packing(samples_of, shapes, budget) -> None:
    expected = Counter[str]()
    for _, tokens, objective, _ in shapes:
        expected[objective] += tokens
    counts = tokens_by_objective(pack(samples_of(shapes), budget))
    assert dict(zip(OBJECTIVES, counts.tolist(), strict=True)) == {name: expected[name] for name in OBJECTIVES}


def test_few_long_rows_do_not_pad_the_short_ones(samples_of) -> None:
    shapes = [(1, 1, "solve", 0)] * 20 + [(10, 10, "solve", 0)]
    batches = pack(samples_of(shapes), 40)
    assert sum(batch.token_ids_RL.size for batch in batches) <= 100  # 21 * 20 if all were one batch


@given(st.lists(st.sampled_from(OBJECTIVES), max_size=24), st.integers(1, 8))
def test_every_group_is_in_one_update_which_has_its_share_of_each_objective(make_group, kinds, parts) -> None:
    groups = [make_group(index, objective=objective) for index, objective in enumerate(kinds)]
    updates = split(groups, parts)
    assert Counter(g.uid for update in updates for g in update) == Counter(g.uid for g in groups)
    assert len(updates) == min(parts, len(groups))
    for objective in ("solve", *JUDGE_OBJECTIVES):
        shares = [sum(g.task.objective == objective for g in update) for update in updates]
        assert max(shares, default=0) - min(shares, default=0) <= 1


def test_samples_carry_the_staleness_of_their_group(make_group) -> None:
    samples = to_samples(make_group(rewards=(1, 0), version=3), 4, "mean", 1e-4)
    assert [sample.staleness for sample in samples] == [4, 4]
    assert [sample.prompt_token_ids.tolist() for sample in samples] == [[5, 6]] * 2
