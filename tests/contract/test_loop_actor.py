"""The actor's loop on the real server, with an engine that does as it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.actor import Actor
from actors.engine import Generated, Request
from actors.policy import RETRY_S
from actors.spans import GroupSpans
from actors.verifiers import failed
from actors.verifiers.pool import InlineVerifier
from common.codec import decode, encode
from common.errors import ServerFull, TaskError, WeightsError
from common.keys import ACTORS
from common.messages import Completion, RolloutGroup, Task, TextPart
from common.streams import Streams
from common.weights import WeightStore

LEASE_S = 40.0


class ScriptedEngine:
    """Finishes a group after ``steps_needed`` steps; its completions say ``texts`` in turn."""

    def __init__(self, steps_needed: int = 2, texts: Sequence[str] = ("\\boxed{2}", "\\boxed{3}")) -> None:
        self.policy_version = -1
        self.steps_needed = steps_needed
        self.texts = texts
        self.steps = 0
        self.added: list[str] = []
        self._running: list[list] = []

    @property
    def groups_in_flight(self) -> int:
        return len(self._running)

    def tokenize(self, messages):
        if any(not isinstance(part, TextPart) for message in messages for part in message.content):
            raise TaskError("text only")
        return np.array([1, 5], dtype=np.int32)

    def add(self, request: Request) -> None:
        if request.sampling.max_new_tokens > 100:
            raise TaskError("far too long")
        self.added.append(request.key)
        self._running.append([request, 0, self.policy_version])

    def step(self) -> list[Generated]:
        assert self.policy_version >= 0, "stepped without weights"
        self.steps += 1
        for entry in self._running:
            entry[1] += 1
        done = [entry for entry in self._running if entry[1] >= self.steps_needed]
        self._running = [entry for entry in self._running if entry[1] < self.steps_needed]
        return [Generated(request=entry[0], completions=self._completions(entry[0])) for entry in done]

    def _completions(self, request: Request) -> tuple[Completion, ...]:
        return tuple(
            Completion(
                token_ids=np.array([7, 2], dtype=np.int32),
                logprobs=np.array([-1.0, -0.5], dtype=np.float32),
                spans=((self.policy_version, 0),),
                finish_reason="stop",
                text=self.texts[index % len(self.texts)],
            )
            for index in range(request.sampling.n)
        )

    def forget(self) -> None:
        self._running.clear()

    def apply(self, files, policy_version: int) -> None:
        if any(Path(file).read_bytes() == b"misfit" for file in files):
            raise WeightsError("does not fit")
        self.policy_version = policy_version


class Verifying(InlineVerifier):
    """Fails on the text ``boom``; holds its verdicts back while told to."""

    def __init__(self) -> None:
        self.hold = False

    def submit(self, task: Task, completions: Sequence[Completion]):
        inner, outer = super().submit(task, completions), self

        class Pending:
            def done(self) -> bool:
                return not outer.hold

            def verdicts(self):
                pairs = zip(completions, inner.verdicts(), strict=True)
                return tuple(failed("exact@1", "it broke") if c.text == "boom" else v for c, v in pairs)

        return Pending()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Stage:
    """One actor, its engine and the weights it follows."""

    def __init__(self, run, store: WeightStore, streams: Streams, engine: ScriptedEngine, **options) -> None:
        self.run, self.store, self.engine = run, store, engine
        self.clock, self.verifying = Clock(), Verifying()
        fields = {"max_staleness": 1, "groups_in_flight": 4, "lease_s": LEASE_S, "max_deliveries": 3}
        name = options.pop("name", "actor-0")
        self.actor = Actor(
            name, streams, engine, self.verifying, clock=self.clock, wall_clock=lambda: 99.0, **(fields | options)
        )

    def publish(self, version: int, epoch: int = 1, content: bytes = b"good", tear: bool = False) -> None:
        def write(folder: Path) -> None:
            (folder / "model").write_bytes(content)

        manifest = self.store.publish(epoch, version, version - 1, write)
        if tear:
            (Path(manifest.uri) / "model").write_bytes(b"torn")
        self.run.streams.publish(manifest)

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.now += 0.05
            self.actor.tick()

    def groups(self, stream: str | None = None) -> list[RolloutGroup]:
        rows = self.run.streams.client.xrange(stream or self.run.rollouts)
        return [decode(RolloutGroup, fields[b"m"]) for _, fields in rows]

    def dead(self) -> list[tuple[str, str]]:
        rows = self.run.streams.client.xrange(self.run.streams.keys.dead)
        return [(fields[b"uid"].decode(), fields[b"reason"].decode()) for _, fields in rows]


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch) -> None:
    """An idle server looks at its blocked clients ten times a second only, however short their wait is."""
    monkeypatch.setattr("actors.actor.IDLE_BLOCK_MS", 0)
    monkeypatch.setattr(Streams, "wait_for_weights", lambda self, block_ms: None)


@pytest.fixture
def make_stage(run, tmp_path) -> Callable[..., Stage]:
    def make(engine: ScriptedEngine | None = None, streams: Streams | None = None, **options) -> Stage:
        return Stage(
            run, WeightStore(tmp_path / "weights"), streams or run.streams, engine or ScriptedEngine(), **options
        )

    return make


@pytest.fixture
def stage(make_stage) -> Stage:
    stage = make_stage()
    stage.publish(0)
    return stage


def issue(run, *tasks: Task) -> None:
    cursor = run.streams.cursor() or 0
    run.streams.issue(run.token, cursor, list(tasks))


def ledger(run) -> dict[str, int]:
    return {name: count for name, count in run.streams.ledger().items() if count}


# -- what is shipped ----------------------------------------------------------------------------------------


def test_every_task_is_shipped_once_and_whole(run, stage, make_task) -> None:
    uids = [f"{index:032x}" for index in range(9)]
    run.issue(*uids)
    stage.tick(12)
    groups = stage.groups()
    assert sorted(group.uid for group in groups) == uids
    assert run.pending(run.tasks, ACTORS) == {}
    assert {(g.actor, g.weights_epoch, g.generated_at, len(g.rollouts)) for g in groups} == {("actor-0", 1, 99.0, 2)}
    assert [r.verdict.reward for r in groups[0].rollouts] == [1.0, 0.0]
    assert encode(groups[0].task) == encode(make_task(groups[0].uid))


def test_never_more_groups_than_allowed_are_generated_at_once(run, make_stage) -> None:
    stage = make_stage(ScriptedEngine(steps_needed=3), groups_in_flight=2)
    stage.publish(0)
    run.issue(*"abcdef")
    most = 0
    for _ in range(30):
        stage.tick()
        most = max(most, stage.engine.groups_in_flight)
    assert most == 2
    assert len(stage.groups()) == 6


def test_entries_of_two_streams_with_one_id_are_not_mixed_up(run, stage, make_task) -> None:
    """Ids are unique within a stream only: both streams may hand out the same one in the same millisecond."""
    client = run.streams.client
    judge = replace(make_task("b" * 32), objective="pointwise", sampling=replace(make_task("b").sampling, n=3))
    for stream, task in ((run.tasks, make_task("a" * 32)), (run.judge_tasks, judge)):
        client.xadd(stream, {"uid": task.uid, "m": encode(task)}, id="5-1")
    stage.tick(6)
    assert [(g.uid, len(g.rollouts)) for g in stage.groups(run.rollouts)] == [("a" * 32, 2)]
    assert [(g.uid, len(g.rollouts)) for g in stage.groups(run.judge_rollouts)] == [("b" * 32, 3)]


def test_judge_tasks_go_first(run, make_stage, make_task) -> None:
    stage = make_stage(groups_in_flight=1)
    stage.publish(0)
    run.issue("a")
    judge = replace(make_task("b"), objective="reflect")
    run.streams.client.xadd(run.judge_tasks, {"uid": "b", "m": encode(judge)})
    stage.tick(2)
    assert stage.engine.added[0].startswith(run.judge_tasks)


# -- tasks that fail ----------------------------------------------------------------------------------------


def test_a_task_that_can_never_be_generated_is_dead_with_its_reason(run, stage, make_task) -> None:
    bad = replace(make_task("bad"), sampling=replace(make_task("bad").sampling, max_new_tokens=101))
    issue(run, bad, make_task("good"))
    stage.tick(6)
    assert stage.dead() == [("bad", "far too long")]
    assert [group.uid for group in stage.groups()] == ["good"]
    assert ledger(run) == {"issued:policy": 2, "dead:policy": 1}


def test_an_entry_that_is_no_task_is_dead(run, stage) -> None:
    run.streams.client.xadd(run.tasks, {"uid": "poison", "m": b"\xc1 not msgpack"})
    run.issue("good")
    stage.tick(6)
    [(uid, reason)] = stage.dead()
    assert uid == "poison"
    assert "Task" in reason
    assert [group.uid for group in stage.groups()] == ["good"]


def test_a_task_no_completion_of_which_can_be_verified_comes_back_and_then_dies(run, make_stage) -> None:
    """Never a group of zeros: that would teach the policy that everything it said was wrong."""
    stage = make_stage(ScriptedEngine(texts=["boom"]))
    stage.publish(0)
    run.issue("a")
    for tries in (1, 2, 3):
        stage.tick(4)
        assert len(stage.engine.added) == tries
        stage.clock.now += LEASE_S / 2  # when it looks for entries handed back
    assert stage.groups() == []
    assert stage.dead() == [("a", "verifier exact@1: error: it broke")]
    assert ledger(run) == {"issued:policy": 1, "dead:policy": 1}
    stage.clock.now += 2.0
    stage.tick()
    assert run.streams.members()["actor-0"]["unverified_groups"] == 3


def test_one_completion_that_cannot_be_verified_is_marked_and_the_group_shipped(run, make_stage) -> None:
    stage = make_stage(ScriptedEngine(texts=["\\boxed{2}", "boom"]))
    stage.publish(0)
    run.issue("a")
    stage.tick(4)
    [group] = stage.groups()
    assert [rollout.verdict.status for rollout in group.rollouts] == ["ok", "error"]
    assert [rollout.verdict.reward for rollout in group.scored] == [1.0]


def test_a_task_that_killed_its_actors_is_dead_before_it_kills_another(run, stage) -> None:
    run.issue("a")
    for actor in "bcd":
        rows = run.streams.client.xautoclaim(run.tasks, ACTORS, actor, 0)[1]
        rows or run.streams.read_new(ACTORS, actor, [run.tasks], 1, None)
    run.streams.hand_back(run.tasks, ACTORS, "d", list(run.pending(run.tasks, ACTORS)))
    stage.clock.now += LEASE_S / 2
    stage.tick(4)
    assert stage.engine.added == []
    assert stage.dead() == [("a", "delivered 3 times without a result; this delivery buries it")]


# -- leases -------------------------------------------------------------------------------------------------


def steal(run, thief: str = "thief") -> str:
    [entry_id] = run.pending(run.tasks, ACTORS)
    run.streams.client.xclaim(run.tasks, ACTORS, thief, 0, [entry_id])
    return entry_id


def test_a_group_whose_lease_was_lost_is_not_shipped(run, make_stage) -> None:
    stage = make_stage(ScriptedEngine(steps_needed=5))
    stage.publish(0)
    run.issue("a")
    stage.tick(2)
    entry_id = steal(run)
    stage.clock.now += LEASE_S / 4
    stage.tick(8)
    assert stage.engine.groups_in_flight == 0
    assert stage.groups() == []
    assert run.pending(run.tasks, ACTORS)[entry_id][0] == "thief"


def test_a_lease_that_was_lost_and_came_back_ships_once(run, make_stage) -> None:
    """The actor that took it over died while the first was still generating."""
    stage = make_stage(ScriptedEngine(steps_needed=8))
    stage.publish(0)
    run.issue("a")
    stage.tick(2)
    entry_id = steal(run)
    stage.clock.now += LEASE_S / 4
    stage.tick(2)
    assert run.streams.hand_back(run.tasks, ACTORS, "thief", [entry_id]) == {entry_id}
    stage.clock.now += LEASE_S / 4
    stage.tick(8)
    assert len(stage.engine.added) == 1
    assert [group.uid for group in stage.groups()] == ["a"]
    stage.tick(8)
    assert len(stage.groups()) == 1


def test_leases_are_renewed_while_a_verifier_takes_its_time(run, make_stage) -> None:
    stage = make_stage()
    stage.publish(0)
    stage.verifying.hold = True
    run.issue("a")
    stage.tick(4)
    [(entry_id, (owner, _))] = run.pending(run.tasks, ACTORS).items()
    run.streams.client.xclaim(run.tasks, ACTORS, owner, 0, [entry_id], idle=10_000_000, justid=True)
    stage.clock.now += LEASE_S / 4
    stage.tick()
    assert run.streams.client.xpending_range(run.tasks, ACTORS, "-", "+", 1)[0]["time_since_delivered"] < 60_000
    stage.verifying.hold = False
    stage.tick()
    assert [group.uid for group in stage.groups()] == ["a"]


def test_two_actors_share_the_tasks(run, make_stage) -> None:
    stages = [make_stage(name=name, groups_in_flight=2) for name in ("x", "y")]
    stages[0].publish(0)
    uids = [f"{index:02}" for index in range(12)]
    run.issue(*uids)
    for _ in range(20):
        for stage in stages:
            stage.tick()
    assert sorted(group.uid for group in stages[0].groups()) == uids
    assert {group.actor for group in stages[0].groups()} == {"x", "y"}


def test_stopping_hands_everything_back_at_once(run, make_stage) -> None:
    first = make_stage(ScriptedEngine(steps_needed=1000), name="first")
    first.publish(0)
    run.issue("a", "b")
    first.tick(3)
    first.actor.stop()
    second = make_stage(name="second")
    second.clock.now += LEASE_S / 4
    second.tick(6)
    assert sorted(group.uid for group in second.groups()) == ["a", "b"]
    assert {group.actor for group in second.groups()} == {"second"}
    assert run.streams.members()["first"]["state"] == "stopped"


class FullFor(Streams):
    """A server that refuses products a few times."""

    refusals = 2

    def transfer(self, *args, **options):
        if self.refusals:
            self.refusals -= 1
            raise ServerFull("the server takes no new entries")
        return super().transfer(*args, **options)


def test_a_full_server_loses_nothing(run, make_stage) -> None:
    stage = make_stage(streams=FullFor(run.streams.client, run.streams.keys.run))
    stage.publish(0)
    run.issue("a", "b", "c")
    for _ in range(8):
        stage.tick(2)
        stage.clock.now += 2.0
    assert sorted(group.uid for group in stage.groups()) == ["a", "b", "c"]
    assert len(stage.engine.added) == 3


# -- weights ------------------------------------------------------------------------------------------------


def test_nothing_is_generated_before_the_first_weights(run, make_stage) -> None:
    stage = make_stage()
    run.issue("a")
    stage.tick(4)
    assert stage.engine.steps == 0
    stage.publish(3)
    stage.tick(4)
    [group] = stage.groups()
    assert group.oldest_version == 3


def test_weights_beyond_the_bound_stop_generation_until_they_can_be_applied(run, stage) -> None:
    """max_staleness is 1. The new version is torn, so the actor knows that it is behind and cannot help it."""
    stage.tick()
    stage.publish(1, tear=True)
    stage.tick(2)
    assert stage.actor.policy.may_generate
    stage.publish(2, tear=True)
    stage.tick(2)
    assert (stage.actor.policy.may_generate, stage.engine.policy_version) == (False, 0)
    run.issue("a")
    steps = stage.engine.steps
    stage.tick(4)
    assert stage.engine.steps == steps
    assert stage.groups() == []
    stage.publish(3)
    stage.tick(4)
    assert [group.oldest_version for group in stage.groups()] == [3]


@pytest.mark.parametrize("damage", [{"tear": True}, {"content": b"misfit"}])
def test_weights_that_cannot_be_applied_keep_the_old_and_are_counted(run, stage, damage) -> None:
    stage.tick()
    stage.publish(1, **damage)
    stage.tick()
    assert (stage.engine.policy_version, stage.actor.policy.failures) == (0, 1)
    stage.publish(2)
    stage.tick()
    assert stage.engine.policy_version == 2
    stage.clock.now += 2.0
    stage.tick()
    beat = run.streams.members()["actor-0"]
    assert (beat["apply_failures"], beat["policy_version"]) == (1, 2)


def test_torn_weights_are_taken_once_they_are_whole(run, stage) -> None:
    stage.tick()
    stage.publish(1, tear=True)
    stage.tick()
    [torn] = stage.store.root.glob("*-v00000001/model")
    torn.write_bytes(b"good")
    stage.tick()
    assert stage.engine.policy_version == 0  # not read over and over
    stage.clock.now += RETRY_S
    stage.tick()
    assert stage.engine.policy_version == 1


def test_weights_of_a_fenced_learner_are_refused(run, stage) -> None:
    """It does not know yet that another has taken over, and its version number is higher."""
    stage.publish(4, epoch=2)
    stage.tick()
    stage.publish(9, epoch=1)
    stage.tick(2)
    assert (stage.engine.policy_version, stage.actor.policy.epoch) == (4, 2)


def test_weights_of_a_resumed_learner_are_taken_although_their_number_is_lower(run, stage) -> None:
    stage.publish(9)
    stage.tick()
    stage.publish(6, epoch=2)
    stage.tick()
    assert (stage.engine.policy_version, stage.actor.policy.epoch) == (6, 2)
    run.issue("a")
    stage.tick(4)
    [group] = stage.groups()
    assert (group.weights_epoch, group.oldest_version) == (2, 6)


def test_a_manifest_that_is_none_is_passed_over(run, stage) -> None:
    run.streams.client.xadd(run.streams.keys.weights, {"m": b"\xc1"})
    run.streams.client.xadd(run.streams.keys.weights, {"x": b"y"})
    stage.tick()
    assert stage.engine.policy_version == 0


# -- telemetry ----------------------------------------------------------------------------------------------


class HeardSpans(GroupSpans):
    """Writes down what the actor says of its groups."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, str]] = []

    def begun(self, key: str) -> None:
        self.heard.append(("begun", key))

    def generated(self, key: str) -> None:
        self.heard.append(("generated", key))

    def gone(self, key: str) -> None:
        self.heard.append(("gone", key))

    def shipped(self, delivery, group) -> None:
        self.heard.append(("shipped", delivery.key))

    def applied(self, seconds: float) -> None:
        self.heard.append(("applied", f"{seconds:.2f}"))


def test_telemetry_hears_of_a_group_in_the_order_of_its_life(run, make_stage) -> None:
    spans = HeardSpans()
    stage = make_stage(spans=spans)
    stage.publish(0)
    run.issue("a")
    stage.tick(4)
    [(_, key)] = [one for one in spans.heard if one[0] == "begun"]
    assert [what for what, _ in spans.heard] == ["applied", "begun", "generated", "shipped", "gone"]
    assert {of for what, of in spans.heard if what != "applied"} == {key}


def test_telemetry_forgets_a_group_that_is_not_shipped(run, make_stage) -> None:
    """One whose lease is lost while it is generated, one that no verifier can score, one of another learner's line."""
    spans = HeardSpans()
    stage = make_stage(ScriptedEngine(steps_needed=3, texts=["boom"]), spans=spans)
    stage.publish(0)
    run.issue("a", "b")
    stage.tick(2)
    stage.publish(0, epoch=2)
    stage.tick(40)
    assert len(stage.dead()) == 2
    begun = [key for what, key in spans.heard if what == "begun"]
    gone = [key for what, key in spans.heard if what == "gone"]
    assert len(begun) > 2
    assert sorted(begun) == sorted(gone)
    assert "shipped" not in [what for what, _ in spans.heard]


def test_the_epoch_of_the_weights_is_told_when_it_changes(make_stage) -> None:
    epochs: list[int] = []
    stage = make_stage(on_epoch=epochs.append)
    stage.publish(0)
    stage.tick(2)
    stage.publish(0, epoch=2)
    stage.tick(2)
    assert epochs == [1, 2]
