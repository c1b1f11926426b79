"""Metrics that Prometheus scrapes and that are sent to a collector, too, out of one reader."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import MetricExporter, MetricsData
from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family
from prometheus_client.registry import Collector

from common.telemetry.names import LABELS

_TROUBLE: Final = logging.getLogger("opentelemetry.spark")
"""Thinned out, and put into the run's log, with what the SDK says (``sdk_log``)."""


class _Settling(Collector):
    """Tells nothing itself."""

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle

    def collect(self) -> Iterable[Family]:
        self._settle()
        return ()


class ScrapedReader(PrometheusMetricReader):
    """Answers scrapes, and pushes to ``exporter`` where there is one.

    The SDK counts every figure once per reader, so that a second reader would double the cost of all metrics.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        exporter: MetricExporter | None,
        every_s: float,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """``settle`` is called before every reading: it counts what is not counted yet."""
        registry.register(_Settling(settle))  # first: a registry asks in this order
        super().__init__(
            registry=registry,
            scope_info_enabled=False,
            resource_attribute_filter=lambda key: key in LABELS,
        )
        self._exporter = exporter
        self._every_s = every_s
        self._settle = settle
        self._over = threading.Event()
        self._pusher = threading.Thread(target=self._push, name="telemetry-push", daemon=True)
        if exporter:
            self._pusher.start()

    def _push(self) -> None:
        """The last time when all is over."""
        over = False
        while not over:
            over = self._over.wait(self._every_s)
            try:
                self._settle()
                self.collect()
            except Exception:  # noqa: BLE001 - whatever a callback raises: reported, and tried again
                _TROUBLE.exception("Metrics could not be collected")

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        """What ``collect`` found, for the thread that asked."""
        if self._exporter and threading.current_thread() is self._pusher:
            self._exporter.export(metrics_data, timeout_millis=timeout_millis)
        else:
            super()._receive_metrics(metrics_data, timeout_millis, **kwargs)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._over.set()
        if self._exporter:
            self._pusher.join(timeout_millis / 1000)
            self._exporter.shutdown(timeout_millis=timeout_millis)
        super().shutdown(timeout_millis, **kwargs)
