from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from recycler.balance import Balance, Shares


def spread(values: list[float]) -> float:
    """The largest absolute sum over any window."""
    sums = [0.0, *accumulate(values)]
    return max(sums) - min(sums)


def most_above(values: list[float]) -> float:
    """The largest sum over any window."""
    sums = [0.0, *accumulate(values)]
    return max(here - low for here, low in zip(sums, accumulate(sums, min), strict=True))


@given(share=st.floats(0, 1), seed=st.integers(0, 50), length=st.integers(1, 200))
def test_every_window_keeps_its_share_within_one(share: float, seed: int, length: int) -> None:
    balance, deviations = Balance(seed), []
    for _ in range(length):
        due = balance.due("key", share)
        balance.record("key", due, share)
        deviations.append(due - share)
    assert spread(deviations) <= 1 + 1e-9


@given(st.lists(st.booleans(), min_size=1, max_size=200), st.floats(0, 1))
def test_a_capped_share_is_never_made_up_for(available: list[bool], share: float) -> None:
    balance, deviations = Balance(0), []
    for can in available:
        positive = can and balance.due("cap", share)
        balance.record("cap", positive, share)
        deviations.append(positive - share)
    assert most_above(deviations) <= 1 + 1e-9


def test_halves_alternate_exactly_for_ever() -> None:
    balance, classes = Balance(3), []
    for _ in range(10_000):
        classes.append(balance.due("key", 0.5))
        balance.record("key", classes[-1], 0.5)
    assert all(a != b for a, b in pairwise(classes))


def test_keys_are_independent_and_seeded() -> None:
    firsts = {(seed, key): Balance(seed).due(key, 0.5) for seed in range(20) for key in "ab"}
    assert set(firsts.values()) == {True, False}
    assert Balance(1).due("a", 0.5) == Balance(1).due("a", 0.5)


def test_shares_split_room_by_weight_and_follow_the_record() -> None:
    shares = Shares({"pointwise": 0.25, "pairwise": 0.25, "reflect": 0.5, "off": 0.0})
    assert shares.names == ("pointwise", "pairwise", "reflect")
    assert shares.split(16, shares.names) == {"pointwise": 4, "pairwise": 4, "reflect": 8}
    assert shares.split(16, shares.names) == {"pointwise": 4, "pairwise": 4, "reflect": 8}  # it changed nothing
    for _ in range(4):
        shares.record("reflect", shares.names)
    assert shares.split(4, shares.names)["reflect"] == 0
    assert shares.split(5, ()) == {}


@given(rooms=st.lists(st.integers(1, 7), min_size=1, max_size=60), weights=st.tuples(*[st.floats(0.05, 1)] * 3))
def test_split_keeps_its_shares_over_any_plans(rooms: list[int], weights: tuple[float, float, float]) -> None:
    shares = Shares(dict(zip("abc", weights, strict=True)))
    taken: dict[str, int] = dict.fromkeys("abc", 0)
    for room in rooms:
        for name, count in shares.split(room, shares.names).items():
            for _ in range(count):
                shares.record(name, shares.names)
            taken[name] += count
    for name, weight in zip("abc", weights, strict=True):
        assert abs(taken[name] - sum(rooms) * weight / sum(weights)) <= 2.0


def test_a_name_without_supply_builds_up_no_claim() -> None:
    shares = Shares({"a": 0.5, "b": 0.5})
    for _ in range(1000):
        shares.record("a", ("a",))
    assert shares.split(10, shares.names) == {"a": 5, "b": 5}
