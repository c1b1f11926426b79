"""The dashboards and rules of infra/, what they ask Prometheus for, and what it could tell them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families
from promql import Selector, read

from common.telemetry.names import LABELS, METRICS, REDIS_PREFIXES

ROOT = Path(__file__).parents[2]
RULES = ROOT / "infra" / "prometheus" / "rules.yml"
DASHBOARDS = sorted((ROOT / "infra" / "grafana" / "dashboards").glob("*.json"))
VARIABLES = {"$run": "demo", "$member": ".*"}
"""What a user may choose on a dashboard."""
OF_PROMETHEUS = {"ALERTS": {"alertname", "alertstate", "severity", "spark_run"}}
"""A metric that Prometheus makes of the rules."""
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""
RARE = {
    ("spark_judge_score", "false_positive/.+|swap_consistency"): "no rollout boxes an empty answer or a master key",
    ("spark_judge_score", "ece|ece_floor|confidence"): "calibration needs 16 judge tasks",
    ("spark_judge_score", "accuracy/age_.+"): "one age needs right and wrong answers",
}
"""What a short run need not tell, and why: (metric, its figures). That there are such figures, docs/metrics.md says."""

Json = dict[str, Any]


def known() -> dict[str, set[str]]:
    """Every name of a series that the code may tell -> its labels."""
    names: dict[str, set[str]] = {}
    for metric in METRICS:
        labels = {label.replace(".", "_") for label in (*metric.labels, *LABELS)}
        names |= {metric.prometheus: labels} if metric.kind != "histogram" else _histogram(metric.prometheus, labels)
    return {**names, **OF_PROMETHEUS}


def _histogram(name: str, labels: set[str]) -> dict[str, set[str]]:
    return {f"{name}_bucket": {*labels, "le"}, f"{name}_sum": labels, f"{name}_count": labels}


def of_redis(name: str) -> bool:
    return name.startswith(tuple(prefix.replace(".", "_") for prefix in REDIS_PREFIXES))


def dashboard_queries(dashboard: Json) -> Iterator[tuple[str, str, str]]:
    """(where, PromQL, legend) of all panels, with values for the variables."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield f"{dashboard['title']}: {panel['title']}", chosen(target["expr"]), target["legendFormat"]


def chosen(text: str) -> str:
    for variable, value in VARIABLES.items():
        text = text.replace(variable, value)
    return text


def rule_queries(rules: Json) -> Iterator[tuple[str, str, str]]:
    """(alert, PromQL, texts) of all rules."""
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"], " ".join(rule["annotations"].values())


def no_figures(query: str) -> list[str]:
    """What a query asks of the figures of metrics.jsonl that docs/metrics.md does not name."""
    words = re.findall(r"`([a-z_]+(?:/\w+)*(?:_K)?)`", (ROOT / "docs" / "metrics.md").read_text("utf-8"))
    documented = {word.replace("OBJECTIVE", "solve").replace("_K", "_0") for word in words}
    documented |= {word.removeprefix("judge/") for word in documented}
    return [
        pattern
        for selector in read(query).selectors
        for matcher in selector.matchers
        if matcher.label == "figure"
        for pattern in matcher.value.split("|")
        if not any(re.fullmatch(pattern, name) for name in documented)
    ]


def all_queries() -> list[tuple[str, str, str]]:
    found = [query for path in DASHBOARDS for query in dashboard_queries(json.loads(path.read_text("utf-8")))]
    return [*found, *rule_queries(yaml.safe_load(RULES.read_text("utf-8")))]


def strangers(where: str, query: str, texts: str = "") -> list[str]:
    """Metrics and labels of a query, its legend and its texts that the code does not know."""
    names, wrong, offered = known(), [], set(SCRAPED)
    expression = read(query)
    for selector in expression.selectors:
        if of_redis(selector.metric):
            offered |= {"le", *(label.replace(".", "_") for label in LABELS)}
            continue
        if selector.metric not in names:
            wrong.append(f"{where}: no metric {selector.metric}")
            continue
        offered |= names[selector.metric]
        asked = {matcher.label for matcher in selector.matchers}
        wrong += [f"{where}: {selector.metric} has no label {label}" for label in asked - names[selector.metric]]
    if any("no metric" in reason for reason in wrong):  # whose labels are not known
        return wrong
    legend = set(re.findall(r"{{\s*(?:\$labels\.)?(\w+)\s*}}", texts))
    return wrong + [f"{where}: no label {label}" for label in (expression.grouped_by | legend) - offered]


def unanswered(scrapes: list[str], queries: list[tuple[str, str, str]]) -> list[str]:
    """What queries select that none of these scrapes tells, apart from what is rare."""
    samples = [
        (sample.name, dict(sample.labels))
        for text in scrapes
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    return [
        f"{where}: nothing for {selector}"
        for where, query, _ in queries
        for selector in read(query).selectors
        if not _rare(selector) and not any(selector.selects(name, labels) for name, labels in samples)
    ]


def _rare(selector: Selector) -> bool:
    values = {matcher.value for matcher in selector.matchers}
    return selector.metric in OF_PROMETHEUS or any(m == selector.metric and v in values for m, v in RARE)
