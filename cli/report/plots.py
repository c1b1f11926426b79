"""Draws charts as SVG with matplotlib, which is why only ``write_report`` imports this, and only when it runs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cli.report.charts import Chart, Line, Mark, Panel
from cli.report.palette import light
from cli.report.series import MOST_POINTS, envelope, finite, smooth, thin
from cli.report.svg import inline
from cli.report.values import described, x_of

WIDTH_IN: Final = 5.2
"""374 points: about the width of a phone and of a third of a page, so the text keeps its size on both."""
HEIGHT_IN: Final = 3.0
FEW_POINTS: Final = 8
"""So many points at most are marked one by one."""
DASHES: Final[Any] = {"linestyle": (0, (2.5, 1.5)), "linewidth": 1.0, "drawstyle": "steps-mid"}
SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
STYLE: Final[Any] = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "font.size": 10.5,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": light("quiet"),
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.0,
    "grid.color": light("rule"),
    "grid.linewidth": 0.8,
    "xtick.color": light("quiet"),
    "ytick.color": light("quiet"),
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "patch.linewidth": 0.0,
}


def draw(chart: Chart, steps: Sequence[float], window: int, resumed: Sequence[float] = ()) -> str:
    """The chart as an ``<svg>`` element, over optimizer ``steps`` unless it has an x of its own.

    ``resumed``: the steps after which the learner started again.
    """
    x = x_of(chart, steps)
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": chart.slug}):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        heights = [panel.height for panel in chart.panels]
        axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for panel, ax in zip(chart.panels, axes, strict=True):
            _draw_panel(ax, panel, x, window)
            for step in resumed if chart.ages is None else ():
                ax.axvline(step, color=light("quiet"), linewidth=0.8, linestyle=(0, (4, 3)))
        _x_axis(axes[-1], x, chart.x_name)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return inline(buffer.getvalue(), described(chart, steps, window))


def _draw_panel(ax: Axes, panel: Panel, x: Sequence[float], window: int) -> None:
    if panel.log:
        ax.set_yscale("log")
    ax.set_ylim(*limits(panel))
    if panel.stacked:
        _draw_stack(ax, panel.lines, x, window)
    else:
        for line in panel.lines:
            _draw_line(ax, line, x, window)
    if panel.name:
        ax.set_title(panel.name, loc="left", fontsize=10.5, color=light("quiet"), pad=4)
    _value_axis(ax, panel)
    for mark in panel.marks:
        _draw_mark(ax, mark)


def _draw_line(ax: Axes, line: Line, points: Sequence[float], window: int) -> None:
    colour = light(line.colour)
    x, y = finite(points, line.values)
    if ax.get_yscale() == "log":
        x, y = x[y > 0], y[y > 0]
    if not len(x):
        return
    if line.smoothed and window > 1:
        _draw_raw(ax, x, y, colour)
        x, y = thin(x, smooth(y, window))
    elif len(x) > MOST_POINTS:
        x, _, y = envelope(x, y)  # a maximum stays a maximum
    dashes = DASHES if line.dashed else {}
    few: dict[str, Any] = {"marker": "o", "markersize": 4, "clip_on": False, "drawstyle": "default"}
    ax.plot(x, y, color=colour, **{**dashes, **(few if len(x) <= FEW_POINTS else {})})


def _draw_raw(ax: Axes, x: Any, y: Any, colour: str) -> None:
    """The single steps, faint; as a band where there are more of them than pixels."""
    if len(x) <= MOST_POINTS:
        ax.plot(x, y, color=colour, alpha=0.3, linewidth=0.8)
    else:
        ax.fill_between(*envelope(x, y), color=colour, alpha=0.18)


def _draw_stack(ax: Axes, lines: Sequence[Line], points: Sequence[float], window: int) -> None:
    where = np.asarray(points, dtype=np.float64)
    base = np.zeros(len(where))
    for line in lines:
        top = base + smooth(line.values, window)
        x, low = thin(where, base)
        _, high = thin(where, top)
        edge = light("paper")  # parts that touch stay apart for every eye
        ax.fill_between(x, low, high, facecolor=light(line.colour), edgecolor=edge, linewidth=0.7, alpha=0.85)
        base = top


def limits(panel: Panel) -> tuple[float, float]:
    """The wished limits, widened so that all values and marks are inside, and a little air."""
    values = [*_heights(panel), *(mark.level for mark in panel.marks)]
    values = [value for value in values if np.isfinite(value) and (value > 0 or not panel.log)]
    low = min([*values, *([] if panel.low is None else [panel.low])], default=0.0)
    high = max([*values, *([] if panel.high is None else [panel.high])], default=1.0)
    if panel.log:
        return (low if low == panel.low else low / 1.5), (high if high == panel.high else high * 1.5)
    span = (high - low) or abs(high) or 1.0
    if panel.stacked:
        return low, low + span
    return low - span * (0.02 if low == panel.low else 0.06), high + span * (0.02 if high == panel.high else 0.12)


def _heights(panel: Panel) -> list[float]:
    curves = [np.asarray(line.values, dtype=np.float64) for line in panel.lines]
    return [float(value) for value in (np.sum(curves, axis=0) if panel.stacked else np.concatenate(curves))]


def _value_axis(ax: Axes, panel: Panel) -> None:
    if panel.log:
        ax.yaxis.set_major_locator(LogLocator(numticks=4))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
        ax.yaxis.set_minor_locator(NullLocator())
        return
    tight = panel.height < 1 or panel.name
    ax.yaxis.set_major_locator(MaxNLocator(nbins=3 if tight else 5, steps=[1, 2, 2.5, 5, 10]))
    text = (lambda value, _: f"{100 * value:g} %") if panel.unit == "share" else (lambda value, _: f"{value:g}")
    ax.yaxis.set_major_formatter(FuncFormatter(text))


def power(value: float) -> str:
    """A power of ten as people write it: 0.1, 10, 10⁻⁵."""
    exponent = round(np.log10(value))
    return f"10{str(exponent).translate(SUPERSCRIPTS)}" if abs(exponent) > 2 else f"{value:g}"


def _x_axis(ax: Axes, x: Sequence[float], name: str) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    if len(x) > 1:
        ax.set_xlim(min(x), max(x))
    ax.set_xlabel(name, color=light("quiet"))


def _draw_mark(ax: Axes, mark: Mark) -> None:
    colour = light(mark.colour)
    ax.axhline(mark.level, color=colour, linewidth=1.0, linestyle=(0, (1, 2)))
    ax.annotate(
        mark.label,
        xy=(1.0, mark.level),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=colour,
        fontsize=9.5,
    )
