"""Figures are counted in bursts: none is lost, none counts twice, and they keep their order."""

from __future__ import annotations

import threading
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest

from common.telemetry.later import MOST, Later, LaterProvider
from common.telemetry.reader import ScrapedReader


def test_they_are_counted_when_somebody_asks_or_when_many_wait() -> None:
    counted: list[tuple[float, Any]] = []
    later = Later()
    for value in range(MOST - 1):
        later.add(lambda value, labels: counted.append((value, labels)), value, {"of": "it"})
    assert counted == []
    later.add(lambda value, labels: counted.append((value, labels)), MOST - 1, None)
    assert counted == [*((value, {"of": "it"}) for value in range(MOST - 1)), (MOST - 1, None)]
    later.settle()
    assert len(counted) == MOST


def test_threads_that_settle_at_once_count_everything_once() -> None:
    counted: list[float] = []
    later, started = Later(), threading.Barrier(4)

    def work() -> None:
        started.wait()
        for value in range(3 * MOST):
            later.add(lambda value, _labels: counted.append(value), value, None)
            if value % 7 == 0:
                later.settle()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    later.settle()
    assert sorted(counted) == sorted(4 * list(range(3 * MOST)))


def test_a_library_records_through_it_and_scrapes_see_all() -> None:
    later, registry = Later(), CollectorRegistry()
    provider = MeterProvider([ScrapedReader(registry, None, 3600.0, later.settle)], shutdown_on_exit=False)
    meter = LaterProvider(provider, later).get_meter("library", "1.0")
    meter.create_counter("errors").add(1)
    duration = meter.create_histogram("duration", unit="s", explicit_bucket_boundaries_advisory=[1.0])
    for seconds in (0.5, 2.0, 2.5):
        duration.record(seconds, attributes={"command": "GET"})
    lines = generate_latest(registry).decode().splitlines()
    assert "errors_total 1.0" in lines
    assert 'duration_seconds_count{command="GET"} 3.0' in lines
    assert 'duration_seconds_bucket{command="GET",le="1.0"} 1.0' in lines
    provider.shutdown()


def test_the_sdk_calls_what_the_data_points_are_of() -> None:
    """A reader without settling sees nothing that waits: what is asked for is counted first, and only then."""
    later, reader = Later(), InMemoryMetricReader()
    counter = MeterProvider([reader], shutdown_on_exit=False).get_meter("test").create_counter("apples")
    later.add(counter.add, 2, {})
    assert reader.get_metrics_data() is None
    later.settle()
    data: Any = reader.get_metrics_data()
    assert data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0].value == 2
