"""What the parts of a process see of telemetry. These classes tell nothing: they are telemetry that is off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.messages import Task
from common.telemetry.metric import Metric, SpanName

Said = Callable[[], Mapping[str, Any]]
"""The newest heartbeat of this process."""
Attribute = str | int | float
Reading = tuple[str, Mapping[str, str], float]
"""Name of a metric, its labels, its value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """Tasks about to be put on a stream; ``told`` once they are there, so that no span tells of what was refused."""

    tasks: Sequence[Task]
    told: Callable[[], None] = lambda: None


class Meters:
    """The metrics of a process."""

    def follow(self, said: Said) -> None:
        """Tell what the heartbeats say, whenever somebody asks."""

    def follow_server(self, read: Callable[[], Sequence[Reading]]) -> None:
        """Tell what ``read`` finds on the server, whenever somebody asks."""

    def batch(self, metrics: Mapping[str, Any]) -> None:
        """Tell the figures of a batch of the learner."""

    def record(self, metric: Metric, value: float, labels: Mapping[str, str] | None = None) -> None:
        """One more value of a histogram."""


class Traces:
    """The spans of a process. Times are Unix seconds; contexts are W3C ``traceparent`` texts, empty for none."""

    def issue(self, tasks: Sequence[Task], policy_version: int, source: str = "") -> Issue:
        """The tasks with their ``trace`` set. ``source``: context of the group whose answers they show."""
        return Issue(tasks=tasks)

    def root(self) -> str:
        """A context for a span that begins a trace of its own, and that others refer to."""
        return ""

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
        """Tell of something that is over. Without ``parent`` it begins a trace. ``attributes`` must not change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    meters: Meters
    traces: Traces
    on: bool = True
    address: str = ""
    """HOST:PORT where Prometheus finds the metrics of this process; empty when it does not."""

    @property
    def announced(self) -> dict[str, str]:
        """For the heartbeat."""
        return {"metrics_address": self.address} if self.address else {}


QUIET = Telemetry(meters=Meters(), traces=Traces(), on=False)
