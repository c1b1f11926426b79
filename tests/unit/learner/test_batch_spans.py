"""What the learner tells of a batch: the step, its stages, and the end of every group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from scored_groups import scored_group

from common.messages import ChatMessage, RolloutGroup, Sampling, SourceRef, Task, uid_of
from common.telemetry import quiet
from common.telemetry.metric import Metric, SpanName
from learner.spans import BatchSpans


@dataclass
class Spy(quiet.Traces, quiet.Meters):
    """Keeps what it is told."""

    spans: list[dict] = field(default_factory=list)
    values: list[tuple[str, float]] = field(default_factory=list)
    batches: list[Mapping] = field(default_factory=list)

    def root(self) -> str:
        return "context of spark.step"

    def span(
        self,
        name: SpanName,
        attributes,
        *,
        start_s: float,
        end_s: float,
        parent="",
        context="",
        links: Sequence[str] = (),
    ) -> None:
        about = {"name": name.name, "start": start_s, "end": end_s, "parent": parent, "links": list(links)}
        self.spans.append({**about, **attributes})
        assert context == (self.root() if name.name == "spark.step" else "")

    def record(self, metric: Metric, value: float, labels=None) -> None:
        self.values.append((metric.name, value))

    def batch(self, metrics: Mapping) -> None:
        self.batches.append(metrics)


def group(index: int, *, judged: bool = False) -> RolloutGroup:
    task = Task(
        uid=uid_of("spans", index),
        objective="solve",
        messages=(ChatMessage.user("q"),),
        question="q",
        answer="2",
        verifier="exact",
        sampling=Sampling(n=2, max_new_tokens=4),
        trace=f"context of task {index}",
    )
    if judged:
        source = SourceRef(
            uid=uid_of("s"), sample=0, answer_hash="h", policy_version=0, weights_epoch=1, correct=True, verifier="v"
        )
        task = replace(task, objective="pointwise", sources=(source,), positive=True)
    return scored_group(task)


METRICS = {"policy_version": 5, "seconds/wait_for_groups": 4.0, "seconds/step": 2.0, "seconds/publish": 1.0}


@pytest.fixture
def spy() -> Spy:
    return Spy()


@pytest.fixture
def told(spy: Spy) -> list[dict]:
    now = [100.0]
    spans = BatchSpans(quiet.Telemetry(meters=spy, traces=spy), 3, lambda: now[0])
    spans.consumed(group(0), "dropped_stale", 4, 6, 0)
    now[0] = 110.0
    spans.consumed(group(1), "trained", 4, 1, 0)
    spans.consumed(group(2, judged=True), "trained", 4, 2, 7)
    now[0] = 113.0
    spans.batch(METRICS)
    return spy.spans


def test_a_step_is_linked_to_what_it_trained_and_divided_into_its_stages(told: list[dict]) -> None:
    step, *stages = [span for span in told if span["name"].startswith("spark.step")]
    assert (step["start"], step["end"]) == (106.0, 113.0)
    assert step["links"] == ["context of task 1", "context of task 2"]
    assert (step["spark.groups"], step["spark.samples"], step["spark.epoch"], step["spark.policy_version"]) == (
        2,
        4,
        3,
        5,
    )
    assert [(span["name"].rpartition(".")[2], span["start"], span["end"]) for span in stages] == [
        ("wait_for_groups", 106.0, 110.0),
        ("step", 110.0, 112.0),
        ("publish", 112.0, 113.0),
        ("checkpoint", 113.0, 113.0),
    ]
    assert {span["parent"] for span in stages} == {"context of spark.step"}


def test_every_group_s_trace_says_how_it_ended(told: list[dict]) -> None:
    ends = [span for span in told if span["name"] == "spark.end"]
    assert [(e["spark.outcome"], e["start"], e["end"], e["links"], e["parent"]) for e in ends] == [
        ("dropped_stale", 100.0, 100.0, [], "context of task 0"),
        ("trained", 110.0, 113.0, ["context of spark.step"], "context of task 1"),
        ("trained", 110.0, 113.0, ["context of spark.step"], "context of task 2"),
    ]


def test_staleness_is_that_of_the_trained_groups(told: list[dict], spy: Spy) -> None:
    assert spy.values == [("spark.staleness", 1), ("spark.staleness", 2), ("spark.content_staleness", 7)]
    assert spy.batches == [METRICS]


def test_a_batch_does_not_tell_of_the_one_before(told: list[dict], spy: Spy) -> None:
    spans = BatchSpans(quiet.Telemetry(meters=spy, traces=spy), 3)
    spans.consumed(group(1), "trained", 4, 1, 0)
    spans.batch(METRICS)
    spy.spans.clear()
    spans.batch(METRICS)
    assert [span["links"] for span in spy.spans if span["name"] == "spark.step"] == [[]]
    assert [span for span in spy.spans if span["name"] == "spark.end"] == []


def test_off_keeps_nothing() -> None:
    spans = BatchSpans(quiet.QUIET, 3)
    for index in range(3):
        spans.consumed(group(index), "trained", 4, 1, 0)
    spans.batch(METRICS)
    assert spans._ended == []
