"""Intervals, the majority vote, and the table: everything that needs no model."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from cli.evaluation import Evaluation, table
from cli.evaluation.figures import Figure, clustered_share, mean_of, paired_difference, share_of, wilson
from cli.evaluation.judging import pairwise_figures
from cli.evaluation.majority import majority_outcome, votes_for
from common.errors import SparkError
from common.messages import Verdict

OUTCOMES = st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=60)


# intervals


def test_wilson_agrees_with_published_values() -> None:
    # Newcombe (1998), table I: 81/263, 15/148, 0/20, 1/29
    for right, n, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)]:
        assert wilson(right / n, n) == pytest.approx((low, high), abs=1e-4)
    assert wilson(1 / 29, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)


def test_a_share_has_wilsons_interval() -> None:
    share = share_of([True] * 81 + [False] * 182, "x")
    assert (share.value, share.n) == (81 / 263, 263)
    assert (share.low, share.high) == pytest.approx(wilson(81 / 263, 263), rel=1e-6)


@given(outcomes=OUTCOMES.filter(lambda outcomes: any(o is not None for o in outcomes)))
def test_a_share_ignores_failed_verifiers_and_lies_in_its_interval(outcomes: list[bool | None]) -> None:
    share = share_of(outcomes, "x")
    scored = [outcome for outcome in outcomes if outcome is not None]
    assert share.n == len(scored)
    assert share.value == sum(scored) / len(scored)
    assert 0 <= share.low <= share.value <= share.high <= 1
    assert share.half_width > 0


def test_without_a_scored_draw_there_is_no_figure() -> None:
    with pytest.raises(SparkError, match="tpr: not one draw"):
        share_of([None, None], "tpr")
    with pytest.raises(SparkError, match="gain: not one prompt"):
        paired_difference([None, True], [True, None], "gain")


def test_draws_of_one_cluster_count_by_how_much_they_differ() -> None:
    rng = random.Random(0)
    prompts = [rng.random() < 0.5 for _ in range(200)]
    copies = clustered_share([[right] * 4 for right in prompts], "x")
    alone = share_of(prompts, "x")
    assert (copies.low, copies.high) == pytest.approx((alone.low, alone.high), rel=1e-6)
    assert copies.n == 800
    independent = clustered_share([[rng.random() < 0.5 for _ in range(4)] for _ in range(200)], "x")
    assert independent.half_width == pytest.approx(alone.half_width / 2, rel=0.1)


def test_wilson_covers_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(1)
    hits = 0
    for _ in range(1000):
        share = share_of([rng.random() < 0.1 for _ in range(60)], "x")
        hits += share.low <= 0.1 <= share.high
    assert 0.93 <= hits / 1000 <= 0.98


def test_balanced_accuracy_combines_both_variances() -> None:
    tpr, tnr = share_of([True] * 300 + [False] * 700, "tpr"), share_of([True] * 800 + [False] * 200, "tnr")
    balanced = mean_of(tpr, tnr)
    assert balanced.value == pytest.approx(0.55)
    assert balanced.n == 2000
    deviation = 0.5 * (0.3 * 0.7 / 1000 + 0.8 * 0.2 / 1000) ** 0.5
    assert balanced.half_width == pytest.approx(1.96 * deviation, rel=0.01)


def test_paired_difference_uses_the_pairs() -> None:
    before = [True] * 50 + [False] * 50
    after = [True] * 45 + [False] * 5 + [True] * 10 + [False] * 40
    paired = paired_difference(after, before, "x")
    assert paired.value == pytest.approx(0.05)
    assert paired.n == 100
    assert paired.half_width == pytest.approx(1.96 * (15 / 100**2) ** 0.5, rel=0.05)
    unpaired = share_of(after, "x").half_width + share_of(before, "x").half_width
    assert paired.half_width < unpaired / 2


@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_paired_difference_is_antisymmetric_and_in_its_interval(pairs: list[tuple[bool, bool]]) -> None:
    after, before = zip(*pairs, strict=True)
    forth, back = paired_difference(after, before, "x"), paired_difference(before, after, "x")
    assert forth.value == pytest.approx(sum(after) / len(after) - sum(before) / len(before))
    assert (back.value, back.low, back.high) == pytest.approx((-forth.value, -forth.high, -forth.low))
    assert forth.low <= forth.value <= forth.high
    assert forth.half_width > 0


# pairwise verdicts: (names the right answer, can be read), first with the right answer shown first

RIGHT, WRONG, UNREAD, FAILED = (True, True), (False, True), (False, False), (None, False)


def test_an_order_blind_judge_is_consistent_whether_right_or_wrong() -> None:
    figures = pairwise_figures([(RIGHT, RIGHT)] * 3 + [(WRONG, WRONG)])
    assert figures["pairwise"].value == 0.75
    assert figures["swap_consistency"].value == 1.0
    assert figures["position_bias"].value == 0.0


def test_a_judge_that_always_names_the_first_is_at_chance() -> None:
    figures = pairwise_figures([(RIGHT, WRONG)] * 10)
    assert figures["pairwise"].value == 0.5
    assert figures["swap_consistency"].value == 0.0
    assert figures["position_bias"].value == 0.5
    assert figures["pairwise"].n == 20
    assert figures["position_bias"].high == 0.5


def test_an_unreadable_verdict_is_wrong_and_not_consistent() -> None:
    figures = pairwise_figures([(UNREAD, UNREAD), (RIGHT, UNREAD), (RIGHT, RIGHT), (FAILED, RIGHT)])
    assert figures["pairwise"].value == pytest.approx(4 / 7)
    assert figures["swap_consistency"].value == pytest.approx(1 / 3)
    assert figures["pairwise_unparsed"].value == pytest.approx(3 / 7)
    assert figures["position_bias"].n == 4
    assert "position_bias" not in pairwise_figures([(UNREAD, UNREAD)])


# majority


def verdict(answer: str | None, right: bool = False, status: str = "ok") -> Verdict:
    if answer is None:
        return Verdict(status="no_answer" if status == "ok" else status, reward=0.0, verifier="v@1")  # type: ignore[arg-type]
    return Verdict(status="ok", reward=float(right), verifier="v@1", answer=answer, canonical=answer.strip())


def test_majority_counts_equivalent_answers_together() -> None:
    assert majority_outcome([verdict("7"), verdict("8", True), verdict(" 8", True), verdict("9")]) is True
    assert majority_outcome([verdict("7"), verdict("8", True), verdict(" 7")]) is False


def test_majority_without_answers_or_with_a_failed_verifier() -> None:
    assert majority_outcome([verdict(None), verdict(None), verdict("8", True)]) is True
    assert majority_outcome([verdict(None)]) is False
    assert majority_outcome([]) is False
    assert majority_outcome([verdict("8", True), verdict(None, status="timeout")]) is None


@given(answers=st.lists(st.sampled_from("123"), min_size=1, max_size=9))
def test_a_tie_goes_to_the_answer_given_first(answers: list[str]) -> None:
    most = max(map(answers.count, answers))
    winner = next(answer for answer in answers if answers.count(answer) == most)
    for right in "123":
        verdicts = [verdict(answer, answer == right) for answer in answers]
        assert majority_outcome(verdicts) is (winner == right)


def test_votes_cost_as_near_as_possible() -> None:
    assert [votes_for(tokens, 10) for tokens in (1, 14, 16, 34, 36)] == [1, 1, 2, 3, 4]


# result and table


def evaluation(**values: float) -> Evaluation:
    shares = {"policy": 0.5, "pointwise": 0.6, "position_bias": -0.031, "tts_r0": 0.5, "tts_r10": 0.8, "tts_r2": 0.7}
    figures = {
        name: Figure(value=value, n=100, low=value - 0.02, high=value + 0.04)
        for name, value in (shares | values).items()
    }
    return Evaluation(
        model="m",
        seed=3,
        temperature=1.0,
        pool="aa",
        figures=figures,
        counts={"draws": 100, "majority_equal_votes": 3.0, "tokens": 5},
    )


def rendered(built: Table) -> str:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(built)
    return " ".join(console.export_text().split())


def test_summary_holds_figures_and_counts() -> None:
    measured = evaluation()
    assert measured.summary()["policy"] == 0.5
    assert measured.summary()["tokens"] == 5
    assert measured.intervals()["policy"] == pytest.approx((0.48, 0.54))
    assert [figure.value for figure in measured.rounds] == [0.5, 0.7, 0.8]
    assert Evaluation.from_json(measured.to_json()) == measured


def test_table_of_before_and_after_shows_percentages() -> None:
    text = rendered(table(evaluation(majority_equal=0.9), evaluation(policy=0.75)))
    assert "before" in text
    assert "after" in text
    assert "policy accuracy, sampled │ 50.0 ± 3.0 │ 75.0 ± 3.0 │" in text
    assert "-3.1 ± 3.0" in text
    assert "90.0 ± 3.0 (3 votes)" in text
    assert "seed 3" in text
    assert "do not compare" not in text


def test_table_takes_one_or_many_arms_and_warns_of_different_pools() -> None:
    alone = rendered(table(None, evaluation()))
    assert "before" not in alone
    assert "after" in alone
    arms = [("grpo", evaluation()), ("grpo 2x", evaluation()), ("spark", replace(evaluation(), pool="bb", seed=4))]
    text = rendered(table(arms))
    assert all(name in text for name, _ in arms)
    assert "do not compare" in text
    assert "seeds 3, 3, 4" in text
    with pytest.raises(ValueError, match="at least one"):
        table([])
