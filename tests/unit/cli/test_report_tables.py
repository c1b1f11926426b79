"""The rows of the tables: changes, clear or not; a ledger that balances or not."""

from __future__ import annotations

from typing import Any

import pytest

from cli.evaluation.figures import Figure
from cli.evaluation.result import Evaluation
from cli.report.history import History
from cli.report.material import Material, Summary
from cli.report.tables import balances, endings_so_far, figure_rows, ledger_rows, other_figures

BALANCED = {"issued": 10, "trained": 4, "filtered": 3, "dropped_stale": 1, "dead": 0, "in_flight": 2}


def material(**summary: Any) -> Material:
    return Material(name="r", summary=Summary.model_validate(summary))


def measured(key: str, before: float, after: float, half: float = 0.02) -> Material:
    intervals = {"before": {key: (before - half, before + half)}, "after": {key: (after - half, after + half)}}
    return material(before={key: before}, after={key: after}, intervals=intervals)


@pytest.mark.parametrize(
    ("key", "before", "after", "verdict"),
    [
        ("policy", 0.4, 0.6, "better"),
        ("policy", 0.6, 0.4, "worse"),
        ("policy", 0.50, 0.53, "unclear"),
        ("break", 0.3, 0.1, "better"),
        ("break", 0.1, 0.3, "worse"),
    ],
)
def test_a_change_is_clear_when_the_intervals_do_not_overlap(
    key: str, before: float, after: float, verdict: str
) -> None:
    (row,) = figure_rows(measured(key, before, after))
    assert row.verdict == verdict
    assert row.change == pytest.approx(after - before)


def test_without_intervals_nothing_is_clear() -> None:
    (row,) = figure_rows(material(before={"tts": 0.1}, after={"tts": 0.9}))
    assert row.verdict == "unclear"


def test_one_arm_alone_has_no_change() -> None:
    (row,) = figure_rows(material(before={"fix": 0.2}))
    assert row.change is None
    assert row.verdict == "unclear"


def test_figures_come_in_their_order_and_the_rest_is_listed_apart() -> None:
    found = material(before={"tts": 0.2, "policy": 0.1, "draws": 2048}, after={"policy": 0.3, "greedy": 0.5})
    assert [row.key for row in figure_rows(found)] == ["policy", "tts"]
    assert other_figures(found) == [("draws", "2048", "–"), ("greedy", "–", "0.5")]


def test_draws_and_interval_come_from_the_evaluation_that_was_summed_up() -> None:
    figure = Figure(value=0.5, n=2048, low=0.48, high=0.52)
    evaluation = Evaluation(model="m", seed=1, temperature=1.0, pool="p", figures={"policy": figure}, counts={})
    same = Material(name="r", summary=Summary(before={"policy": 0.5}), evaluations={"before": evaluation})
    other = Material(name="r", summary=Summary(before={"policy": 0.6}), evaluations={"before": evaluation})
    assert figure_rows(same)[0].cells["before"].n == 2048
    assert figure_rows(same)[0].cells["before"].interval == (0.48, 0.52)
    assert figure_rows(other)[0].cells["before"].n is None
    assert figure_rows(other)[0].cells["before"].interval is None


def test_a_ledger_that_balances() -> None:
    found = material(ledger={"policy": BALANCED, "judge": BALANCED, "balanced": True})
    assert balances(found)
    assert [row.missing for row in ledger_rows(found)] == [0, 0]


@pytest.mark.parametrize(("issued", "missing"), [(12, 2), (9, -1)])
def test_arithmetic_overrules_the_flag(issued: int, missing: int) -> None:
    found = material(ledger={"policy": {**BALANCED, "issued": issued}, "balanced": True})
    assert not balances(found)
    assert ledger_rows(found)[0].missing == missing


def test_the_flag_counts_too() -> None:
    assert not balances(material(ledger={"policy": BALANCED, "balanced": False}))


def test_many_stale_drops_are_an_alarm() -> None:
    (row,) = ledger_rows(material(ledger={"policy": BALANCED}))
    assert row.stale_share == pytest.approx(1 / 8)
    assert row.drops_too_many
    (none,) = ledger_rows(material(ledger={"policy": {"issued": 0}}))
    assert none.stale_share == 0.0


def test_endings_are_counted_while_there_is_no_ledger() -> None:
    rows = ({"policy_version": 1.0, "trained/policy": 4.0}, {"policy_version": 2.0, "trained/policy": 3.0})
    assert endings_so_far(History(rows=rows)) == [("policy", {"trained": 7.0, "filtered": 0, "dropped_stale": 0})]
    assert endings_so_far(History()) == []
