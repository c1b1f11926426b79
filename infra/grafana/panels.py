"""Panels of Grafana dashboards as values, and the JSON that Grafana reads of them: three a row, one style for all.

Grafana's grid has 24 columns: a third of it is 430 px on a screen of 1366 px, which a plot with its legend needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

SCHEMA_VERSION: Final = 41
"""Of the dashboards of Grafana 12.1, which docker-compose.yml names."""
COLUMNS: Final = 24
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
RUN: Final = 'spark_run="$run"'

Json = dict[str, Any]
Query = tuple[str, str]
"""PromQL, and the legend of its series."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """``about``: what it shows, what a bad value means, and what to do then. ``unit``: of Grafana's list of units."""

    title: str
    about: str
    unit: str
    queries: Sequence[Query]
    kind: str = "timeseries"
    width: int = 8
    height: int = 7
    limits: Sequence[tuple[str, float]] = ()
    """Colour from this value on. Below it a figure is green; in a plot a limit is a dashed line."""
    most: float | None = None
    least: float | None = None
    stacked: bool = False
    decimals: int | None = None
    names: Sequence[tuple[str, str]] = field(default=())
    """Of a table: field -> heading, in the order of the columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    title: str
    panels: Sequence[Panel]


def dashboard(*, uid: str, title: str, about: str, rows: Iterable[Row], variables: Sequence[Json] = ()) -> Json:
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["spark"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [_others()],
        "annotations": {"list": []},
        "templating": {"list": [_source(), variable("run", "spark_policy_version"), *variables]},
        "panels": _laid_out(rows),
    }


def variable(name: str, metric: str, *, several: bool = False) -> Json:
    """A choice of the values of the label ``spark_NAME``; ``several``: of many at once, or all."""
    query = f"label_values({metric}, spark_{name})"
    every: Json = {"multi": True, "includeAll": True, "allValue": ".*"} if several else {}
    return {
        "type": "query",
        "name": name,
        "label": name,
        "datasource": SOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "sort": 1,
        **every,
    }


def _source() -> Json:
    return {"type": "datasource", "name": "datasource", "label": "source", "query": "prometheus", "refresh": 1}


def _others() -> Json:
    return {"type": "dashboards", "title": "SPARK", "tags": ["spark"], "asDropdown": False, "keepTime": True,
            "includeVars": True, "icon": "dashboard", "tooltip": "", "url": "", "targetBlank": False}  # fmt: skip


# -- layout -------------------------------------------------------------------------------------------------


def _laid_out(rows: Iterable[Row]) -> list[Json]:
    """Rows below each other, panels from left to right, in a new line where one does not fit."""
    placed: list[Json] = []
    y = 0
    for row in rows:
        placed.append({"id": len(placed) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}})  # fmt: skip
        x, y, tallest = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            placed.append({"id": len(placed) + 1, "gridPos": place, **_panel(panel)})
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return placed


# -- one panel ----------------------------------------------------------------------------------------------


def _panel(panel: Panel) -> Json:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "targets": [_target(panel, index, query) for index, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
        **({"transformations": _columns(panel)} if panel.kind == "table" else {}),
    }


def _target(panel: Panel, index: int, query: Query) -> Json:
    expression, legend = query
    instant = panel.kind in ("stat", "table")
    form = {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series")
    return {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend,
            "format": form, "instant": instant, "range": not instant}  # fmt: skip


def _defaults(panel: Panel) -> Json:
    plot = panel.kind == "timeseries"
    base = "transparent" if plot else "green" if panel.limits else "text"
    steps = [{"color": base, "value": None}, *({"color": color, "value": value} for color, value in panel.limits)]
    bounds = {"min": panel.least, "max": panel.most, "decimals": panel.decimals}
    return {
        "unit": panel.unit,
        "color": {"mode": "palette-classic" if plot else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "custom": _plot(panel) if plot else {},
        "noValue": "-",
        **{name: value for name, value in bounds.items() if value is not None},
    }


def _plot(panel: Panel) -> Json:
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if panel.stacked else 0,
        "showPoints": "never",
        "spanNulls": 60000,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if panel.limits else "off"},
    }


def _options(panel: Panel) -> Json:
    if panel.kind == "stat":
        return {"colorMode": "value", "graphMode": "none", "justifyMode": "auto", "textMode": "value",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}  # fmt: skip
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm", "footer": {"show": False, "reducer": ["sum"]}}
    if panel.kind == "heatmap":
        return {"calculate": False, "cellGap": 1, "legend": {"show": True}, "tooltip": {"mode": "single"},
                "color": {"mode": "scheme", "scheme": "Blues", "steps": 32}, "yAxis": {"unit": panel.unit}}  # fmt: skip
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _columns(panel: Panel) -> list[Json]:
    """One line per series of the same labels; only the columns that have a heading."""
    names = dict(panel.names)
    kept = {"id": "filterFieldsByName", "options": {"include": {"names": list(names)}}}
    order = {"indexByName": {name: index for index, name in enumerate(names)}, "renameByName": names}
    return [{"id": "merge", "options": {}}, kept, {"id": "organize", "options": order}]
