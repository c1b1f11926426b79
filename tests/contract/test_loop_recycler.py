"""The recycler's loop on the real server: a group is decided once, whatever happens in between."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from common.codec import decode
from common.errors import ServerFull
from common.keys import ACTORS, LEARNER, RECYCLER
from common.messages import Completion, Rollout, RolloutGroup, Task, Verdict, uid_of
from common.settings import Recycler, Sampling
from common.streams import Product, Streams
from common.templates import load_templates
from recycler.loop import RecyclerLoop
from recycler.reservoir import Reservoir


def rollout(right: bool | None, version: int) -> Rollout:
    answer = None if right is None else "2" if right else "3"
    verdict = Verdict(
        status="no_answer" if right is None else "ok",
        reward=float(bool(right)),
        verifier="exact@1",
        answer=answer,
        canonical=answer,
    )
    completion = Completion(
        token_ids=np.array([5, 2], dtype=np.int32),
        logprobs=np.array([-1.0, -1.0], dtype=np.float32),
        spans=((version, 0),),
        finish_reason="stop",
        text=f"It is \\boxed{{{answer}}}",
    )
    return Rollout(completion=completion, verdict=verdict)


class Stage:
    """A run with scored groups in it, and recyclers that may be killed and started."""

    def __init__(self, run, make_task) -> None:
        self.run, self._make_task = run, make_task
        self.streams = run.streams
        self.now = 0.0
        self.issued = 0

    def loop(self, streams: Streams | None = None, **options) -> RecyclerLoop:
        reservoir = Reservoir(
            Recycler(),
            Sampling(group_size=2, max_new_tokens=16, judge_max_new_tokens=8),
            load_templates("default"),
            run="test",
            seed=0,
        )
        return RecyclerLoop(
            streams or self.streams,
            reservoir,
            content_bound=4,
            clock=lambda: self.now,
            sleep=lambda seconds: None,
            **options,
        )

    def scored(self, *kinds: str, version: int = 0) -> list[str]:
        """Ship one group per kind ("right", "wrong", "mixed", "empty", "poison"); returns their entry ids."""
        uids = [uid_of("solve", self.issued + index) for index in range(len(kinds))]
        self.issued += len(kinds)
        self.run.issue(*uids)
        deliveries = self.streams.read_new(ACTORS, "a", [self.run.tasks], len(kinds), None)
        moves = []
        for delivery, kind in zip(deliveries, kinds, strict=True):
            product = Product(uid=delivery.uid, payload=b"\xc1")
            if kind != "poison":
                product = Product.of(delivery.uid, self._group(delivery.uid, kind, version))
            moves.append((delivery.id, [product]))
        self.streams.transfer(self.run.tasks, ACTORS, self.run.rollouts, moves)
        return [entry_id.decode() for entry_id, _ in self.streams.client.xrange(self.run.rollouts)][-len(kinds) :]

    def _group(self, uid: str, kind: str, version: int) -> RolloutGroup:
        marks = {"right": (True, True), "wrong": (False, False), "mixed": (True, False), "empty": (None, None)}[kind]
        return RolloutGroup(
            task=self._make_task(uid),
            prompt_token_ids=np.array([1], dtype=np.int32),
            rollouts=tuple(rollout(mark, version) for mark in marks),
            actor="a",
            weights_epoch=1,
            generated_at=0.0,
        )

    def grant(self, tasks: int, policy_version: int = 0) -> None:
        self.streams.report_progress(judge_granted=tasks, policy_version=policy_version)

    @property
    def pending(self) -> set[str]:
        return set(self.run.pending(self.run.rollouts, RECYCLER))

    @property
    def judge_tasks(self) -> list[Task]:
        return [decode(Task, fields[b"m"]) for _, fields in self.streams.client.xrange(self.run.judge_tasks)]

    def ledger(self) -> dict[str, int]:
        return {name: count for name, count in self.streams.ledger().items() if count}


@pytest.fixture
def stage(run, make_task, monkeypatch) -> Stage:
    monkeypatch.setattr("recycler.loop.BLOCK_MS", 0)  # an idle server wakes its blocked clients late
    return Stage(run, make_task)


def test_without_room_groups_stay_pending(stage) -> None:
    ids = stage.scored("mixed", "right", "wrong")
    loop = stage.loop()
    for _ in range(3):
        loop.tick()
    assert stage.pending == set(ids)
    assert stage.judge_tasks == []


def test_room_becomes_tasks_and_never_more(stage) -> None:
    stage.scored(*["mixed", "right", "wrong"] * 4)
    loop = stage.loop()
    stage.grant(6)
    for _ in range(3):
        loop.tick()
    assert 0 < len(stage.judge_tasks) <= 6
    first = len(stage.judge_tasks)
    stage.grant(10)
    loop.tick()
    assert first < len(stage.judge_tasks) <= 10
    assert stage.ledger()["issued:judge"] == len(stage.judge_tasks)


def test_every_task_tells_where_it_comes_from_and_its_groups_are_acked(stage) -> None:
    ids = stage.scored(*["mixed", "right", "wrong"] * 4)
    stage.grant(8)
    stage.loop().tick()
    sources = {source.uid for task in stage.judge_tasks for source in task.sources}
    uid_of_entry = {entry_id: uid_of("solve", index) for index, entry_id in enumerate(ids)}
    assert {uid_of_entry[entry_id] for entry_id in set(ids) - stage.pending} == sources
    assert {task.objective for task in stage.judge_tasks} <= {"pointwise", "pairwise", "reflect"}
    assert stage.run.uids(stage.run.judge_tasks) == [task.uid for task in stage.judge_tasks]


def test_the_learner_still_gets_every_group(stage) -> None:
    """Two consumer groups on one stream: what the recycler decides is not taken from the learner."""
    ids = stage.scored("mixed", "right", "empty")
    stage.grant(8)
    stage.loop().tick()
    read = stage.streams.read_new(LEARNER, "l", [stage.run.rollouts], 10, None)
    assert [delivery.id for delivery in read] == ids


def test_a_recycler_that_is_killed_loses_nothing_and_repeats_nothing(stage) -> None:
    """Three lives, the grant growing with each; the tasks are those of one long life's groups, each once."""
    ids = stage.scored(*["mixed", "right", "wrong"] * 6)
    for granted in (5, 10, 60):
        stage.grant(granted)
        loop = stage.loop()  # the one before was killed: no stop()
        for _ in range(2):
            loop.tick()
    uids = [task.uid for task in stage.judge_tasks]
    assert len(set(uids)) == len(uids) > 10
    assert set(ids) >= stage.pending  # what could not be used, or is still waiting for its turn
    used = Counter(source.uid for task in stage.judge_tasks for source in task.sources)
    decided = len(ids) - len(stage.pending)
    assert len(used) == decided


def test_a_restart_restores_what_was_held_without_counting_it_twice(stage) -> None:
    ids = stage.scored("mixed", "wrong")
    first = stage.loop()
    first.tick()
    second = stage.loop()
    second.tick()
    assert stage.pending == set(ids)
    stage.grant(4)
    second.tick()
    made = stage.judge_tasks
    assert made
    first.tick()  # a zombie that plans the same groups after all
    assert stage.judge_tasks == made
    assert stage.ledger()["issued:judge"] == len(made)


def test_expired_and_unusable_groups_are_acked_without_a_task(stage) -> None:
    """The content bound is 4: what version 0 wrote is worth nothing at version 5."""
    [old, fresh, empty] = (stage.scored(kind, version=v)[0] for kind, v in [("mixed", 0), ("mixed", 1), ("empty", 5)])
    stage.grant(0, policy_version=5)
    stage.loop().tick()
    assert stage.pending == {fresh}
    assert stage.judge_tasks == []
    assert {old, empty}.isdisjoint(stage.pending)
    assert "issued:judge" not in stage.ledger()


def test_poison_is_buried_here_and_counted_only_by_the_learner(stage) -> None:
    """Its uid ends once. The learner reads the same entry, and there it ends."""
    [bad, good] = stage.scored("poison", "mixed")
    stage.loop().tick()
    assert stage.pending == {good}
    [(_, fields)] = stage.streams.client.xrange(stage.streams.keys.dead)
    assert (fields[b"group"], fields[b"kind"]) == (RECYCLER.encode(), b"")
    assert stage.ledger() == {"issued:policy": 2}
    assert bad in {d.id for d in stage.streams.read_new(LEARNER, "l", [stage.run.rollouts], 10, None)}


def test_it_says_how_far_it_got_under_which_grant(stage) -> None:
    """What the learner's wait for judge groups ends by."""
    ids = stage.scored("mixed", "wrong")
    stage.grant(3)
    loop = stage.loop()
    loop.tick()
    progress = stage.streams.progress()
    assert (progress["recycled_through"], progress["recycled_grant"]) == (ids[-1], "3")
    stage.grant(7)
    loop.tick()
    assert stage.streams.progress()["recycled_grant"] == "7"


def test_room_that_trickles_is_saved_up(stage) -> None:
    stage.scored(*["mixed"] * 4)
    loop = stage.loop(least_room=3)
    stage.grant(2)
    loop.tick()
    assert stage.judge_tasks == []
    stage.grant(3)
    loop.tick()
    assert stage.judge_tasks


class FullFor(Streams):
    refusals = 2

    def transfer(self, *args, **options):
        moves = list(args[3])
        if self.refusals and any(products for _, products in moves):
            self.refusals -= 1
            raise ServerFull("the server takes no new entries")
        return super().transfer(*args[:3], moves, **options)


def test_a_full_server_delays_what_was_decided(stage) -> None:
    stage.scored(*["mixed", "right", "wrong"] * 2)
    stage.grant(6)
    loop = stage.loop(FullFor(stage.streams.client, stage.streams.keys.run))
    loop.tick()
    assert stage.judge_tasks == []
    assert "recycled_through" not in stage.streams.progress()  # the learner may wait for what is not out yet
    for _ in range(4):
        loop.tick()
    uids = [task.uid for task in stage.judge_tasks]
    assert 0 < len(uids) <= 6
    assert len(set(uids)) == len(uids)


def test_its_heartbeat_says_what_it_waits_for(stage) -> None:
    stage.scored("mixed")
    loop = stage.loop()
    loop.tick()
    assert stage.streams.members()["recycler"]["state"] == "waiting for room"
    stage.now += 3.0
    stage.grant(5)
    loop.tick()
    assert stage.streams.members()["recycler"]["state"] == "waiting for groups"
    loop.stop()
    assert stage.streams.members()["recycler"]["state"] == "stopped"
