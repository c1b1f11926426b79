"""What a metric and a span are: the rows of the tables that ``common.telemetry.names`` puts together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

Role = Literal["learner", "recycler", "actor"]
Kind = Literal["counter", "gauge", "histogram"]
Origin = Literal["heartbeat", "batch", "server", "moment"]
"""Where a figure comes from: the newest heartbeat, the metrics of a batch, the server, or the moment it happens."""

EVERY: Final[tuple[Role, ...]] = ("learner", "recycler", "actor")
LEARNER: Final[tuple[Role, ...]] = ("learner",)
RECYCLER: Final[tuple[Role, ...]] = ("recycler",)
ACTOR: Final[tuple[Role, ...]] = ("actor",)

SECONDS: Final = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
VERSIONS: Final = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
TOKENS: Final = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0)
"""Upper bounds of histogram buckets; those of tokens are the convention's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """``field``: a pattern of the heartbeat's or the batch's keys; its named groups are labels."""

    name: str
    kind: Kind
    unit: str
    roles: tuple[Role, ...]
    origin: Origin
    meaning: str
    labels: tuple[str, ...] = ()
    field: str = ""
    bounds: tuple[float, ...] = ()

    def match(self, key: str) -> dict[str, str] | None:
        """The labels of a key that this metric tells; None for another key."""
        found = re.fullmatch(self.field, key) if self.field else None
        return found.groupdict() if found else None

    @property
    def prometheus(self) -> str:
        """What Prometheus calls it: no dots, the unit spelled out, ``_total`` after a counter."""
        unit = {"s": "_seconds", "By": "_bytes", "MiBy": "_mebibytes"}.get(self.unit, "")
        return self.name.replace(".", "_") + unit + ("_total" if self.kind == "counter" else "")


def beat(name: str, kind: Kind, unit: str, roles: tuple[Role, ...], field: str, meaning: str) -> Metric:
    """Of a field of the heartbeat, which holds totals since the process began."""
    return Metric(
        name=name,
        kind=kind,
        unit=unit,
        roles=roles,
        origin="heartbeat",
        meaning=meaning,
        labels=tuple(re.compile(field).groupindex),
        field=field,
    )


def batch(name: str, kind: Kind, unit: str, field: str, meaning: str, bounds: tuple[float, ...] = ()) -> Metric:
    """Of a figure that the learner records for every batch; a counter's is what the batch adds."""
    return Metric(
        name=name,
        kind=kind,
        unit=unit,
        roles=LEARNER,
        origin="batch",
        meaning=meaning,
        labels=tuple(re.compile(field).groupindex),
        field=field,
        bounds=bounds,
    )


def server(name: str, unit: str, meaning: str, *labels: str) -> Metric:
    """Of what the learner reads from the server whenever somebody asks."""
    return Metric(
        name=name, kind="gauge", unit=unit, roles=LEARNER, origin="server", meaning=meaning, labels=tuple(labels)
    )


def moment(
    name: str, unit: str, roles: tuple[Role, ...], bounds: tuple[float, ...], meaning: str, *labels: str
) -> Metric:
    """Of what is told when it happens."""
    return Metric(
        name=name,
        kind="histogram",
        unit=unit,
        roles=roles,
        origin="moment",
        meaning=meaning,
        labels=tuple(labels),
        bounds=bounds,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanName:
    """A row of the table of spans."""

    name: str
    roles: tuple[Role, ...]
    trace: str
    """Whose trace it is in."""
    links: str
    attributes: tuple[str, ...]
    meaning: str
