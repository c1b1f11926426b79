"""Spans through OpenTelemetry. The trace of a task has its uid as trace id: who knows the one knows the other.

Message brokers are crossed by links and parents in ``Task.trace``; nothing is kept open while a message travels, so a
process that dies leaves no span that never ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, Span, SpanKind, Tracer, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes

from common.messages import Task
from common.telemetry import quiet
from common.telemetry.metric import SpanName
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

_W3C: Final = TraceContextTextMapPropagator()
_HEX: Final = re.compile(r"[0-9a-f]{32}")
_KINDS: Final = {ISSUE.name: SpanKind.PRODUCER, GENERATE.name: SpanKind.CONSUMER, END.name: SpanKind.CONSUMER}


class TaskIds(RandomIdGenerator):
    """Trace ids that can be asked for. Spans that begin a trace are made by one thread, the main loop's."""

    def __init__(self) -> None:
        self.next: int | None = None

    def generate_trace_id(self) -> int:
        return self.next or super().generate_trace_id()


class StepsAlways(Sampler):
    """A share of the tasks, by their ids, so that all attempts of one are told or none; and every step."""

    def __init__(self, share: float) -> None:
        self._tasks = TraceIdRatioBased(share)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        sampler = ALWAYS_ON if name == STEP.name else self._tasks
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"steps, and of tasks {self._tasks.get_description()}"


class Traces(quiet.Traces):
    def __init__(self, tracer: Tracer, ids: TaskIds) -> None:
        self._tracer = tracer
        self._ids = ids

    def issue(self, tasks: Sequence[Task], policy_version: int, source: str = "") -> Issue:
        spans = [self._issue(task, policy_version, source) for task in tasks]
        traced = [replace(task, trace=context_of(span)) for task, span in zip(tasks, spans, strict=True)]

        def told() -> None:
            for span in spans:
                span.end()

        return Issue(tasks=traced, told=told)

    def _issue(self, task: Task, policy_version: int, source: str) -> Span:
        """A task that is issued again stays in its trace."""
        about: dict[str, Attribute] = {
            UID: task.uid,
            OBJECTIVE_OF: task.objective,
            VERSION: policy_version,
            ATTEMPT: task.attempt,
            POSITION: task.position,
            TEMPLATE: task.template,
        }
        self._ids.next = int(task.uid, 16) if _HEX.fullmatch(task.uid) else None
        try:
            return self._start(ISSUE, about, task.trace, [source])
        finally:
            self._ids.next = None

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
        span = self._start(name, attributes, parent, links, start_s)
        span.end(_nanoseconds(end_s))
        return context_of(span)

    def _start(
        self,
        name: SpanName,
        attributes: Mapping[str, Attribute],
        parent: str,
        links: Sequence[str],
        start_s: float | None = None,
    ) -> Span:
        return self._tracer.start_span(
            name.name,
            context=_context(parent),
            kind=_KINDS.get(name.name, SpanKind.INTERNAL),
            attributes=attributes,
            links=[link for text in links if (link := _link(text))],
            start_time=None if start_s is None else _nanoseconds(start_s),
        )


def context_of(span: Span) -> str:
    """The ``traceparent`` of a span."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier.get("traceparent", "")


def _context(traceparent: str) -> Context:
    """Empty for a text that is no context: it came from a message."""
    return _W3C.extract({"traceparent": traceparent}, Context())


def _link(traceparent: str) -> Link | None:
    """To a span that is told; a link to one that is not would lead nowhere."""
    context = trace.get_current_span(_context(traceparent)).get_span_context()
    return Link(context) if context.is_valid and context.trace_flags.sampled else None


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
