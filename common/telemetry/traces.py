"""The spans of a process. The trace of a task has its uid as trace id: who knows the one knows the other.

Message brokers are crossed by links and parents in ``Task.trace``; nothing is kept open while a message travels, so a
process that dies leaves no span that never ends. A span is told when it is over: the SDK's tracer, which is for spans
that stay open, takes several times as long, and a small run has hundreds a second.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import TraceFlags

from common.messages import Task
from common.telemetry import quiet
from common.telemetry.metric import SpanName
from common.telemetry.quiet import Attribute, Issue
from common.telemetry.span_names import (
    ATTEMPT,
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


@dataclass(frozen=True, slots=True)
class Context:
    """Which span, of which trace."""

    trace_id: bytes
    span_id: bytes
    sampled: bool

    def __str__(self) -> str:
        """A W3C ``traceparent``."""
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-{int(self.sampled):02x}"


@dataclass(slots=True, kw_only=True)
class Span:
    """What is over."""

    name: str
    context: Context
    parent: Context | None
    start_ns: int
    """Unix time."""
    end_ns: int
    attributes: Mapping[str, Attribute]
    links: Sequence[Context]


def context_of(traceparent: str) -> Context | None:
    """None for a text that is no context: it came from a message."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if not found:
        return None
    trace_id, span_id, flags = (bytes.fromhex(part) for part in found.groups())
    return Context(trace_id, span_id, bool(flags[0] & TraceFlags.SAMPLED)) if any(trace_id) and any(span_id) else None


class Traces(quiet.Traces):
    """Told by one thread, the main loop's."""

    def __init__(self, tell: Callable[[Span], None], share: float = 1.0) -> None:
        """``tell`` sends a span. ``share``: of the tasks, by trace id, so that all attempts of one are told or none;
        steps always are."""
        self._tell = tell
        self._bound = TraceIdRatioBased(share).bound
        self._random = random.Random()  # not the module's, which a run seeds: ids would repeat

    def issue(self, tasks: Sequence[Task], policy_version: int, source: str = "") -> Issue:
        begun, traced, spans = time.time_ns(), [], []
        for task in tasks:
            context, span = self._issue(task, policy_version, source, begun)
            traced.append(replace(task, trace=str(context)))
            spans += [span] if span else []

        def told() -> None:
            for span in spans:
                self._tell(span)

        return Issue(tasks=traced, told=told)

    def _issue(self, task: Task, policy_version: int, source: str, at: int) -> tuple[Context, Span | None]:
        """A task that is issued again stays in its trace."""
        about: dict[str, Attribute] = {
            UID: task.uid,
            OBJECTIVE_OF: task.objective,
            VERSION: policy_version,
            ATTEMPT: task.attempt,
            POSITION: task.position,
            TEMPLATE: task.template,
        }
        trace_id = bytes.fromhex(task.uid) if _HEX.fullmatch(task.uid) else b""
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
        context, span = self._over(name, attributes, parent, links, int(start_s * 1e9), int(end_s * 1e9))
        if span:
            self._tell(span)
        return str(context)

    def _over(
        self,
        name: SpanName,
        attributes: Mapping[str, Attribute],
        parent: str,
        links: Sequence[str],
        start_ns: int,
        end_ns: int,
        trace_id: bytes = b"",
    ) -> tuple[Context, Span | None]:
        """The span, if it is sampled. ``trace_id``: of the trace that it begins where it has no parent."""
        above = context_of(parent)
        context = self._below(above, name, trace_id)
        if not context.sampled:
            return context, None
        return context, Span(
            name=name.name,
            context=context,
            parent=above,
            start_ns=start_ns,
            end_ns=end_ns,
            attributes=attributes,
            links=[one for text in links if (one := context_of(text)) and one.sampled],
        )

    def _below(self, parent: Context | None, name: SpanName, trace_id: bytes) -> Context:
        """The context of a new span: sampled as its parent is, or by its trace id."""
        if parent:
            trace_id, sampled = parent.trace_id, parent.sampled
        else:
            trace_id = trace_id or self._random.randbytes(16)
            sampled = name is STEP or int.from_bytes(trace_id) & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound
        return Context(trace_id, self._random.randbytes(8), sampled)
