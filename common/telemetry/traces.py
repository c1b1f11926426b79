"""The spans of a process. The trace of a task has its uid as trace id: who knows the one knows the other.

Message brokers are crossed by links and parents in ``Task.trace``; nothing is kept open while a message travels, so a
process that dies leaves no span that never ends. A span is told when it is over, as the texts that messages carry, and
made into what a collector takes by the thread that sends it: a small run has hundreds a second, and the loops that tell
them have other things to do.
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
    TEMPLATE,
    UID,
    VERSION,
)

_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
UNSAMPLED: Final = "-00"
"""How the context of what is not told ends."""
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
    """What is over. Contexts are ``traceparent`` texts; what is none counts as none."""

    name: str
    context: str
    """Its own; empty where nobody refers to it."""
    parent: str
    start_ns: int
    """Unix time."""
    end_ns: int
    attributes: Mapping[str, Attribute]
    links: Sequence[str]


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
        """``tell`` sends a span if its context, or its parent's, is sampled.

        ``share``: of the tasks, by trace id, so that all attempts of one are told or none; steps always are.
        """
        self._tell = tell
        self._bound = TraceIdRatioBased(share).bound
        self._random = random.Random()  # not the module's, which a run seeds: ids would repeat

    def issue(self, tasks: Sequence[Task], policy_version: int, source: str = "") -> Issue:
        begun = time.time_ns()
        traced = [replace(task, trace=str(self._of_task(task))) for task in tasks]

        def told() -> None:
            for before, task in zip(tasks, traced, strict=True):
                self._tell(_issued(task, before.trace, policy_version, source, begun))

        return Issue(tasks=traced, told=told)

    def root(self) -> str:
        return str(Context(self._random.randbytes(16), self._random.randbytes(8), sampled=True))

    def span(
        self,
        name: SpanName,
        attributes: Mapping[str, Attribute],
        *,
        start_s: float,
        end_s: float,
        parent: str = "",
        context: str = "",
        links: Sequence[str] = (),
    ) -> None:
        start_ns, end_ns = int(start_s * 1e9), int(end_s * 1e9)
        self._tell(
            Span(
                name=name.name,
                context=context,
                parent=parent,
                start_ns=start_ns,
                end_ns=end_ns,
                attributes=attributes,
                links=links,
            )
        )

    def _of_task(self, task: Task) -> Context:
        """Of its issue. A task that is issued again stays in its trace."""
        span_id = self._random.randbytes(8)
        if before := context_of(task.trace):
            return Context(before.trace_id, span_id, before.sampled)
        trace_id = bytes.fromhex(task.uid) if _HEX.fullmatch(task.uid) else self._random.randbytes(16)
        return Context(trace_id, span_id, int.from_bytes(trace_id) & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound)


def _issued(task: Task, before: str, policy_version: int, source: str, at: int) -> Span:
    about: dict[str, Attribute] = {
        UID: task.uid,
        OBJECTIVE_OF: task.objective,
        VERSION: policy_version,
        ATTEMPT: task.attempt,
        POSITION: task.position,
        TEMPLATE: task.template,
    }
    return Span(
        name=ISSUE.name, context=task.trace, parent=before, start_ns=at, end_ns=at, attributes=about, links=[source]
    )
