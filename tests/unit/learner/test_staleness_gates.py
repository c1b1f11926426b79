"""The pure rules behind the three gates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.staleness import content_staleness, fresh, groups_in_flight_allowed, may_generate, token_staleness

SIZES = st.integers(1, 40)


@given(SIZES, st.integers(1, 8), st.integers(0, 12), st.integers(0, 30))
def test_admission_is_areals_rule(size, updates, eta, batches) -> None:
    """Admit while floor((issued - 1) / B) batches, of u updates each, are at most version + eta."""
    version, trained = batches * updates, batches * size
    issued = trained
    while (issued // size) * updates <= version + eta:  # may one more be issued?
        issued += 1
    assert issued - trained == groups_in_flight_allowed(size, updates, eta)


@given(SIZES, st.integers(1, 8), st.integers(0, 12))
def test_an_admitted_group_is_fresh_when_its_turn_comes(size, updates, eta) -> None:
    """Groups trained in the order of issue: the last one waits (in flight - 1) // B batches."""
    batches_before_it = (groups_in_flight_allowed(size, updates, eta) - 1) // size
    assert batches_before_it * updates <= eta


def test_synchronous_is_one_batch_in_flight() -> None:
    assert groups_in_flight_allowed(64, 8, 0) == 64


@pytest.mark.parametrize(("applied", "published", "allowed"), [(5, 5, True), (3, 5, True), (2, 5, False), (9, 5, True)])
def test_an_actor_too_far_behind_waits(applied, published, allowed) -> None:
    assert may_generate(applied, published, 2) is allowed


@pytest.mark.parametrize(
    ("version", "content", "expected"), [(5, 5, True), (3, 2, True), (2, 2, False), (3, 1, False), (5, 0, False)]
)
def test_a_group_is_fresh_within_both_bounds(make_group, version, content, expected) -> None:
    """Learner at 5; tokens at most 2 behind, the judged answer at most 3."""
    group = make_group(objective="reflect", version=version, content_version=content)
    assert fresh(group, 5, max_staleness=2, max_content_staleness=3) is expected
    assert (token_staleness(group, 5), content_staleness(group, 5)) == (5 - version, 5 - content)


def test_a_dataset_prompt_has_no_content_to_age(make_group) -> None:
    group = make_group(version=5)
    assert content_staleness(group, 1000) == 0
    assert fresh(group, 5, 0, 0)
