"""Samples to microbatches, groups to updates."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages import JUDGE_OBJECTIVES, OBJECTIVES
from learner.packing import Microbatch, empty_microbatch, pack, rows_for_padding, tokens_by_objective
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
    """Every segment as plain values: what a sample must have become."""
    for batch in batches:
        assert batch.starts_S1[0] == 0
        assert batch.starts_S1[-1] == len(batch.token_ids_T)
        for segment, start in enumerate(batch.starts_S1[:-1]):
            inside = slice(start, batch.starts_S1[segment + 1])
            target = batch.is_target_T[inside]
            yield (
                tuple(batch.token_ids_T[inside].tolist()),
                tuple(batch.token_ids_T[inside][target].tolist()),
                tuple(batch.behaviour_logprobs_T[inside][target].tolist()),
                float(batch.advantages_S[segment]),
                OBJECTIVES[batch.objectives_S[segment]],
                int(batch.staleness_S[segment]),
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
def test_every_sample_is_in_one_segment_with_all_that_belongs_to_it(samples_of, shapes, budget) -> None:
    samples = samples_of(shapes)
    packed = pack(samples, budget)
    assert Counter(rows_of(packed)) == Counter(map(row_of, samples))
    assert Counter(rows_of(rows_for_padding(packed, budget))) == Counter(map(row_of, samples))


@given(shapes=SHAPES, budget=st.integers(1, 120))
def test_the_budget_holds_unless_a_lone_sample_is_longer(samples_of, shapes, budget) -> None:
    packed = pack(samples_of(shapes), budget)
    for batch in packed:
        assert len(batch.token_ids_T) <= budget or len(batch.lengths_S) == 1
    for batch in rows_for_padding(packed, budget):
        assert batch.lengths_S.max() * len(batch.lengths_S) <= budget or len(batch.lengths_S) == 1


@given(shapes=SHAPES, budget=st.integers(1, 120))
def test_no_two_microbatches_would_fit_into_one(samples_of, shapes, budget) -> None:
    """First fit leaves no room that a later sample could have used."""
    sizes = sorted(len(batch.token_ids_T) for batch in pack(samples_of(shapes), budget))
    assert len(sizes) < 2 or sizes[0] + sizes[1] > budget


@given(shapes=SHAPES)
def test_behaviour_is_zero_and_nothing_is_a_target_outside_the_completion(samples_of, shapes) -> None:
    for batch in pack(samples_of(shapes), 64):
        assert not batch.is_target_T[batch.starts_S1[:-1]].any()
        assert (batch.behaviour_logprobs_T[~batch.is_target_T] == 0).all()


def test_a_completion_without_a_prompt_has_no_prediction_of_its_first_token(make_sample) -> None:
    sample = make_sample(np.random.default_rng(0), prompt=0, tokens=3)
    [batch] = pack([sample, sample], 100)
    assert batch.is_target_T.tolist() == [False, True, True] * 2
    assert batch.behaviour_logprobs_T[1:3].tolist() == sample.behaviour_logprobs[1:].tolist()


@given(shapes=SHAPES)
def test_a_microbatch_is_its_arrays(samples_of, shapes) -> None:
    """As ranks send it: bytes, dtype and shape of each array."""
    for batch in pack(samples_of(shapes), 64):
        sent = {name: (array.tobytes(), array.dtype.str, array.shape) for name, array in batch.arrays().items()}
        read = {name: np.frombuffer(raw, dtype).reshape(shape) for name, (raw, dtype, shape) in sent.items()}
        assert list(rows_of([Microbatch.from_arrays(read)])) == list(rows_of([batch]))


def test_each_completion_token_knows_its_segment(samples_of) -> None:
    [batch] = pack(samples_of([(2, 3, "solve", 0), (1, 1, "reflect", 2), (4, 2, "pairwise", 1)]), 100)
    assert batch.lengths_S.tolist() == [6, 5, 2]
    assert batch.targets_N.tolist() == [4, 5, 8, 9, 10, 12]
    assert batch.segment_of_N.tolist() == [0, 0, 1, 1, 1, 2]


def test_an_empty_microbatch_counts_nothing() -> None:
    assert tokens_by_objective([empty_microbatch()]).tolist() == [0, 0, 0, 0]
    assert len(empty_microbatch().targets_N) == 0


@given(shapes=SHAPES, budget=st.integers(1, 120))
def test_the_denominators_do_not_depend_on_the_packing(samples_of, shapes, budget) -> None:
    expected = Counter[str]()
    for _, tokens, objective, _ in shapes:
        expected[objective] += tokens
    counts = tokens_by_objective(pack(samples_of(shapes), budget))
    assert dict(zip(OBJECTIVES, counts.tolist(), strict=True)) == {name: expected[name] for name in OBJECTIVES}


def test_few_long_rows_do_not_pad_the_short_ones(samples_of) -> None:
    shapes = [(1, 1, "solve", 0)] * 20 + [(10, 10, "solve", 0)]
    batches = rows_for_padding(pack(samples_of(shapes), 40), 40)
    assert sum(batch.lengths_S.max() * len(batch.lengths_S) for batch in batches) <= 100  # 21 * 20 if all were one


def test_short_samples_fill_the_room_beside_long_ones(samples_of) -> None:
    shapes = [(10, 50, "solve", 0)] * 4 + [(10, 30, "solve", 0)] * 4
    assert [len(batch.token_ids_T) for batch in pack(samples_of(shapes), 100)] == [100] * 4


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
