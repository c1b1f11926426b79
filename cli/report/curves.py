"""Which curves the report shows of learning, staleness, optimisation and throughput, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from cli.report.charts import Bounds, Chart, Line, Mark, Panel, Section
from cli.report.history import History
from cli.report.judge_curves import judge_charts
from cli.report.series import ratio, shares
from common.messages import OBJECTIVES
from common.settings import Staleness

COLOURS: Final[Mapping[str, str]] = dict(zip(OBJECTIVES, ("blue", "orange", "green", "purple"), strict=True))
KL_ALARM: Final = 0.1
RATIO_ALARM: Final = 10.0
KL_FLOOR: Final = 1e-7
"""Below it the estimate is rounding."""
STAGES: Final = (("wait_for_groups", "orange"), ("step", "blue"), ("publish", "green"), ("checkpoint", "purple"))
ENDINGS: Final = (("trained", "blue"), ("filtered", "orange"), ("dropped_stale", "alarm"))
AGES: Final = (("on-policy", 0, 0, "blue"), ("1 step old", 1, 1, "green"), ("2 or 3", 2, 3, "orange"))
"""Label, youngest and oldest token staleness, colour; what is older is the rest."""


def sections(history: History, bounds: Bounds) -> tuple[Section, ...]:
    return (
        Section(
            title="Learning", slug="learning", charts=(_reward(history), _reflection(history), _completions(history))
        ),
        Section(title="The judge", slug="judge", charts=judge_charts(history)),
        Section(
            title="Staleness and distance",
            slug="staleness",
            charts=(_staleness(history, bounds), _ages(history), _divergence(history)),
        ),
        Section(
            title="Optimisation",
            slug="optimisation",
            charts=(_entropy(history), _ess(history), _gradient(history, bounds)),
        ),
        Section(title="Throughput", slug="throughput", charts=(_speed(history), _time(history), _endings(history))),
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
        slug="group-staleness",
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


def _ages(history: History) -> Chart:
    found = {age: history.column(name) for name, age in history.numbered("tokens/staleness_")}
    named = [
        (label, [values for age, values in found.items() if low <= age <= high], colour)
        for label, low, high, colour in AGES
    ]
    oldest = max(high for _, _, high, _ in AGES)
    named.append(("older", [values for age, values in found.items() if age > oldest], "purple"))
    parts = shares([_sum(values, len(history.rows)) for _, values, _ in named])
    lines = tuple(
        Line(label=label, values=part, colour=colour)
        for (label, values, colour), part in zip(named, parts, strict=True)
        if values
    )
    return Chart(
        slug="token-age",
        title="Age of trained tokens",
        caption="Stacked shares of the tokens in each batch by the optimizer steps since they were sampled.",
        panels=(Panel(lines=lines, unit="share", low=0, high=1, stacked=True),),
    )


def _sum(columns: list[list[float]], rows: int) -> list[float]:
    """Row by row; what was not measured counts as 0."""
    return [float(np.nansum([column[row] for column in columns])) for row in range(rows)]


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


def _completions(history: History) -> Chart:
    length = Line(label="length", values=history.column("length"), colour="quiet")
    return Chart(
        slug="completions",
        title="Completions without an answer",
        caption="Share in which the verifier found nothing to score: they count as wrong, so a rise hides in the "
        "reward. Below it the mean length over all objectives; a lasting rise without reward is padding.",
        panels=(
            Panel(lines=_by_objective(history, "no_answer"), unit="share", low=0, high=0.05, name="without an answer"),
            Panel(lines=(length,), low=0, name="length in tokens"),
        ),
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
    spent = history.busy()
    samples = Line(label="samples/s", values=ratio(history.column("samples"), spent), colour="blue")
    tokens = Line(label="trained tokens/s", values=ratio(history.column("tokens"), spent), colour="green")
    return Chart(
        slug="speed",
        title="Samples and tokens per second",
        caption="Completions that arrived at the learner per second of its time, whether they were trained on or not, "
        "and tokens that it trained on.",
        panels=(
            Panel(lines=(samples,), low=0, name="samples per second"),
            Panel(lines=(tokens,), low=0, name="trained tokens per second"),
        ),
    )


def _time(history: History) -> Chart:
    parts = shares([history.column(f"seconds/{stage}") for stage, _ in STAGES])
    lines = tuple(
        Line(label=stage.replace("wait_for_groups", "waiting for groups"), values=part, colour=colour)
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
        panels=(Panel(lines=lines if any(any(line.values) for line in lines) else (), low=0, stacked=True),),
    )
