"""The oldest token of a group decides, whichever sibling and whichever span it is in."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.messages import ChatMessage, Completion, Rollout, RolloutGroup, Sampling, SourceRef, Task, Verdict
from common.staleness import content_staleness, fresh, groups_in_flight_allowed, token_staleness

versions = st.integers(0, 50)


def group_of(spans: list[set[int]], sources: list[int]) -> RolloutGroup:
    """One sibling per set of versions its tokens were sampled by."""
    task = Task(
        uid="u",
        objective="reflect",
        messages=(ChatMessage.user("q"),),
        question="q",
        answer="a",
        verifier="exact",
        sampling=Sampling(n=len(spans), max_new_tokens=8),
        sources=tuple(
            SourceRef(
                uid="s", sample=0, answer_hash="", policy_version=version, weights_epoch=1, correct=True, verifier="v"
            )
            for version in sources
        ),
    )
    return RolloutGroup(
        task=task,
        prompt_token_ids=np.array([1], dtype=np.int32),
        rollouts=tuple(_rollout(sorted(sampled_by)) for sampled_by in spans),
        actor="a",
        weights_epoch=1,
        generated_at=0.0,
    )


def _rollout(sampled_by: list[int]) -> Rollout:
    tokens = len(sampled_by)
    completion = Completion(
        token_ids=np.arange(tokens, dtype=np.int32),
        logprobs=np.full(tokens, -1.0, dtype=np.float32),
        spans=tuple((version, token) for token, version in enumerate(sampled_by)),
        finish_reason="stop",
        text="",
    )
    return Rollout(completion=completion, verdict=Verdict(status="ok", reward=1.0, verifier="v"))


siblings = st.lists(st.sets(versions, min_size=1, max_size=4), min_size=1, max_size=4)


@given(siblings, st.lists(versions, max_size=3), versions)
def test_the_oldest_token_and_the_oldest_source_count(spans: list[set[int]], sources: list[int], now: int) -> None:
    group = group_of(spans, sources)
    assert token_staleness(group, now) == max(now - version for sampled_by in spans for version in sampled_by)
    assert content_staleness(group, now) == max((now - version for version in sources), default=0)


@given(siblings, st.lists(versions, max_size=3), versions, st.integers(0, 9), st.integers(0, 9))
def test_what_is_stale_stays_stale(
    spans: list[set[int]], sources: list[int], now: int, bound: int, content_bound: int
) -> None:
    group = group_of(spans, sources)
    if fresh(group, now + 1, bound, content_bound):
        assert fresh(group, now, bound, content_bound)
    assert fresh(group, now, bound, content_bound) <= fresh(group, now, bound + 1, content_bound + 1)


@given(st.integers(1, 99), st.integers(1, 9), st.integers(0, 20))
def test_a_batch_can_always_be_filled(size: int, updates: int, eta: int) -> None:
    """Admission must never starve the learner: at least one batch is in flight, and more staleness allows no less."""
    allowed = groups_in_flight_allowed(size, updates, eta)
    assert allowed >= size
    assert allowed % size == 0
    assert groups_in_flight_allowed(size, updates, eta + 1) >= allowed
