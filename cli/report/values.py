"""A chart for those who do not see it: what it shows in one sentence for each line, and a table of its values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cli.report.charts import Chart, Line, Panel, Unit
from cli.report.series import Curve, finite, smooth
from cli.report.words import NEVER, number, percent

MOST_ROWS: Final = 11
"""Rows of a table of values at most: the first step, the last, and evenly between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueTable:
    x_name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """x, and one value per column."""


def x_of(chart: Chart, steps: Sequence[float]) -> Sequence[float]:
    return steps if chart.ages is None else chart.ages


def shown(line: Line, panel: Panel, window: int) -> Curve:
    """The values as they are drawn: smoothed, or as they are."""
    return smooth(line.values, window if line.smoothed or panel.stacked else 1)


def described(chart: Chart, steps: Sequence[float], window: int) -> str:
    """The chart in words: title, axis, and where each line starts, ends, and is lowest and highest."""
    x = x_of(chart, steps)
    said = [_line_in_words(line, panel, x, window) for panel in chart.panels for line in panel.lines if line.measured]
    span = f"{number(x[0])} to {number(x[-1])}" if len(x) else "none"
    return f"{chart.title}, over {chart.x_name} {span}. {' '.join(said)}"


def _line_in_words(line: Line, panel: Panel, x: Sequence[float], window: int) -> str:
    _, y = finite(x, shown(line, panel, window))
    start, end, low, high = (form(value, panel.unit) for value in (y[0], y[-1], y.min(), y.max()))
    if start == end == low == high:
        return f"{line.label}: {start} throughout."
    return f"{line.label}: from {start} to {end}, lowest {low}, highest {high}."


def table_of(chart: Chart, steps: Sequence[float], window: int) -> ValueTable:
    x = x_of(chart, steps)
    chosen = np.unique(np.linspace(0, len(x) - 1, min(MOST_ROWS, len(x))).round().astype(np.intp))
    columns = [
        (line.label, shown(line, panel, window), panel.unit)
        for panel in chart.panels
        for line in panel.lines
        if line.measured
    ]
    return ValueTable(
        x_name=chart.x_name,
        columns=tuple(label for label, _, _ in columns),
        rows=tuple(
            (number(x[row]), tuple(form(float(values[row]), unit) for _, values, unit in columns)) for row in chosen
        ),
    )


def form(value: float, unit: Unit) -> str:
    if not np.isfinite(value):
        return NEVER
    return percent(value) if unit == "share" else number(value)
