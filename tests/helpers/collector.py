"""An OTLP collector in this process: takes http/protobuf, keeps what came, or refuses, or answers nothing at all."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


def attributes(pairs: Any) -> dict[str, Any]:
    """Name -> value of OTLP attributes."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@dataclass
class Told:
    """A span, and the process that told it."""

    span: Span
    resource: dict[str, Any]

    @property
    def attributes(self) -> dict[str, Any]:
        return attributes(self.span.attributes)

    @property
    def trace(self) -> str:
        return self.span.trace_id.hex()

    @property
    def id(self) -> str:
        return self.span.span_id.hex()

    @property
    def parent(self) -> str:
        return self.span.parent_span_id.hex()

    @property
    def links(self) -> list[tuple[str, str]]:
        return [(link.trace_id.hex(), link.span_id.hex()) for link in self.span.links]


@dataclass
class Collector:
    url: str = ""
    bodies: list[tuple[str, bytes]] = field(default_factory=list)
    """Path and decompressed body of every request."""

    @property
    def spans(self) -> list[Told]:
        told = []
        for path, body in list(self.bodies):
            if path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    about = attributes(resource.resource.attributes)
                    told += [Told(span, about) for scope in resource.scope_spans for span in scope.spans]
        return told

    def named(self, name: str) -> list[Told]:
        return [told for told in self.spans if told.span.name == name]

    @property
    def metrics(self) -> dict[tuple[str, str], Any]:
        """(service, metric) -> the metric as it was told last."""
        newest = {}
        for path, body in list(self.bodies):
            if path == "/v1/metrics":
                for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    service = attributes(resource.resource.attributes)["service.name"]
                    for scope in resource.scope_metrics:
                        newest |= {(service, metric.name): metric for metric in scope.metrics}
        return newest


@contextmanager
def collecting(*, stalled: bool = False) -> Iterator[Collector]:
    """A collector on a free port. ``stalled``: it takes every request and never answers."""
    collector, over = Collector(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if stalled:
                over.wait()
                return
            packed = self.headers.get("Content-Encoding") == "gzip"
            collector.bodies.append((self.path, gzip.decompress(body) if packed else body))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """The test's output is for the test."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield collector
    finally:
        over.set()
        server.shutdown()
        server.server_close()
