"""The judge's figures for judges whose quality is known by construction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.calibration import Votes, agreement, auroc, calibration


def votes(positive: bool, yes: str) -> Votes:
    """``yes``: one letter a verdict."""
    return Votes(positive=positive, yes=tuple(letter == "y" for letter in yes))


def asked(positive: np.ndarray, chance_of_yes: np.ndarray, n: int, rng: np.random.Generator) -> list[Votes]:
    """A judge that says yes with a known chance, asked ``n`` times about each answer."""
    drawn = rng.random((len(positive), n)) < chance_of_yes[:, None]
    return [Votes(positive=bool(p), yes=tuple(map(bool, row))) for p, row in zip(positive, drawn, strict=True)]


def calibrated(tasks: int, n: int, seed: int = 0) -> list[Votes]:
    """Of the answers about which it says yes with chance p, a share p is right."""
    rng = np.random.default_rng(seed)
    chance = rng.random(tasks)
    return asked(rng.random(tasks) < chance, chance, n, rng)


def blind(tasks: int, n: int, chance: float = 0.5, seed: int = 0) -> list[Votes]:
    """Says yes with the same chance whatever it is shown."""
    rng = np.random.default_rng(seed)
    return asked(rng.random(tasks) < 0.5, np.full(tasks, chance), n, rng)


def test_auroc_by_hand() -> None:
    assert auroc([votes(True, "yyyn"), votes(True, "yynn"), votes(False, "yynn"), votes(False, "nnnn")]) == 3.5 / 4
    assert auroc([votes(True, "nn"), votes(False, "yy")]) == 0.0


def test_auroc_needs_both_classes_with_a_readable_verdict() -> None:
    assert auroc([votes(True, "yy")]) is None
    assert auroc([votes(True, "yy"), votes(False, "")]) is None


@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.booleans(), min_size=1, max_size=5)), min_size=2, max_size=20),
)
def test_auroc_is_the_share_of_pairs_in_the_right_order(drawn: list[tuple[bool, list[bool]]]) -> None:
    tasks = [Votes(positive=positive, yes=tuple(yes)) for positive, yes in drawn]
    pairs = [(a.share, b.share) for a in tasks for b in tasks if a.positive and not b.positive]
    if pairs:
        assert auroc(tasks) == pytest.approx(sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs))
    else:
        assert auroc(tasks) is None


def test_planted_judges() -> None:
    """Perfect: no error, ranks all. Always yes: certain, ranks nothing, off by the share of wrong answers."""
    perfect = [votes(i % 2 == 0, "yyyy" if i % 2 == 0 else "nnnn") for i in range(40)]
    found = calibration(perfect)
    assert found is not None
    assert (auroc(perfect), found.error, found.floor, agreement(perfect)) == (1.0, 0.0, 0.0, 1.0)

    always = [votes(i % 4 == 0, "yyyy") for i in range(40)]
    found = calibration(always)
    assert found is not None
    assert (auroc(always), found.error, agreement(always)) == (0.5, 0.75, 1.0)

    inverted = [votes(i % 2 == 0, "nnnn" if i % 2 == 0 else "yyyy") for i in range(40)]
    found = calibration(inverted)
    assert found is not None
    assert (auroc(inverted), found.error) == (0.0, 1.0)


def test_a_coin_is_calibrated_for_balanced_classes_and_knows_nothing() -> None:
    tasks = blind(4000, 8)
    found = calibration(tasks)
    assert found is not None
    assert auroc(tasks) == pytest.approx(0.5, abs=0.02)
    assert agreement(tasks) == pytest.approx(0.5, abs=0.01)
    assert found.error < 0.03


def test_a_calibrated_judge_tends_to_no_error_even_with_few_votes() -> None:
    """Shares of n votes, binned and measured by the same votes, would show about 0.1 here: they scatter around P."""
    for n in (2, 4, 8):
        found = calibration(calibrated(20_000, n))
        assert found is not None
        assert found.error < 0.012
    tasks = calibrated(20_000, 4)
    naive = sum(
        abs(sum(t.share - t.positive for t in same)) / len(tasks)
        for k in range(5)
        if (same := [t for t in tasks if sum(t.yes) == k])
    )
    assert naive > 0.08


def test_the_floor_is_what_chance_alone_shows() -> None:
    """Over many windows of a calibrated judge, the mean error is the mean floor."""
    found = [calibration(calibrated(256, 8, seed)) for seed in range(60)]
    error, floor = np.mean([c.error for c in found if c]), np.mean([c.floor for c in found if c])
    assert error == pytest.approx(floor, rel=0.1)
    assert 0.04 < floor < 0.06  # what docs/metrics.md says of a window of 256 tasks


def test_a_judge_that_is_too_sure_is_off_by_as_much() -> None:
    """Says yes always or never, and is right in 80 % of both."""
    rng = np.random.default_rng(1)
    chance = (rng.random(10_000) < 0.5).astype(float)
    positive = rng.random(10_000) < np.where(chance == 1, 0.8, 0.2)
    found = calibration(asked(positive, chance, 8, rng))
    assert found is not None
    assert found.error == pytest.approx(0.2, abs=0.01)


def test_agreement_is_unbiased_at_any_number_of_votes() -> None:
    for n in (2, 3, 16):
        assert agreement(blind(20_000, n, chance=0.9)) == pytest.approx(0.82, abs=0.01)


def test_tasks_with_less_than_two_readable_verdicts_say_nothing_of_calibration() -> None:
    lone = [votes(True, "y"), votes(False, "")]
    assert calibration(lone) is None
    assert agreement(lone) is None
    sure = [votes(True, "yy"), votes(False, "nn")]
    assert calibration([*lone, *sure]) == calibration(sure)
