"""From heartbeats, batches and the server's figures to metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from common.telemetry import quiet
from common.telemetry.later import Later
from common.telemetry.meters import Meters, number
from common.telemetry.metric_names import STALENESS
from common.telemetry.names import of_role


class Rig:
    def __init__(self, role: str) -> None:
        self.reader = InMemoryMetricReader()
        self.later = Later()
        meter = MeterProvider([self.reader], shutdown_on_exit=False).get_meter("test")
        self.meters = Meters(meter, role, self.later)

    def values(self, name: str) -> dict[tuple[tuple[str, Any], ...], Any]:
        """Labels -> value (of a histogram: count and sum) of one metric, as it is told now."""
        self.later.settle()
        data = self.reader.get_metrics_data()
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
        points = [point for metric in metrics if metric.name == name for point in metric.data.data_points]
        return {
            tuple(sorted(p.attributes.items())): p.value if hasattr(p, "value") else (p.count, p.sum) for p in points
        }


BATCH = {
    "policy_version": 7,
    "elapsed_s": 12.5,
    "loss": 0.25,
    "kl/solve": 0.5,
    "seconds/step": 2.0,
    "seconds/wait_for_groups": 0.5,
    "trained/policy": 4.0,
    "trained/judge": 3.0,
    "dropped_stale/judge": 1.0,
    "groups/solve": 5.0,
    "samples": 40.0,
    "reward/solve": 0.75,
    "judge/tpr": 0.9,
    "judge/accuracy/age_3": 0.6,
    "positive/pairwise": 0.5,
    "stalls": 1,
    "stalls_s": 3.0,
    "name": "not a figure",
}


def test_a_batch_adds_to_counters_and_sets_gauges() -> None:
    rig = Rig("learner")
    rig.meters.batch(BATCH)
    rig.meters.batch({**BATCH, "policy_version": 8, "loss": 0.5})
    assert rig.values("spark.learner.groups") == {
        (("kind", "policy"), ("outcome", "trained")): 8,
        (("kind", "judge"), ("outcome", "trained")): 6,
        (("kind", "judge"), ("outcome", "dropped_stale")): 2,
    }
    assert rig.values("spark.learner.steps") == {(): 8}
    assert rig.values("spark.learner.rollouts") == {(): 80}
    assert rig.values("spark.reward") == {(("objective", "solve"),): 0.75}
    assert rig.values("spark.judge.score") == {(("figure", "tpr"),): 0.9, (("figure", "accuracy/age_3"),): 0.6}
    assert rig.values("spark.judge.positive_share") == {(("objective", "pairwise"),): 0.5}
    assert rig.values("spark.learner.stage.duration")[(("stage", "step"),)] == (2, 4.0)
    assert rig.values("spark.learner.figure") == {(("figure", "loss"),): 0.5, (("figure", "kl/solve"),): 0.5}


def test_a_heartbeat_is_read_when_somebody_asks() -> None:
    rig = Rig("recycler")
    said: Mapping[str, Any] = {"role": "recycler", "state": "starting"}
    rig.meters.follow(lambda: said)
    assert rig.values("spark.recycler.room") == {}
    said = {"room": 3, "stalls": 1, "stalls_s": 2.5, "groups.right": 4, "groups.wrong": 1, "tasks.reflect.positive": 2}
    assert rig.values("spark.recycler.room") == {(): 3}
    assert rig.values("spark.stalled.time") == {(): 2.5}
    assert rig.values("spark.recycler.groups") == {(("answers", "right"),): 4, (("answers", "wrong"),): 1}
    assert rig.values("spark.recycler.tasks") == {(("label", "positive"), ("objective", "reflect")): 2}


def test_alarms_are_counted() -> None:
    rig = Rig("learner")
    rig.meters.follow(lambda: {"alarms": ["the judge says yes to everything"], "waiting_share": 0.25})
    assert rig.values("spark.learner.alarms") == {(): 1}
    assert rig.values("spark.learner.waiting_share") == {(): 0.25}


def test_the_server_s_figures_are_read_when_somebody_asks() -> None:
    rig = Rig("learner")
    readings: list[quiet.Reading] = []
    rig.meters.follow_server(lambda: readings)
    assert rig.values("spark.stream.pending") == {}
    readings.append(("spark.stream.pending", {"stream": "tasks:policy", "group": "actors"}, 3.0))
    assert rig.values("spark.stream.pending") == {(("group", "actors"), ("stream", "tasks:policy")): 3.0}


def test_a_moment_goes_into_its_histogram() -> None:
    rig = Rig("learner")
    for staleness in (0, 1, 4):
        rig.meters.record(STALENESS, staleness, {"objective": "solve"})
    assert rig.values("spark.staleness") == {(("objective", "solve"),): (3, 5)}


@pytest.mark.parametrize(
    ("value", "figure"), [(1, 1.0), (0.5, 0.5), ([], 0.0), (["a", "b"], 2.0), ("text", None), (None, None), ({}, None)]
)
def test_what_is_a_figure(value: object, figure: float | None) -> None:
    assert number(value) == figure


def test_no_figure_of_a_batch_is_told_twice() -> None:
    for key in BATCH:
        told = [metric.name for metric in of_role("learner", "batch") if metric.match(key) is not None]
        assert told[:1] != ["spark.learner.figure"] or len(told) == 1


def test_telemetry_that_is_off_takes_everything_and_tells_nothing() -> None:
    meters = quiet.QUIET.meters
    meters.batch(BATCH)
    meters.follow(dict)
    meters.follow_server(list)
    meters.record(STALENESS, 1.0)
    assert not quiet.QUIET.on
    assert quiet.QUIET.announced == {}
