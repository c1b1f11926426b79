"""Traces: a task's by its uid, links across tasks, a share of them, and nothing at all when they are off."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from collector import attributes, collecting
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp
from opentelemetry.sdk.resources import Resource

from common.codec import encode
from common.messages import ChatMessage, Sampling, Task, uid_of
from common.telemetry.quiet import QUIET
from common.telemetry.sender import SpanSender, fields_of
from common.telemetry.span_names import GENERATE, STEP
from common.telemetry.traces import UNSAMPLED, Span, Traces


class Rig:
    def __init__(self, share: float = 1.0) -> None:
        self._spans: list[Span] = []
        self.traces = Traces(self._tell, share)

    def _tell(self, span: Span) -> None:
        if not (span.context or span.parent).endswith(UNSAMPLED):  # as the sender does
            self._spans.append(span)

    @property
    def told(self) -> list[otlp.Span]:
        """As they are sent."""
        return [otlp.Span(**fields_of(span, random.Random(0))) for span in self._spans]


def task(uid: str = uid_of("test", 1)) -> Task:
    return Task(
        uid=uid,
        objective="solve",
        messages=(ChatMessage.user("1+1"),),
        question="1+1",
        answer="2",
        verifier="exact",
        sampling=Sampling(n=2, max_new_tokens=4),
    )


def trace_of(span: otlp.Span) -> str:
    return span.trace_id.hex()


def test_the_trace_id_of_a_task_is_its_uid() -> None:
    rig = Rig()
    issue = rig.traces.issue([task()], policy_version=3)
    assert issue.tasks[0].trace.startswith(f"00-{task().uid}-")
    assert replace(issue.tasks[0], trace="") == task()
    assert rig.told == []  # not before it is on its stream
    issue.told()
    [span] = rig.told
    assert trace_of(span) == task().uid
    assert attributes(span.attributes) == {
        "spark.uid": task().uid,
        "spark.objective": "solve",
        "spark.policy_version": 3,
        "spark.attempt": 0,
        "spark.position": -1,
        "spark.template": "",
    }


def test_a_uid_that_is_no_hash_gets_a_trace_all_the_same() -> None:
    issue = Rig().traces.issue([task("short"), task()], policy_version=0)
    assert [len(one.trace) for one in issue.tasks] == [55, 55]
    assert task().uid in issue.tasks[1].trace


def test_what_is_issued_again_stays_in_its_trace() -> None:
    rig = Rig()
    first = rig.traces.issue([task()], 0)
    again = rig.traces.issue([replace(first.tasks[0], attempt=1)], 1)
    first.told()
    again.told()
    one, two = rig.told
    assert trace_of(two) == trace_of(one)
    assert two.parent_span_id == one.span_id
    assert again.tasks[0].trace != first.tasks[0].trace


def test_spans_descend_from_the_message_and_links_cross_traces() -> None:
    rig = Rig()
    source = rig.traces.issue([task()], 0).tasks[0]
    judge = rig.traces.issue([task(uid_of("judge"))], 0, source=source.trace)
    judge.told()
    rig.traces.span(GENERATE, {"spark.uid": "x"}, start_s=10.0, end_s=12.5, parent=judge.tasks[0].trace)
    issued, generated = rig.told
    assert [link.trace_id.hex() for link in issued.links] == [task().uid]
    assert trace_of(generated) == trace_of(issued) == uid_of("judge")
    assert generated.parent_span_id == issued.span_id
    assert (generated.start_time_unix_nano, generated.end_time_unix_nano) == (10_000_000_000, 12_500_000_000)


@pytest.mark.parametrize("text", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\x00", "00-1-2-3"])
def test_what_is_no_context_begins_a_trace_and_is_no_link(text: str) -> None:
    rig = Rig()
    rig.traces.span(GENERATE, {}, start_s=0.0, end_s=1.0, parent=text, links=[text])
    [span] = rig.told
    assert span.parent_span_id == b""
    assert len(span.links) == 0


def test_a_share_of_the_tasks_is_traced_whole_or_not_at_all_and_every_step() -> None:
    rig = Rig(share=0.25)
    uids = [uid_of("share", index) for index in range(400)]
    for uid in uids:
        for _attempt in range(2):
            issue = rig.traces.issue([task(uid)], 0)
            issue.told()
            rig.traces.span(GENERATE, {}, start_s=0.0, end_s=1.0, parent=issue.tasks[0].trace)
    spans = rig.told
    traced = {trace_of(span) for span in spans}
    assert 60 < len(traced) < 140
    assert len(spans) == 4 * len(traced)
    unsampled = rig.traces.issue([task(next(uid for uid in uids if uid not in traced))], 0).tasks[0].trace
    assert int(unsampled[-2:], 16) & 1 == 0
    rig.traces.span(STEP, {}, start_s=0.0, end_s=1.0, context=rig.traces.root(), links=[unsampled])
    assert rig.told[-1].name == STEP.name
    assert len(rig.told[-1].links) == 0  # it would lead nowhere


def test_every_step_is_told_even_if_no_task_is() -> None:
    rig = Rig(share=0.0)
    rig.traces.issue([task(uid_of("none", index)) for index in range(20)], 0).told()
    for _ in range(20):
        rig.traces.span(STEP, {}, start_s=0.0, end_s=1.0, context=rig.traces.root())
    assert [span.name for span in rig.told] == [STEP.name] * 20


def test_spans_are_sent_as_of_one_process() -> None:
    about = {"host.name": "here", "process.pid": 7}
    with collecting() as collector:
        sender = SpanSender(f"{collector.url}/v1/traces", Resource(about), every_s=60.0, timeout_s=5.0)
        traces = Traces(sender.send)
        for value in ("text", 3, 0.5):
            traces.span(STEP, {"spark.uid": value}, start_s=1.0, end_s=2.5)
        sender.close()
        spans = collector.spans
    assert [span.resource for span in spans] == [about] * 3
    assert [span.attributes["spark.uid"] for span in spans] == ["text", 3, 0.5]
    assert len({span.trace for span in spans}) == len({span.id for span in spans}) == 3
    assert {span.span.end_time_unix_nano - span.span.start_time_unix_nano for span in spans} == {1_500_000_000}


def test_off_no_message_differs_by_a_byte() -> None:
    issue = QUIET.traces.issue([task()], 5, source="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    issue.told()
    assert [encode(one) for one in issue.tasks] == [encode(task())]
    assert QUIET.traces.root() == ""
