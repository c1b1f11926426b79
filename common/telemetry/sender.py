"""Sends finished spans to a collector: in batches, from a thread of its own, by the SDK's processor and exporter."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags
from opentelemetry.util.types import AttributeValue

from common.telemetry.names import SCOPE
from common.telemetry.span_names import END, GENERATE, ISSUE
from common.telemetry.traces import UNSAMPLED, Context, Span, context_of

WAITING: Final = 8192
"""Spans; the oldest give way."""
_SAMPLED: Final = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
_OURS: Final = int(otlp.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK)
_REMOTE: Final = _OURS | int(otlp.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK)
_KINDS: Final = {
    ISSUE.name: otlp.Span.SPAN_KIND_PRODUCER,
    GENERATE.name: otlp.Span.SPAN_KIND_CONSUMER,
    END.name: otlp.Span.SPAN_KIND_CONSUMER,
}


class SpanSender:
    """One process's. Spans of a collector that does not answer are lost."""

    def __init__(self, url: str, resource: Resource, *, every_s: float, timeout_s: float) -> None:
        """``url``: of the traces. An export that takes longer than ``timeout_s`` is given up."""
        self._processor = BatchSpanProcessor(_Exporter(url, resource, timeout_s), WAITING, every_s * 1000)

    def send(self, span: Span) -> None:
        """Soon, if it is sampled; returns at once."""
        if not (span.context or span.parent).endswith(UNSAMPLED):
            self._processor.on_end(_Queued(span))

    def close(self) -> None:
        """Sends what waits."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]


class _Queued(ReadableSpan):
    """For the processor, which asks for nothing of a span but a context that is sampled."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self._context = _SAMPLED


class _Exporter(OTLPSpanExporter):
    """The SDK's, with its settings of the environment (headers, certificates), but for its encoder.

    That goes by way of messages, which protobuf copies into one another. It takes dictionaries three times as quickly,
    though its types do not say so.
    """

    def __init__(self, url: str, resource: Resource, timeout_s: float) -> None:
        super().__init__(endpoint=url, timeout=timeout_s)
        self._resource = {"attributes": _key_values(resource.attributes)}
        self._scope = {"name": SCOPE}
        self._random = random.Random()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        fields = [fields_of(queued.span, self._random) for queued in spans if isinstance(queued, _Queued)]
        told: Any = {"resource": self._resource, "scope_spans": [{"scope": self._scope, "spans": fields}]}
        sent = self._client.export(ExportTraceServiceRequest(resource_spans=[told]).SerializeToString())
        return SpanExportResult.SUCCESS if sent.success else SpanExportResult.FAILURE


def fields_of(span: Span, ids: random.Random) -> dict[str, Any]:
    """Of OTLP's ``Span``. ``ids`` for one that nobody refers to."""
    parent, own = context_of(span.parent), context_of(span.context)
    if own is None:
        own = Context(parent.trace_id if parent else ids.randbytes(16), ids.randbytes(8), sampled=True)
    links = [found for text in span.links if (found := context_of(text)) and found.sampled]
    return {
        "trace_id": own.trace_id,
        "span_id": own.span_id,
        "parent_span_id": parent.span_id if parent else b"",
        "flags": _REMOTE if parent else _OURS,
        "name": span.name,
        "kind": _KINDS.get(span.name, otlp.Span.SPAN_KIND_INTERNAL),
        "start_time_unix_nano": span.start_ns,
        "end_time_unix_nano": span.end_ns,
        "attributes": _key_values(span.attributes),
        "links": [{"trace_id": one.trace_id, "span_id": one.span_id, "flags": _REMOTE} for one in links],
    }


def _key_values(attributes: Mapping[str, AttributeValue]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _any_value(value)} for key, value in attributes.items()]


def _any_value(value: AttributeValue) -> dict[str, Any]:
    if isinstance(value, str):
        return {"string_value": value}
    if isinstance(value, int):
        return {"int_value": value}
    return {"double_value": value} if isinstance(value, float) else {"string_value": str(value)}
