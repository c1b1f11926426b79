"""Puts the report together: material, tables, plots, cards, page."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cli.report import provenance, tables
from cli.report.cards import Card, card
from cli.report.charts import Bounds, Chart, Line, Section
from cli.report.curves import sections
from cli.report.lede import lede
from cli.report.material import Material, read_material
from cli.report.palette import variables
from cli.report.series import last, window_of
from cli.report.values import ValueTable, form, shown, table_of
from cli.report.words import count, number, percent, points, visible, when
from common.errors import SettingsError
from common.messages import OUTCOMES

TEMPLATE: Final = "page.html.j2"
MOST_OTHERS: Final = 200
"""Further figures of an evaluation that are listed."""


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
    legend: tuple[LegendEntry, ...]
    table: ValueTable


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnSection:
    section: Section
    plots: tuple[Plot, ...]
    missing: tuple[str, ...]
    """Titles of charts that nothing was measured for."""


def write_report(run_path: Path, target: Path | None = None) -> Path:
    """Write ``RUN/report.html``, or ``target``: one file that needs no other and no network.

    Works while the run goes on, too: it then shows what there is.
    """
    target = target or run_path / "report.html"
    unfinished = target.with_name(f"{target.name}.tmp")
    unfinished.write_text(render(read_material(run_path), datetime.now(UTC)), encoding="utf-8")
    os.replace(unfinished, target)
    return target


def report(run_path: Path, target: Path | None) -> None:
    """The command: write it, and print where it is. Raises SettingsError for what is no run directory."""
    from common import log

    log.configure(json=False)  # to stderr: stdout is for the path
    if not any((run_path / name).is_file() for name in ("config.toml", "metrics.jsonl")):
        raise SettingsError(f"{run_path} is no run directory: it has neither config.toml nor metrics.jsonl")
    if target is not None and (target.is_dir() or not target.parent.is_dir()):
        raise SettingsError(f"--to {target}: name a file in a folder that exists, such as {target.name}.html")
    print(write_report(run_path, target))


def render(material: Material, written_at: datetime) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cli.report", "templates"),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "number": number, "when": when, "count": count}
    return environment.get_template(TEMPLATE).render(**_context(material), written_at=written_at)


def _context(material: Material) -> dict[str, Any]:
    return {
        "material": material,
        "light": variables(0),
        "dark": variables(1),
        "lede": lede(material),
        "facts": provenance.facts(material),
        "sections": [_drawn(section, material) for section in sections(material.history, _bounds(material))],
        "window": window_of(len(material.history.rows)),
        "shelves": _shelves(material),
        **_tables(material),
        **_provenance(material),
    }


def _tables(material: Material) -> dict[str, Any]:
    return {
        "figures": tables.figure_rows(material),
        "other_figures": tables.other_figures(material)[:MOST_OTHERS],
        "arms": tables.ARMS,
        "ledger": tables.ledger_rows(material),
        "so_far": tables.endings_so_far(material.history),
        "balances": tables.balances(material),
        "ledger_counts": ("issued", *OUTCOMES, "in_flight"),
        "stale_alarm": tables.STALE_ALARM,
    }


def _provenance(material: Material) -> dict[str, Any]:
    folder = provenance.folder_of(material)
    return {
        "differences": [
            replace(row, value=provenance.shortened(row.value, folder)) for row in provenance.differences(material)
        ],
        "steered": provenance.steered(material),
        "circumstances": provenance.circumstances(material),
        "command": provenance.shortened(provenance.command(material), folder),
        "commands_after": [provenance.shortened(text, folder) for text in provenance.commands_after(material)],
        "run_file": provenance.shortened(provenance.run_file(material), folder),
        "folder": folder,
    }


def _bounds(material: Material) -> Bounds:
    config = material.config
    return Bounds() if config is None else Bounds(staleness=config.staleness, learner=config.learner)


def _drawn(section: Section, material: Material) -> DrawnSection:
    return DrawnSection(
        section=section,
        plots=tuple(_plot(chart, material) for chart in section.charts if chart.lines),
        missing=tuple(chart.title.lower() for chart in section.charts if not chart.lines),
    )


def _plot(chart: Chart, material: Material) -> Plot:
    from cli.report.plots import draw  # matplotlib takes a second to load

    steps, window = material.history.steps, window_of(len(material.history.rows))
    return Plot(
        chart=chart,
        svg=draw(chart, steps, window, material.resumed),
        legend=tuple(_legend(line, chart, window) for line in chart.lines),
        table=table_of(chart, steps, window),
    )


def _legend(line: Line, chart: Chart, window: int) -> LegendEntry:
    panel = next(panel for panel in chart.panels if line in panel.lines)
    value = last(shown(line, panel, window))
    text = "" if value is None else form(value, panel.unit)
    return LegendEntry(label=line.label, colour=line.colour, dashed=line.dashed, last=text)


def _shelves(material: Material) -> list[tuple[str, str, list[Card]]]:
    return [
        (shelf.title, shelf.explanation, [card(title, pick, material.related) for title, pick in shelf.picks])
        for shelf in material.chosen.shelves
    ]
