"""The table of names: sound in itself, the same in the documentation, and what the code and Prometheus say."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics

from common.telemetry.metric import Metric
from common.telemetry.names import METRICS, SPANS

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "telemetry.md"
PACKAGES = ("actors", "learner", "recycler", "common", "cli")
SPOKEN = {"debug", "info", "warning", "error", "exception", "critical"}
SAID_BY_FILE = {"log.lines_lost"}
"""Written by the log itself."""


def constants(module: object) -> set[str]:
    return {value for name, value in vars(module).items() if name.startswith("GEN_AI_") and isinstance(value, str)}


def test_no_name_means_two_things() -> None:
    assert [name for name, times in Counter(metric.name for metric in METRICS).items() if times > 1] == []
    assert [name for name, times in Counter(metric.prometheus for metric in METRICS).items() if times > 1] == []
    assert [name for name, times in Counter(span.name for span in SPANS).items() if times > 1] == []


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_says_all_that_is_asked_of_it(metric: Metric) -> None:
    assert metric.unit in ("1", "s", "By", "MiBy") or re.fullmatch(r"\{[a-z]+\}", metric.unit)
    assert metric.meaning
    assert metric.roles
    assert (metric.kind == "histogram") == bool(metric.bounds)
    assert (metric.origin in ("heartbeat", "batch")) == bool(metric.field)


def test_names_of_the_convention_are_the_convention_s() -> None:
    ours = {metric.name for metric in METRICS} | {label for metric in METRICS for label in metric.labels}
    ours |= {attribute for span in SPANS for attribute in span.attributes}
    assert {name for name in ours if name.startswith("gen_ai.")} <= constants(gen_ai_attributes) | constants(
        gen_ai_metrics
    )
    assert all(
        name.startswith(("gen_ai.", "spark.")) for name in (*(m.name for m in METRICS), *(s.name for s in SPANS))
    )


def test_the_document_has_the_tables_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("docs_telemetry", ROOT / "docs" / "telemetry.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    text = DOCUMENT.read_text(encoding="utf-8")
    assert writer.render(text) == text, "run `make docs`"


def events_of(source: str) -> Iterator[str]:
    """The events that a module logs: the first argument of ``log.info("area.event", ...)`` and its like."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in SPOKEN:
            continue
        if "log" in ast.unparse(node.func.value) and "logging" not in ast.unparse(node.func.value):
            assert isinstance(node.args[0], ast.Constant), f"an event is a text: {ast.unparse(node)}"
            yield node.args[0].value


def test_every_event_is_in_the_vocabulary_and_the_vocabulary_has_no_other() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    said = {event for path in files for event in events_of(path.read_text(encoding="utf-8"))} | SAID_BY_FILE
    section = DOCUMENT.read_text(encoding="utf-8").partition("## Events of the log")[2]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    written = {event for row in rows for event in re.findall(r"`([^`]+)`", row)}
    assert (sorted(said - written), sorted(written - said)) == ([], [])


def test_an_event_is_found_wherever_it_is_said() -> None:
    source = 'log.info("a.b")\nstructlog.get_logger().warning("c.d", x=1)\nself.info("no")\nlogging.info("no")\n'
    assert list(events_of(source)) == ["a.b", "c.d"]
