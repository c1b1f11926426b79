"""Every metric, span and attribute that a run tells, with unit, labels and meaning. docs/telemetry.md repeats this.

Units are UCUM. ``gen_ai.*`` are names of OpenTelemetry's conventions for generative AI, copied here because those are
still in development; all else is ``spark.*``. redis-py tells its own beside them (``REDIS_PREFIXES``).
"""

from __future__ import annotations

from typing import Final

from common.telemetry.metric import Metric, Origin, SpanName
from common.telemetry.metric_names import BATCHES, HEARTBEATS, MOMENTS, SERVER
from common.telemetry.span_names import END, GENERATE, ISSUE, STAGES, STEP, VERIFY

METRICS: Final[tuple[Metric, ...]] = (*HEARTBEATS, *BATCHES, *SERVER, *MOMENTS)
SPANS: Final[tuple[SpanName, ...]] = (ISSUE, GENERATE, VERIFY, END, STEP, *STAGES.values())

SCOPE: Final = "spark"
"""The instrumentation scope of all of them."""
RUN: Final = "spark.run"
ROLE: Final = "spark.role"
MEMBER: Final = "spark.member"
LABELS: Final = (RUN, ROLE, MEMBER)
RESOURCE: Final = ("service.name", "service.instance.id", "host.name", *LABELS)
"""Attributes of the process. Prometheus has ``LABELS`` on every metric, the rest in ``target_info``."""

REDIS_PREFIXES: Final = ("db.client.", "redis.client.")
"""Metrics of redis-py itself, whose names are its own."""


def of_role(role: str, origin: Origin) -> tuple[Metric, ...]:
    """The metrics that a process of this role tells, of those with this origin."""
    return tuple(metric for metric in METRICS if metric.origin == origin and role in metric.roles)
