"""What goes into a batch: quotas, and the deficit round-robin over judge objectives."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages import JUDGE_OBJECTIVES
from common.settings import Learner
from learner.accounts import Account
from learner.quota import DeficitRoundRobin, Quota, oldest_first, quota_of

SHARES = {"pointwise": 0.25, "pairwise": 0.25, "reflect": 0.5}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"judge_share": 0.5}, [(8, 8)] * 4),
        ({"judge_share": 0.0}, [(8, 0)] * 4),
        ({"judge_share": 0.2}, [(8, 2)] * 4),
        ({"judge_share": 0.5, "mixing": "alternate"}, [(8, 0), (0, 8)] * 2),
        ({"judge_share": 0.0, "mixing": "alternate"}, [(8, 0)] * 4),
    ],
)
def test_quotas(fields, expected) -> None:
    learner = Learner(groups_per_step=8, **fields)
    assert [quota_of(learner, turn) for turn in range(4)] == [
        Quota(policy=policy, judge=judge) for policy, judge in expected
    ]


def of(groups) -> Counter[str]:
    return Counter(group.task.objective for group in groups)


def plenty(make_group, each=16, start=0):
    return [make_group(start + index, objective=objective) for objective in JUDGE_OBJECTIVES for index in range(each)]


@given(st.integers(1, 12), st.lists(st.floats(0.05, 1), min_size=3, max_size=3))
def test_over_time_every_objective_gets_its_share(make_group, size, weights) -> None:
    shares = dict(zip(JUDGE_OBJECTIVES, weights, strict=True))
    robin, total = DeficitRoundRobin(shares), Counter[str]()
    ready = plenty(make_group)
    for _ in range(10):
        total += of(robin.choose(ready, size))
    for objective, weight in shares.items():
        assert abs(total[objective] - 10 * size * weight / sum(weights)) <= 2


@given(st.lists(st.sampled_from(JUDGE_OBJECTIVES), max_size=20), st.integers(0, 12))
def test_it_never_blocks_and_never_takes_too_many_or_one_twice(make_group, kinds, size) -> None:
    ready = [make_group(index, objective=objective) for index, objective in enumerate(kinds)]
    chosen = DeficitRoundRobin(SHARES).choose(ready, size)
    assert len(chosen) == min(size, len(ready))
    assert len({group.uid for group in chosen}) == len(chosen)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 12), st.randoms(use_true_random=False))
def test_oldest_first_whatever_the_order_of_arrival(make_group, versions, size, random) -> None:
    groups = [make_group(index, objective="reflect", version=version) for index, version in enumerate(versions)]
    expected = sorted(groups, key=oldest_first)[:size]
    random.shuffle(groups)
    assert [g.uid for g in DeficitRoundRobin(SHARES).choose(groups, size)] == [g.uid for g in expected]


def test_a_shortage_is_made_up_for(make_group) -> None:
    robin = DeficitRoundRobin(SHARES)
    first = [make_group(index, objective="reflect") for index in range(8)]
    first += [make_group(index, objective="pairwise") for index in range(8)]
    assert of(robin.choose(first, 8))["pointwise"] == 0
    assert of(robin.choose(plenty(make_group), 8))["pointwise"] > 2  # its share alone would be 2


def test_an_objective_that_was_away_for_long_does_not_flood(make_group) -> None:
    robin = DeficitRoundRobin({"pointwise": 0.5, "pairwise": 0.5, "reflect": 0.0})
    numbers = count()
    for _ in range(50):
        robin.choose([make_group(next(numbers), objective="pairwise") for _ in range(8)], 8)
    both = plenty(make_group, each=32)
    batches = [of(robin.choose(both, 8)) for _ in range(3)]
    assert sum(batch["pointwise"] for batch in batches) <= 16  # at most one batch beyond its share
    assert batches[-1] == Counter(pointwise=4, pairwise=4)


@pytest.mark.parametrize("policy_batch_between", [False, True])
def test_a_policy_batch_between_two_judge_batches_forgets_nothing(make_group, policy_batch_between) -> None:
    """Alternating mixing asks for no judge group every second time. A shortage of four is still owed then."""
    robin = DeficitRoundRobin({"pointwise": 0.5, "pairwise": 0.5, "reflect": 0.0})
    robin.choose([make_group(index, objective="pairwise") for index in range(8)], 8)
    if policy_batch_between:
        assert robin.choose(plenty(make_group), 0) == []
    assert of(robin.choose(plenty(make_group), 8)) == Counter(pointwise=8)


def test_what_is_on_its_last_chance_goes_first_whatever_its_objective(make_group) -> None:
    robin, ready = DeficitRoundRobin(SHARES), plenty(make_group)
    last = [make_group(100 + index, objective="pairwise", version=9) for index in range(3)]
    chosen = robin.choose([*ready, *last], 4, lambda group: group.oldest_version == 9)
    assert {group.uid for group in last} < {group.uid for group in chosen}
    assert of(robin.choose(ready, 4))["pairwise"] == 0  # it has had its share


def test_an_objective_without_a_share_is_the_last_choice_but_is_not_left(make_group) -> None:
    robin = DeficitRoundRobin({"pointwise": 1.0, "pairwise": 0.0, "reflect": 0.0})
    ready = [make_group(0, objective="pairwise"), make_group(0, objective="pointwise")]
    assert [group.task.objective for group in robin.choose(ready, 2)] == ["pointwise", "pairwise"]


def test_shares_of_zero_still_choose(make_group) -> None:
    robin = DeficitRoundRobin(dict.fromkeys(JUDGE_OBJECTIVES, 0.0))
    assert len(robin.choose(plenty(make_group, each=2), 4)) == 4


# -- accounts: the arithmetic of the admission gate -------------------------------------------------------


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(0, 10))
def test_a_uid_that_ends_twice_is_one_ending(uids: list[int], settled: int) -> None:
    """The server counts what is settled; of what is not, a twin is no second ending."""
    account = Account()
    for uid in uids:
        account.end(str(uid), filtered=uid % 2 == 0)
    assert account.ended(settled) == settled + len(set(uids))


def test_the_refill_has_an_end_and_the_cut_a_new_beginning() -> None:
    """Batches of 4, refill 2: eight groups are looked at; the room of the first four filtered comes back."""
    account, withheld, spent = Account(), [], []
    for uid in range(8):
        account.arrived()
        account.end(str(uid), filtered=True)
        withheld.append(account.withheld(4, 2.0))
        spent.append(account.refill_spent(4, 2.0))
    assert withheld == [0, 0, 0, 0, 1, 2, 3, 4]
    assert spent == [False] * 7 + [True]
    account.cut()
    assert (account.withheld(4, 2.0), account.refill_spent(4, 2.0), account.ended(0)) == (0, False, 8)


def test_without_refill_no_filtered_group_is_replaced() -> None:
    account = Account()
    account.end("a", filtered=True)
    account.end("b")
    assert account.withheld(4, 1.0) == 1
