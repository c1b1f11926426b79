"""One reader for scrapes and pushes: both see every figure once, and neither takes it from the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.metrics import Counter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from prometheus_client import CollectorRegistry, generate_latest
from run_harness import until
from structlog.testing import capture_logs

from common.telemetry.reader import ScrapedReader
from common.telemetry.sdk_log import sdk_log

NEVER_S = 3600.0


class Kept(MetricExporter):
    """What was pushed, in order. The first ``failures`` pushes raise."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.values: list[float] = []
        self.closed = False
        self._failures = failures

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> MetricExportResult:
        if self._failures:
            self._failures -= 1
            raise ConnectionError("away")
        points = [
            point
            for resource in metrics_data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        ]
        self.values += [point.value for point in points]
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        self.closed = True


@contextmanager
def counting(exporter: Kept | None, every_s: float) -> Iterator[tuple[Counter, CollectorRegistry]]:
    registry = CollectorRegistry()
    provider = MeterProvider([ScrapedReader(registry, exporter, every_s)], shutdown_on_exit=False)
    yield provider.get_meter("test").create_counter("apples"), registry
    provider.shutdown()


def scraped(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if line.startswith("apples_total")]


def test_scrapes_and_pushes_see_the_same_totals() -> None:
    exporter = Kept()
    with counting(exporter, 0.02) as (apples, registry):
        apples.add(2)
        until(lambda: exporter.values, "a push")
        assert scraped(registry) == ["apples_total 2.0"]  # once, and nothing that a push had found before
        apples.add(1)
        until(lambda: exporter.values[-1] == 3, "another")
        assert scraped(registry) == ["apples_total 3.0"]
    assert set(exporter.values) == {2, 3}


def test_what_is_left_is_pushed_at_the_end() -> None:
    exporter = Kept()
    with counting(exporter, NEVER_S) as (apples, registry):
        apples.add(5)
        assert scraped(registry) == ["apples_total 5.0"]
        assert exporter.values == []
    assert exporter.values == [5]
    assert exporter.closed


def test_without_a_collector_it_is_only_scraped() -> None:
    with counting(None, NEVER_S) as (apples, registry):
        apples.add(1)
        assert scraped(registry) == ["apples_total 1.0"]


def test_a_push_that_fails_is_reported_and_tried_again() -> None:
    exporter, log = Kept(failures=1), sdk_log()
    with capture_logs() as events, counting(exporter, 0.02) as (apples, _):
        apples.add(1)
        until(lambda: exporter.values, "a push that succeeds")
    log.close()
    assert [(event["event"], "away" in event["cause"]) for event in events] == [("telemetry.trouble", True)]
