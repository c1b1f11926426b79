"""Metrics through OpenTelemetry. Whoever asks for them (exporter, scrape) reads heartbeat and server in its own thread.

The loops only replace what they said last, or add to a histogram: nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from common.telemetry import quiet
from common.telemetry.later import Count, Later
from common.telemetry.metric import Metric
from common.telemetry.names import of_role
from common.telemetry.quiet import Reading, Said

Callback = Callable[[CallbackOptions], Iterable[Observation]]


class Fields:
    """Which metric tells a field of a heartbeat or a batch. There are some hundred fields, looked up once each."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = metrics
        self._known: dict[str, tuple[Metric, dict[str, str]] | None] = {}

    def find(self, key: str) -> tuple[Metric, dict[str, str]] | None:
        """With the labels; None for a field that no metric tells."""
        if key not in self._known:
            found = ((metric, metric.match(key)) for metric in self.metrics)
            self._known[key] = next(((metric, labels) for metric, labels in found if labels is not None), None)
        return self._known[key]


class Meters(quiet.Meters):
    """The metrics of one role. Created once in a process."""

    def __init__(self, meter: Meter, role: str, later: Later) -> None:
        """``later`` counts what is recorded."""
        self._meter = meter
        self._role = role
        self._later = later
        self._batch = Fields(of_role(role, "batch"))
        self._count = {m.name: self._instrument(m) for m in (*self._batch.metrics, *of_role(role, "moment"))}

    def follow(self, said: Said) -> None:
        fields = Fields(of_role(self._role, "heartbeat"))
        for metric in fields.metrics:
            self._observe(metric, partial(_from_heartbeat, metric, fields, said))

    def follow_server(self, read: Callable[[], Sequence[Reading]]) -> None:
        for metric in of_role(self._role, "server"):
            self._observe(metric, partial(_from_server, metric, read))

    def batch(self, metrics: Mapping[str, Any]) -> None:
        for key, value in metrics.items():
            if found := self._batch.find(key):
                self._add(found[0], number(value), found[1])

    def record(self, metric: Metric, value: float, labels: Mapping[str, str] | None = None) -> None:
        self._add(metric, value, labels or {})

    def _add(self, metric: Metric, value: float | None, labels: Mapping[str, str]) -> None:
        if value is not None:
            self._later.add(self._count[metric.name], value, labels)

    def _instrument(self, metric: Metric) -> Count:
        about = {"unit": metric.unit, "description": metric.meaning}
        if metric.kind == "counter":
            return self._meter.create_counter(metric.name, **about).add
        if metric.kind == "gauge":
            return self._meter.create_gauge(metric.name, **about).set
        bounds = list(metric.bounds)
        return self._meter.create_histogram(metric.name, **about, explicit_bucket_boundaries_advisory=bounds).record

    def _observe(self, metric: Metric, callback: Callback) -> None:
        counts = metric.kind == "counter"
        create = self._meter.create_observable_counter if counts else self._meter.create_observable_gauge
        create(metric.name, callbacks=[callback], unit=metric.unit, description=metric.meaning)


def number(value: Any) -> float | None:
    """The figure of a field; of a list its length, None for what is no figure."""
    if isinstance(value, list | tuple):
        return float(len(value))
    return float(value) if isinstance(value, int | float) else None


def _from_heartbeat(metric: Metric, fields: Fields, said: Said, _options: CallbackOptions) -> Iterable[Observation]:
    for key, value in said().items():
        found, figure = fields.find(key), number(value)
        if found and found[0] is metric and figure is not None:
            yield Observation(figure, found[1])


def _from_server(
    metric: Metric, read: Callable[[], Sequence[Reading]], _options: CallbackOptions
) -> Iterable[Observation]:
    for name, labels, value in read():
        if name == metric.name:
            yield Observation(value, labels)
