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
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, start_http_server
from redis.observability import OTelConfig, get_observability_instance
from redis.observability.config import MetricGroup

from common.settings import Telemetry as Wanted
from common.telemetry import quiet
from common.telemetry.later import Later, LaterProvider
from common.telemetry.meters import Meters
from common.telemetry.names import MEMBER, ROLE, RUN, SCOPE
from common.telemetry.quiet import Telemetry
from common.telemetry.reader import ScrapedReader
from common.telemetry.sdk_log import sdk_log
from common.telemetry.sender import SpanSender
from common.telemetry.traces import Traces

log = structlog.get_logger()

EXPORT_S: Final = 5.0
"""An export that takes longer is given up; its spans are lost, its metrics come with the next."""
STOP_S: Final = 3.0
REDIS_GROUPS: Final = [MetricGroup.RESILIENCY, MetricGroup.COMMAND]
"""Not those of the connection pool, which count four times per command, nor those of streams, which count every entry
that is read: they cost more than the command does. How long entries wait is told by ``spark.stream`` and the traces."""
REDIS_COMMANDS: Final = View(
    instrument_name="db.client.operation.duration", attribute_keys={"db.operation.name", "error.type"}
)
"""Without what is the same for all commands of a process: the library and its version, the server's address."""
LOOKS: Final = ["XREADGROUP", "XREAD", "XREVRANGE", "HGETALL"]
"""Not timed: a process looks for news all the time, or waits for them, and would hide how long its writes take."""


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
        later = Later()
        address, reader = self._reader(wanted, role, member, later)
        provider = MeterProvider([reader] if reader else [], resource, shutdown_on_exit=False, views=[REDIS_COMMANDS])
        self._closing.append(lambda: provider.shutdown(STOP_S * 1000))
        metrics.set_meter_provider(LaterProvider(provider, later))  # redis-py asks for it
        get_observability_instance().init(OTelConfig(metric_groups=REDIS_GROUPS, exclude_commands=LOOKS))
        self.telemetry = Telemetry(
            meters=Meters(provider.get_meter(SCOPE), role, later),
            traces=self._traces(wanted, resource),
            address=address,
        )

    def _traces(self, wanted: Wanted, resource: Resource) -> quiet.Traces:
        if not wanted.endpoint:
            return quiet.Traces()
        url, every_s = _url(wanted.endpoint, "traces"), min(wanted.interval_s, EXPORT_S)
        sender = SpanSender(url, resource, every_s=every_s, timeout_s=EXPORT_S)
        self._closing.append(sender.close)
        return Traces(sender.send, wanted.sample_share)

    def _reader(self, wanted: Wanted, role: str, member: str, later: Later) -> tuple[str, MetricReader | None]:
        """The address that Prometheus scrapes, empty for none; and the one reader of all metrics."""
        endpoint = _url(wanted.endpoint, "metrics")
        exporter = OTLPMetricExporter(endpoint=endpoint, timeout=EXPORT_S) if wanted.endpoint else None
        registry = CollectorRegistry()
        address = self._serve(wanted, role, member, registry)
        if not (address or exporter):
            return "", None
        return address, ScrapedReader(registry, exporter, wanted.interval_s, later.settle)

    def _serve(self, wanted: Wanted, role: str, member: str, registry: CollectorRegistry) -> str:
        """The endpoint for Prometheus. A port that is taken costs the endpoint, not the process."""
        if not wanted.prometheus_port:
            return ""
        port = port_of(wanted.prometheus_port, role, member)
        try:
            served: Any = start_http_server(port, addr=wanted.prometheus_host, registry=registry)
        except OSError as error:
            log.warning("telemetry.port_taken", host=wanted.prometheus_host, port=port, reason=str(error))
            return ""
        server: WSGIServer = served[0]
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
