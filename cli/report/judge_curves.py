"""Which curves the report shows of the judge, and how to read them. Names of metrics: ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from cli.report.charts import Chart, Line, Mark, Panel
from cli.report.history import History

GUESSING: Final = Mark(level=0.5, label="guessing")
MOST_AGES: Final = 24
"""Ages on the axis at most; what a run judges later than that is rare."""


def judge_charts(history: History) -> tuple[Chart, ...]:
    """All but TPR, TNR and the labels are measured over a window of judge tasks (``metrics.judge_window``)."""
    return (
        _rates(history),
        _pairwise(history),
        _calibration(history),
        _by_age(history),
        _lures(history),
        _balance(history),
    )


def _rates(history: History) -> Chart:
    lines = (
        Line(label="accepts right (TPR)", values=history.column("judge/tpr"), colour="green"),
        Line(label="rejects wrong (TNR)", values=history.column("judge/tnr"), colour="purple"),
        Line(label="balanced accuracy", values=history.column("judge/balanced_accuracy"), colour="orange"),
    )
    return Chart(
        slug="judge-rates",
        title="Pointwise judge, both ways",
        caption="A judge that learns raises both rates; one up and the other down means that it just says yes or no.",
        panels=(Panel(lines=lines, marks=(GUESSING,), unit="share", low=0, high=1),),
    )


def _pairwise(history: History) -> Chart:
    lines = (
        Line(label="picks the right one", values=history.column("judge/pairwise_accuracy"), colour="blue"),
        Line(label="same pick when swapped", values=history.column("judge/swap_consistency"), colour="orange"),
    )
    return Chart(
        slug="judge-pairwise",
        title="Pairwise judge",
        caption="Of two answers, how often it picks the right one, and how often the pick survives exchanging their "
        "places; a judge that goes by the place is not consistent.",
        panels=(Panel(lines=lines, marks=(GUESSING,), unit="share", low=0, high=1),),
    )


def _calibration(history: History) -> Chart:
    auroc = Line(label="AUROC of P(Yes)", values=history.column("judge/auroc"), colour="blue")
    error = Line(label="calibration error", values=history.column("judge/ece"), colour="orange")
    floor = Line(label="of a perfect judge", values=history.column("judge/ece_floor"), colour="quiet", dashed=True)
    return Chart(
        slug="judge-calibration",
        title="Calibration",
        caption="How well the judge's P(Yes) ranks right answers above wrong ones (AUROC, 50 % is chance), and how far "
        "it is from the share that is right (expected calibration error): no better than a perfect judge would look "
        "with as few verdicts.",
        panels=(
            Panel(lines=(auroc,), marks=(GUESSING,), unit="share", low=0.4, high=1, name="AUROC"),
            Panel(lines=(error, floor), unit="share", low=0, high=0.2, name="expected calibration error"),
        ),
    )


def _by_age(history: History) -> Chart:
    """Means over the two halves of the run: per step there are too few judgements of one age."""
    found = sorted((age, name) for name, age in history.numbered("judge/accuracy/age_"))[:MOST_AGES]
    half = len(history.rows) // 2
    lines = tuple(
        Line(
            label=label,
            values=[_mean(history.column(name)[part]) for _, name in found],
            colour=colour,
            dashed=dashed,
            smoothed=False,
        )
        for label, part, colour, dashed in (
            ("first half of the run", slice(None, half), "quiet", True),
            ("second half", slice(half, None), "blue", False),
        )
    )
    return Chart(
        slug="judge-age",
        title="Accuracy by age of the answer",
        caption="Mean over batches of the judge's accuracy, by how many versions ago the answer was written; a fall to "
        "the right says that old answers are judged worse.",
        panels=(Panel(lines=lines, marks=(GUESSING,), unit="share", low=0, high=1),),
        ages=tuple(float(age) for age, _ in found),
    )


def _mean(values: Sequence[float]) -> float:
    measured = np.asarray(values, dtype=np.float64)
    measured = measured[np.isfinite(measured)]
    return float(measured.mean()) if len(measured) else float("nan")


def _lures(history: History) -> Chart:
    lines = (
        Line(label="empty answers", values=history.column("judge/false_positive/empty"), colour="blue"),
        Line(label="master-key answers", values=history.column("judge/false_positive/master_key"), colour="alarm"),
    )
    return Chart(
        slug="judge-lures",
        title="Answers that should never pass",
        caption="Share accepted of empty answers and of phrases that fool judges without answering; anything but 0 % "
        "rewards saying nothing.",
        panels=(Panel(lines=lines, unit="share", low=0, high=0.1),),
    )


def _balance(history: History) -> Chart:
    lines = tuple(
        Line(label=objective, values=history.column(f"positive/{objective}"), colour=colour)
        for objective, colour in (("pointwise", "orange"), ("pairwise", "green"), ("reflect", "purple"))
    )
    return Chart(
        slug="judge-balance",
        title="Balance of the labels",
        caption="Share of judge tasks whose label is positive: right (pointwise, reflect), or A is the right one "
        "(pairwise); away from 50 % a constant verdict pays.",
        panels=(Panel(lines=lines, marks=(Mark(level=0.5, label="balanced"),), unit="share", low=0, high=1),),
    )
