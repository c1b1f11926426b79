"""Telemetry against the real server: what the learner reads of it, what the actor tells, and redis-py's own metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import redis
from scored_groups import scored_group
from structlog.testing import capture_logs

from actors.spans import GroupSpans
from common.consumer import Consumer
from common.keys import ACTORS
from common.streams import Streams
from common.telemetry import quiet
from common.telemetry.names import of_role
from common.telemetry.queues import REREAD_S, Queues
from common.telemetry.traces import Span, Traces

MEMBER = "actor-0"


def figures(queues: Queues) -> dict[tuple[str, ...], float]:
    return {(name, *labels.values()): value for name, labels, value in queues.read()}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_queues_ages_dead_letters_and_members_are_read(run, streams: Streams) -> None:
    run.issue("a", "b", "c")
    consumer = Consumer(streams, ACTORS, MEMBER, [run.tasks])
    first, _ = consumer.claim(2, None)
    streams.bury(first, ACTORS, "poison", "policy")
    streams.heartbeat(MEMBER, {"role": "actor"}, ttl_s=60)
    found = figures(Queues(streams))
    assert found["spark.stream.pending", "tasks:policy", "actors"] == 1
    assert found["spark.stream.undelivered", "tasks:policy", "actors"] == 1
    assert 0 <= found["spark.stream.oldest_pending.age", "tasks:policy", "actors"] < 60
    assert found["spark.stream.pending", "tasks:judge", "actors"] == 0
    assert found["spark.dead_letters",] == 1
    assert found["spark.ledger.groups", "issued", "policy"] == 3
    assert found["spark.ledger.groups", "dead", "policy"] == 1
    assert (found["spark.members", "true"], found["spark.members", "false"]) == (1, 0)
    assert found["spark.server.memory",] > 0
    assert {name for name, *_ in found} == {metric.name for metric in of_role("learner", "server")}


def test_a_reading_serves_all_metrics_of_one_export(run, streams: Streams) -> None:
    clock = Clock()
    queues = Queues(streams, clock)
    before = figures(queues)
    run.issue("a")
    assert figures(queues) == before
    clock.now += REREAD_S
    assert figures(queues)["spark.stream.undelivered", "tasks:policy", "actors"] == 1


def test_a_server_that_is_away_gives_no_figures_and_one_line(
    run, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    queues = Queues(streams, clock)
    assert figures(queues)

    def refuse(*_: object, **__: object) -> None:
        raise redis.ConnectionError("away")

    with capture_logs() as events, monkeypatch.context() as patch:
        patch.setattr(streams.client.connection_pool, "get_connection", refuse)
        for _ in range(3):
            clock.now += REREAD_S
            assert figures(queues) == {}
    assert [event["event"] for event in events] == ["telemetry.server_away"]
    clock.now += REREAD_S
    assert figures(queues)


def test_own_entries_are_read_again_while_redis_py_measures(
    run, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its look at what XREADGROUP returned must not put a command into our pipeline."""
    run.issue("a", "b", "c")
    held = Consumer(streams, ACTORS, MEMBER, [run.tasks]).claim(3, None)
    monkeypatch.setattr("redis.observability.recorder._metrics_collector", Anything())
    again = Consumer(streams, ACTORS, MEMBER, [run.tasks]).claim(3, None)
    assert [delivery.id for delivery in again] == [delivery.id for delivery in held]
    assert [delivery.deliveries for delivery in again] == [2, 2, 2]


class Anything:
    """A collector of redis-py's that takes every figure."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class Spy(quiet.Meters):
    def __init__(self) -> None:
        self.values: list[tuple[str, float, dict[str, str]]] = []

    def record(self, metric, value, labels=None) -> None:
        self.values.append((metric.name, value, dict(labels or {})))


def test_an_actor_tells_of_what_it_ships_and_forgets_the_rest(run, streams: Streams, make_task) -> None:
    told: list[Span] = []
    spy, clock, traces = Spy(), Clock(), Traces(told.append)
    spans = GroupSpans(quiet.Telemetry(meters=spy, traces=traces), "/models/small", clock)
    task = traces.issue([make_task("f" * 32)], 0).tasks[0]
    assert streams.issue(run.token, 0, [task]) == 1
    [delivery] = Consumer(streams, ACTORS, MEMBER, [run.tasks]).claim(1, None)
    group = scored_group(task)
    spans.begun(delivery.key)
    clock.now = 2.0
    spans.generated(delivery.key)
    clock.now = 2.5
    spans.shipped(replace(delivery, deliveries=2), group)
    spans.gone(delivery.key)
    spans.shipped(delivery, group)  # nothing is known of it any more
    generate, verify = told
    assert (generate.name, verify.name) == ("spark.generate", "spark.verify")
    assert generate.parent == verify.parent == task.trace
    assert (verify.start_ns, verify.end_ns) == (2_000_000_000, 2_500_000_000)
    assert generate.attributes.items() >= {
        ("gen_ai.request.model", "small"),
        ("gen_ai.usage.output_tokens", 4),
        ("spark.deliveries", 2),
    }
    assert verify.attributes["gen_ai.evaluation.score.value"] == 0.5
    about = {(name, labels.get("gen_ai.token.type", "")): value for name, value, labels in spy.values}
    assert about == {
        ("gen_ai.server.request.duration", ""): 2.0,
        ("spark.verify.duration", ""): 0.5,
        ("gen_ai.client.token.usage", "input"): 1,
        ("gen_ai.client.token.usage", "output"): 4,
    }
