"""Puts the report together: material, tables, plots, page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cli.report import tables
from cli.report.charts import Bounds, Chart, Line, sections
from cli.report.history import History
from cli.report.material import Material, read_material
from cli.report.palette import variables
from cli.report.series import last, smooth, window_of
from common.messages import OUTCOMES

TEMPLATE: Final = "page.html.j2"


@dataclass(frozen=True, slots=True, kw_only=True)
class LegendEntry:
    label: str
    colour: str
    dashed: bool
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    chart: Chart
    svg: str
    """Empty when nothing was measured."""
    legend: tuple[LegendEntry, ...]


def write_report(run_path: Path) -> Path:
    """Write ``RUN/report.html``: one file that needs no other and no network. Works while the run goes on, too."""
    target = run_path / "report.html"
    unfinished = target.with_suffix(".html.tmp")
    unfinished.write_text(render(read_material(run_path), datetime.now(UTC)), encoding="utf-8")
    os.replace(unfinished, target)
    return target


def render(material: Material, written_at: datetime) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cli.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "number": number, "seconds": seconds, "when": when}
    return environment.get_template(TEMPLATE).render(**_context(material), written_at=written_at)


def _context(material: Material) -> dict[str, Any]:
    history = material.history
    window = window_of(len(history.rows))
    return {
        "material": material,
        "light": variables(0),
        "dark": variables(1),
        "facts": facts(material),
        "figures": tables.figure_rows(material),
        "other_figures": tables.other_figures(material),
        "arms": tables.ARMS,
        "ledger": tables.ledger_rows(material),
        "balances": tables.balances(material),
        "ledger_counts": ("issued", *OUTCOMES, "in_flight"),
        "stale_alarm": tables.STALE_ALARM,
        "settings": tables.setting_rows(material.settings),
        "window": window,
        "sections": [
            (section.title, [_plot(chart, history, window) for chart in section.charts])
            for section in sections(history, _bounds(material))
        ],
    }


def _bounds(material: Material) -> Bounds:
    config = material.config
    return Bounds() if config is None else Bounds(staleness=config.staleness, learner=config.learner)


def _plot(chart: Chart, history: History, window: int) -> Plot:
    if not chart.lines:
        return Plot(chart=chart, svg="", legend=())
    from cli.report.plots import draw  # matplotlib takes a second to load

    legend = tuple(_legend(line, chart, window) for line in chart.lines)
    return Plot(chart=chart, svg=draw(chart, history.steps, window), legend=legend)


def _legend(line: Line, chart: Chart, window: int) -> LegendEntry:
    panel = next(panel for panel in chart.panels if line in panel.lines)
    value = last(smooth(line.values, window if line.smoothed else 1))
    text = "" if value is None else percent(value) if panel.unit == "share" else number(value)
    return LegendEntry(label=line.label, colour=line.colour, dashed=line.dashed, last=text)


def facts(material: Material) -> list[tuple[str, str]]:
    """The head of the report: what ran, and how far."""
    config, history = material.config, material.history
    found: list[tuple[str, str | None]] = [
        ("Preset", config.preset if config else None),
        ("Model", config.model.path if config else None),
        ("Prompts", config.prompts.source if config else None),
        ("Optimizer steps", _steps(material)),
        ("Samples", number(sum(history.total("samples"))) if history.rows else None),
        ("Training time", None if material.summary.wall_s is None else seconds(material.summary.wall_s)),
        ("Last step", None if material.last_metrics_at is None else when(material.last_metrics_at)),
    ]
    return [(name, str(value)) for name, value in found if value]


def _steps(material: Material) -> str | None:
    if not material.history.rows:
        return None
    done = number(material.history.steps[-1])
    return f"{done} of {number(material.config.learner.max_steps)}" if material.config else done


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def number(value: float) -> str:
    if value != value or abs(value) == float("inf"):
        return "not finite"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}".replace("e-0", "e-")


def seconds(duration: float) -> str:
    minutes, rest = divmod(round(duration), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{duration:.1f} s"


def when(moment: datetime) -> str:
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"
