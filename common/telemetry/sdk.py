"""The SDK of OpenTelemetry, set up for one process: exporters in threads of their own, bounded, and bounded at the end.

A collector that is down or does not answer costs telemetry, never the run: spans wait in a queue of fixed length whose
oldest give way, and nothing is waited for longer than ``STOP_S`` when the process ends.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from typing import Any, Final
from wsgiref.simple_server import WSGIServer

import structlog
from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased
from prometheus_client import CollectorRegistry, start_http_server
from redis.observability import OTelConfig, get_observability_instance
from redis.observability.config import MetricGroup

from common.settings import Telemetry as Wanted
from common.telemetry import quiet
from common.telemetry.meters import Meters
from common.telemetry.names import LABELS, MEMBER, ROLE, RUN
from common.telemetry.quiet import Telemetry
from common.telemetry.sdk_log import sdk_log
from common.telemetry.traces import StepsAlways, TaskIds, Traces

log = structlog.get_logger()

SCOPE: Final = "spark"
EXPORT_S: Final = 5.0
"""An export that takes longer is given up; its spans are lost, its metrics come with the next."""
STOP_S: Final = 3.0
SPANS_WAITING: Final = 8192
MOST_LINKS: Final = 8192
"""Of one step: groups of its batch."""
REDIS_GROUPS: Final = [MetricGroup.RESILIENCY, MetricGroup.COMMAND, MetricGroup.STREAMING]
"""Not those of the connection pool: they count four times per command, and so cost more than the command does."""


class Running:
    """The providers of this process. ``stop`` sends what is left."""

    def __init__(self, wanted: Wanted, role: str, member: str, run: str) -> None:
        resource = Resource.create(
            {
                "service.name": f"spark-{role}",
                "service.instance.id": f"{run}/{member}",
                "host.name": socket.gethostname(),
                RUN: run,
                ROLE: role,
                MEMBER: member,
            }
        )
        self._log = sdk_log()
        self._closing: list[Callable[[], object]] = []
        readers: list[MetricReader] = []
        if wanted.endpoint:
            exporter = OTLPMetricExporter(endpoint=_url(wanted.endpoint, "metrics"), timeout=EXPORT_S)
            readers.append(PeriodicExportingMetricReader(exporter, wanted.interval_s * 1000, EXPORT_S * 1000))
        address = self._serve(wanted, role, member, readers)
        provider = MeterProvider(readers, resource, shutdown_on_exit=False)
        self._closing.append(lambda: provider.shutdown(STOP_S * 1000))
        metrics.set_meter_provider(provider)  # redis-py asks for it
        get_observability_instance().init(OTelConfig(metric_groups=REDIS_GROUPS))
        self.telemetry = Telemetry(
            meters=Meters(provider.get_meter(SCOPE), role),
            traces=self._traces(wanted, resource),
            address=address,
        )

    def _traces(self, wanted: Wanted, resource: Resource) -> quiet.Traces:
        if not wanted.endpoint:
            return quiet.Traces()
        ids = TaskIds()
        provider = TracerProvider(
            sampler=ParentBased(StepsAlways(wanted.sample_share)),
            resource=resource,
            id_generator=ids,
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_links=MOST_LINKS),
        )
        exporter = OTLPSpanExporter(endpoint=_url(wanted.endpoint, "traces"), timeout=EXPORT_S)
        every_ms = min(wanted.interval_s, EXPORT_S) * 1000
        provider.add_span_processor(BatchSpanProcessor(exporter, SPANS_WAITING, every_ms))
        self._closing.append(provider.shutdown)
        return Traces(provider.get_tracer(SCOPE), ids)

    def _serve(self, wanted: Wanted, role: str, member: str, readers: list[MetricReader]) -> str:
        """The endpoint for Prometheus. A port that is taken costs the endpoint, not the process."""
        if not wanted.prometheus_port:
            return ""
        port, registry = port_of(wanted.prometheus_port, role, member), CollectorRegistry()
        try:
            served: Any = start_http_server(port, addr=wanted.prometheus_host, registry=registry)
        except OSError as error:
            log.warning("telemetry.port_taken", host=wanted.prometheus_host, port=port, reason=str(error))
            return ""
        server: WSGIServer = served[0]
        readers.append(
            PrometheusMetricReader(
                registry=registry,
                scope_info_enabled=False,
                resource_attribute_filter=lambda key: key in LABELS,
            )
        )
        self._closing += [server.server_close, server.shutdown]
        return f"{wanted.prometheus_host}:{port}"

    def stop(self) -> None:
        """What is left is sent, if it can be within STOP_S. What is not sent then is lost."""
        thread = threading.Thread(target=self._close, name="telemetry-stop", daemon=True)
        thread.start()
        thread.join(STOP_S)
        if thread.is_alive():
            log.warning("telemetry.not_sent", waited_s=STOP_S)
        else:
            self._log.close()

    def _close(self) -> None:
        for close in reversed(self._closing):  # the spans first: metrics have been told before
            try:
                close()
            except Exception as error:  # noqa: BLE001 - reported; whatever the SDK raises, the others are closed too
                log.warning("telemetry.failed", reason=str(error))


def port_of(base: int, role: str, member: str) -> int:
    """The port of a process: the base is the learner's, the next the recycler's, then those of actor-0, actor-1, ..."""
    if role != "actor":
        return base + (role == "recycler")
    number = re.fullmatch(r"actor-(\d{1,4})", member)  # one named after its host has that host to itself
    return base + 2 + (int(number[1]) if number else 0)


def _url(endpoint: str, signal: str) -> str:
    return f"{endpoint.rstrip('/')}/v1/{signal}"
