"""Which curves the report shows, and how to read them. Data only; ``plots`` draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from cli.report.history import History
from cli.report.series import Curve, ratio, shares
from common.messages import OBJECTIVES
from common.settings import Learner, Staleness

Unit = Literal["share", "number"]
COLOURS: Final[Mapping[str, str]] = dict(zip(OBJECTIVES, ("blue", "orange", "green", "purple"), strict=True))
KL_ALARM: Final = 0.1
RATIO_ALARM: Final = 10.0
KL_FLOOR: Final = 1e-7
"""Below it the estimate is rounding."""
STAGES: Final = (("wait_for_groups", "orange"), ("step", "blue"), ("publish", "green"), ("checkpoint", "purple"))
ENDINGS: Final = (("trained", "blue"), ("filtered", "orange"), ("dropped_stale", "alarm"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Line:
    label: str
    values: Sequence[float] | Curve
    """One per step; NaN where nothing was measured."""
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

    @property
    def lines(self) -> list[Line]:
        return [line for panel in self.panels for line in panel.lines if line.measured]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The settings that the curves are read against; defaults hold while config.toml is missing."""

    staleness: Staleness | None = None
    learner: Learner | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    title: str
    charts: tuple[Chart, ...] = field(default_factory=tuple)


def sections(history: History, bounds: Bounds) -> tuple[Section, ...]:
    return (
        Section(title="Learning", charts=(_reward(history), _judge(history), _reflection(history))),
        Section(title="Off-policy", charts=(_staleness(history, bounds), _divergence(history), _ess(history))),
        Section(title="Optimisation", charts=(_entropy(history), _unreadable(history), _gradient(history, bounds))),
        Section(title="Throughput", charts=(_speed(history), _time(history), _endings(history))),
    )


def _by_objective(history: History, metric: str) -> tuple[Line, ...]:
    return tuple(
        Line(label=objective, values=history.column(f"{metric}/{objective}"), colour=COLOURS[objective])
        for objective in OBJECTIVES
    )


def _reward(history: History) -> Chart:
    return Chart(
        slug="reward",
        title="Reward by objective",
        caption="Mean reward of every group that arrived, filtered ones included; all four should rise, and a judge "
        "reward at 50 % is guessing.",
        panels=(Panel(lines=_by_objective(history, "reward"), unit="share", low=0, high=1),),
    )


def _judge(history: History) -> Chart:
    lines = (
        Line(label="accepts right (TPR)", values=history.column("judge/tpr"), colour="green"),
        Line(label="rejects wrong (TNR)", values=history.column("judge/tnr"), colour="purple"),
        Line(label="pointwise reward", values=history.column("reward/pointwise"), colour="orange"),
    )
    return Chart(
        slug="judge",
        title="The judge, both ways",
        caption="A judge that learns raises both rates; one up and the other down means that it just says yes or no.",
        panels=(Panel(lines=lines, unit="share", low=0, high=1),),
    )


def _reflection(history: History) -> Chart:
    lines = (
        Line(label="wrong answers fixed", values=history.column("reflect/fixed"), colour="purple"),
        Line(label="right answers kept", values=history.column("reflect/kept"), colour="green"),
    )
    return Chart(
        slug="reflection",
        title="Reflection",
        caption="Share of shown wrong answers that become right, and of right ones that stay right; fixing must not "
        "cost keeping.",
        panels=(Panel(lines=lines, unit="share", low=0, high=1),),
    )


def _staleness(history: History, bounds: Bounds) -> Chart:
    lines = (
        Line(label="tokens, mean", values=history.column("staleness"), colour="blue"),
        Line(label="tokens, max", values=history.column("staleness_max"), colour="blue", dashed=True, smoothed=False),
        Line(label="content, mean", values=history.column("content_staleness"), colour="orange"),
        Line(
            label="content, max",
            values=history.column("content_staleness_max"),
            colour="orange",
            dashed=True,
            smoothed=False,
        ),
    )
    marks = () if bounds.staleness is None else _bounds_of(bounds.staleness)
    return Chart(
        slug="staleness",
        title="Staleness of trained groups",
        caption="Optimizer steps between sampling (tokens) or writing what is judged (content) and training; no dashed "
        "line may cross the bound of its colour.",
        panels=(Panel(lines=lines, marks=marks, low=0, high=1),),
    )


def _bounds_of(staleness: Staleness) -> tuple[Mark, ...]:
    tokens, content = staleness.max_staleness, staleness.content_bound
    if tokens == content:
        return (Mark(level=tokens, label=f"both bounds {tokens}"),)
    return (
        Mark(level=tokens, label=f"token bound {tokens}", colour="blue"),
        Mark(level=content, label=f"content bound {content}", colour="orange"),
    )


def _divergence(history: History) -> Chart:
    divergence = np.maximum(history.column("kl"), KL_FLOOR)
    kl = Line(label="KL", values=divergence, colour="green")
    largest = Line(label="largest ratio", values=history.column("ratio_max"), colour="purple")
    kl_alarm = Mark(level=KL_ALARM, label=f"alarm {KL_ALARM:g}", colour="alarm")
    ratio_alarm = Mark(level=RATIO_ALARM, label=f"alarm {RATIO_ALARM:g}", colour="alarm")
    return Chart(
        slug="divergence",
        title="Distance from the behaviour policy",
        caption="How far the policy moved from the one that sampled: KL(behaviour || current) over all tokens, and the "
        "single token that moved most; both belong well below their alarms.",
        panels=(
            Panel(lines=(kl,), marks=(kl_alarm,), log=True, high=0.3, name="KL, nats per token"),
            Panel(lines=(largest,), marks=(ratio_alarm,), log=True, low=1.0, high=20.0, name="largest ratio"),
        ),
    )


def _ess(history: History) -> Chart:
    return Chart(
        slug="ess",
        title="Effective sample size",
        caption="Share of the tokens that carry the update after weighting by ratios: 100 % is on-policy, a fall "
        "means that few tokens decide.",
        panels=(Panel(lines=_by_objective(history, "ess"), unit="share", low=0.98, high=1.0),),
    )


def _entropy(history: History) -> Chart:
    return Chart(
        slug="entropy",
        title="Entropy by objective",
        caption="Mean entropy of the sampled tokens, in nats; it falls as the model grows sure, and an early fall to 0 "
        "ends exploration.",
        panels=(Panel(lines=_by_objective(history, "entropy"), low=0),),
    )


def _unreadable(history: History) -> Chart:
    return Chart(
        slug="no-answer",
        title="Completions without an answer",
        caption="Share in which the verifier found nothing to score; they count as wrong, so a rise here hides in the "
        "reward.",
        panels=(Panel(lines=_by_objective(history, "no_answer"), unit="share", low=0, high=0.05),),
    )


def _gradient(history: History, bounds: Bounds) -> Chart:
    norm = Line(label="gradient norm", values=history.column("grad_norm"), colour="blue")
    rate = Line(label="learning rate", values=history.column("lr"), colour="orange", smoothed=False)
    clip = None if bounds.learner is None else bounds.learner.grad_clip
    marks = () if clip is None else (Mark(level=clip, label=f"clipped to {clip:g}"),)
    return Chart(
        slug="gradient",
        title="Gradient norm and learning rate",
        caption="The norm before clipping, and the step size it is multiplied with; single spikes are clipped away, a "
        "lasting rise is trouble.",
        panels=(
            Panel(lines=(norm,), marks=marks, low=0, name="gradient norm", height=1.6),
            Panel(lines=(rate,), low=0, name="learning rate"),
        ),
    )


def _speed(history: History) -> Chart:
    speed = ratio(history.column("samples"), history.total("seconds/"))
    return Chart(
        slug="speed",
        title="Samples per second",
        caption="Completions that arrived at the learner per second of its time, whether they were trained on or not.",
        panels=(Panel(lines=(Line(label="samples/s", values=speed, colour="blue"),), low=0),),
    )


def _time(history: History) -> Chart:
    parts = shares([history.column(f"seconds/{stage}") for stage, _ in STAGES])
    lines = tuple(
        Line(label=stage.replace("wait_for_groups", "wait"), values=part, colour=colour)
        for (stage, colour), part in zip(STAGES, parts, strict=True)
    )
    return Chart(
        slug="time",
        title="Where the learner's time goes",
        caption="Stacked shares of each step's time; much waiting asks for more actors, hardly any means that actors "
        "may be idle.",
        panels=(Panel(lines=lines, unit="share", low=0, high=1, stacked=True),),
    )


def _endings(history: History) -> Chart:
    lines = tuple(
        Line(
            label=ending.replace("_stale", " as stale"),
            values=np.nan_to_num(history.total(f"{ending}/")),
            colour=colour,
        )
        for ending, colour in ENDINGS
    )
    return Chart(
        slug="endings",
        title="Groups per step by ending",
        caption="Stacked counts; filtered groups were all right or all wrong and teach nothing, so their part grows as "
        "the task gets easy.",
        panels=(Panel(lines=lines, low=0, stacked=True),),
    )
