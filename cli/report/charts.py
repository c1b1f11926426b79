"""What a chart is: data for ``plots``, which draws it, and for ``values``, which tells it in words and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cli.report.series import Curve
from common.settings import Learner, Staleness

Unit = Literal["share", "number"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Line:
    label: str
    values: Sequence[float] | Curve
    """One per x; NaN where nothing was measured."""
    colour: str
    """A name of the palette."""
    dashed: bool = False
    smoothed: bool = True
    """Drawn as a moving mean over the faint raw line; otherwise just as it is."""

    @property
    def measured(self) -> bool:
        return bool(np.isfinite(np.asarray(self.values, dtype=np.float64)).any())


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A level that matters: a bound or an alarm."""

    level: float
    label: str
    colour: str = "quiet"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panel:
    """One pair of axes. ``low`` and ``high`` are limits that data and marks may only widen (None: from the data)."""

    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    unit: Unit = "number"
    name: str = ""
    """Written above the axes, where a chart has two of them."""
    low: float | None = None
    high: float | None = None
    log: bool = False
    stacked: bool = False
    height: float = 1.0
    """Relative to the other panels of the chart."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chart:
    slug: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    ages: tuple[float, ...] | None = None
    """x of a chart over the age of what is judged, in versions. None: over the optimizer steps of the run."""

    @property
    def lines(self) -> list[Line]:
        return [line for panel in self.panels for line in panel.lines if line.measured]

    @property
    def x_name(self) -> str:
        return "optimizer step" if self.ages is None else "age of the answer, in versions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The settings that the curves are read against; defaults hold while config.toml is missing."""

    staleness: Staleness | None = None
    learner: Learner | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    slug: str
    title: str
    charts: tuple[Chart, ...] = field(default_factory=tuple)
