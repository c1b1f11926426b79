"""Spans through OpenTelemetry. The trace of a task has its uid as trace id: who knows the one knows the other.

Message brokers are crossed by links and parents in ``Task.trace``; nothing is kept open while a message travels, so a
process that dies leaves no span that never ends. A span is told when it is over, as a finished span of the SDK: its
tracer, which is for spans that stay open, takes three to eight times as long, and a small run has hundreds a second.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags

from common.messages import Task
from common.telemetry import quiet
from common.telemetry.metric import SpanName
from common.telemetry.names import SCOPE
from common.telemetry.quiet import Attribute, Issue
from common.telemetry.span_names import (
    ATTEMPT,
    END,
    GENERATE,
    ISSUE,
    OBJECTIVE_OF,
    POSITION,
    STEP,
    TEMPLATE,
    UID,
    VERSION,
)

_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_HEX: Final = re.compile(r"[0-9a-f]{32}")
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_UNSAMPLED: Final = TraceFlags(TraceFlags.DEFAULT)
_KINDS: Final = {ISSUE.name: SpanKind.PRODUCER, GENERATE.name: SpanKind.CONSUMER, END.name: SpanKind.CONSUMER}


class Traces(quiet.Traces):
    """Told by one thread, the main loop's; sent by the processor's own."""

    def __init__(self, processor: SpanProcessor, resource: Resource, share: float = 1.0) -> None:
        """``share``: of the tasks, by trace id, so that all attempts of one are told or none; steps always are."""
        self._processor = processor
        self._resource = HashedOnce(resource)
        self._scope = InstrumentationScope(SCOPE)
        self._bound = TraceIdRatioBased(share).bound
        self._random = random.Random()  # not the module's, which a run seeds: ids would repeat

    def issue(self, tasks: Sequence[Task], policy_version: int, source: str = "") -> Issue:
        begun = time.time_ns()
        spans = [self._issue(task, policy_version, source, begun) for task in tasks]
        traced = [replace(task, trace=text_of(span.context)) for task, span in zip(tasks, spans, strict=True)]

        def told() -> None:
            for span in spans:
                self._processor.on_end(span)

        return Issue(tasks=traced, told=told)

    def _issue(self, task: Task, policy_version: int, source: str, at: int) -> ReadableSpan:
        """A task that is issued again stays in its trace."""
        about: dict[str, Attribute] = {
            UID: task.uid,
            OBJECTIVE_OF: task.objective,
            VERSION: policy_version,
            ATTEMPT: task.attempt,
            POSITION: task.position,
            TEMPLATE: task.template,
        }
        trace_id = int(task.uid, 16) if _HEX.fullmatch(task.uid) else 0
        return self._over(ISSUE, about, task.trace, [source], at, at, trace_id)

    def span(
        self,
        name: SpanName,
        attributes: Mapping[str, Attribute],
        *,
        start_s: float,
        end_s: float,
        parent: str = "",
        links: Sequence[str] = (),
    ) -> str:
        span = self._over(name, attributes, parent, links, int(start_s * 1e9), int(end_s * 1e9))
        self._processor.on_end(span)
        return text_of(span.context)

    def _over(
        self,
        name: SpanName,
        attributes: Mapping[str, Attribute],
        parent: str,
        links: Sequence[str],
        start_ns: int,
        end_ns: int,
        trace_id: int = 0,
    ) -> ReadableSpan:
        """A finished span. ``trace_id``: of the trace that it begins where it has no parent, 0 for any."""
        above = context_of(parent)
        return ReadableSpan(
            name.name,
            context=self._below(above, name, trace_id),
            parent=above,
            resource=self._resource,
            attributes=attributes,
            links=[Link(context) for text in links if (context := context_of(text)) and context.trace_flags.sampled],
            kind=_KINDS.get(name.name, SpanKind.INTERNAL),
            start_time=start_ns,
            end_time=end_ns,
            instrumentation_scope=self._scope,
        )

    def _below(self, parent: SpanContext | None, name: SpanName, trace_id: int) -> SpanContext:
        """The context of a new span: sampled as its parent is, or by its trace id."""
        if parent:
            trace_id, sampled = parent.trace_id, parent.trace_flags.sampled
        else:
            trace_id = trace_id or self._random.getrandbits(128) or 1
            sampled = name is STEP or trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound
        span_id = self._random.getrandbits(64) or 1
        return SpanContext(trace_id, span_id, is_remote=False, trace_flags=_SAMPLED if sampled else _UNSAMPLED)


class HashedOnce(Resource):
    """The SDK's own writes JSON whenever its hash is asked for, which is once for every span that is sent."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)


def text_of(context: SpanContext) -> str:
    """A W3C ``traceparent``."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def context_of(traceparent: str) -> SpanContext | None:
    """None for a text that is no context: it came from a message."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if not found:
        return None
    flags = _SAMPLED if int(found[3], 16) & TraceFlags.SAMPLED else _UNSAMPLED
    context = SpanContext(int(found[1], 16), int(found[2], 16), is_remote=True, trace_flags=flags)
    return context if context.is_valid else None
