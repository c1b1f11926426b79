"""The learner's gate on the real server, fed with hand-made groups."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from common.codec import decode
from common.consumer import Consumer
from common.errors import Fenced, ServerFull, TooManyDead
from common.keys import ACTORS, LEARNER, RECYCLER
from common.lineage import ONE_LINE, Lineage
from common.messages import (
    ChatMessage,
    Completion,
    Objective,
    Rollout,
    RolloutGroup,
    SourceRef,
    Task,
    Verdict,
    uid_of,
)
from common.settings import Settings
from common.staleness import groups_in_flight_allowed
from common.streams import Delivery, Product, Streams
from common.templates import load_templates
from learner.intake import Intake
from learner.issuer import Issuer
from learner.prompts.records import Prompt
from learner.prompts.source import PromptSource
from learner.quota import Quota, oldest_first
from learner.shelf import Shelf
from learner.uid_ledger import UidLedger

CONTRAST, ALL_RIGHT = (1.0, 0.0), (1.0, 1.0)
MOST_WAITS = 300


def scored(task: Task, version: int, rewards=CONTRAST) -> RolloutGroup:
    def one(reward: float) -> Rollout:
        completion = Completion(
            token_ids=np.array([5, 2], dtype=np.int32),
            logprobs=np.array([-1.0, -1.0], dtype=np.float32),
            spans=((version, 0),),
            finish_reason="stop",
            text="t",
        )
        return Rollout(completion=completion, verdict=Verdict(status="ok", reward=reward, verifier="exact@1"))

    return RolloutGroup(
        task=task,
        prompt_token_ids=np.array([1], dtype=np.int32),
        rollouts=tuple(one(reward) for reward in rewards),
        actor="a",
        weights_epoch=1,
        generated_at=0.0,
    )


def prompts(number: int, epochs: int | None = None) -> PromptSource:
    records = [
        Prompt(index=i, question=f"q{i}", messages=(ChatMessage.user(f"q{i}"),), answer="2", verifier="exact")
        for i in range(number)
    ]
    return PromptSource(records, seed=0, shuffle=False, epochs=epochs)


@dataclass
class Held:
    """The fence of a learner that nobody takes it from."""

    token: str

    def hold(self, call):
        return call()


@dataclass
class World:
    """An intake, and actors whose groups the test writes by hand. ``on_wait`` is what happens while it waits."""

    run: object
    streams: Streams
    settings: Settings
    source: PromptSource
    epoch: int = 1
    ended: UidLedger = field(default_factory=UidLedger)
    lineage: Lineage = ONE_LINE
    guard: Callable[[], None] = lambda: None
    on_wait: Callable[[], None] = lambda: None
    now: float = 1.0
    stopped: bool = False
    waits: int = 0

    def __post_init__(self) -> None:
        keys = self.streams.keys
        self.tasks, self.rollouts = keys.tasks("policy"), keys.rollouts("policy")
        self.judge_tasks, self.judge_rollouts = keys.tasks("judge"), keys.rollouts("judge")
        self.issuer = Issuer(
            self.streams,
            Held(self.run.token),
            self.source,
            load_templates("default"),
            self.settings,
            cursor=self.streams.cursor() or 0,
            returned=Consumer(self.streams, LEARNER, f"learner-e{self.epoch}", [keys.returned]),
        )
        consumer = Consumer(self.streams, LEARNER, f"learner-e{self.epoch}", [self.judge_rollouts, self.rollouts])
        self.shelf = Shelf(
            self.streams,
            self.issuer,
            self.settings,
            consumer=consumer,
            ended=self.ended,
            lineage=self.lineage,
            clock=lambda: self.now,
        )
        self.intake = Intake(
            self.streams,
            self.issuer,
            self.shelf,
            self.settings,
            guard=lambda: self.guard(),
            stopping=self._stopping,
            clock=lambda: self.now,
        )

    def _stopping(self) -> bool:
        self.waits += 1
        assert self.waits < MOST_WAITS, "the intake waits for ever"
        if self.waits > 1:
            self.on_wait()
        return self.stopped

    def take(self, version: int, policy: int | None = None, judge: int = 0) -> list[RolloutGroup] | None:
        self.waits = 0
        policy = self.settings.learner.groups_per_step if policy is None else policy
        return self.intake.take(Quota(policy=policy, judge=judge), version)

    def claim(self, count: int = 100) -> list[Delivery]:
        return self.streams.read_new(ACTORS, "a", [self.tasks], count, None)

    def ship(self, deliveries: list[Delivery], version: int, rewards=CONTRAST) -> list[str]:
        moves = []
        for delivery in deliveries:
            group = scored(decode(Task, delivery.payload), version, rewards)
            moves.append((delivery.id, [Product.of(group.uid, group)]))
        self.streams.transfer(self.tasks, ACTORS, self.rollouts, moves)
        return [delivery.uid for delivery in deliveries]

    def ship_all(self, version: int, rewards=CONTRAST) -> list[str]:
        return self.ship(self.claim(), version, rewards)

    def judged(self, *objectives: Objective, version: int = 0, content: int = 0) -> list[str]:
        """Judge groups from nowhere: recycled from one more entry of the rollouts stream, and shipped."""
        source = SourceRef(
            uid="s", sample=0, answer_hash="h", policy_version=content, weights_epoch=1, correct=True, verifier="e@1"
        )
        [any_task] = [decode(Task, f[b"m"]) for _, f in self.streams.client.xrange(self.tasks, count=1)]
        made = []
        for objective in objectives:
            self._judged = getattr(self, "_judged", 0) + 1
            uid = uid_of(objective, self._judged)
            made.append(replace(any_task, uid=uid, objective=objective, sources=(source,), positive=True))
        [(entry_id, _)] = self.streams.client.xrange(self.rollouts, count=1)
        self.streams.client.xgroup_setid(self.rollouts, RECYCLER, "0")
        self.streams.read_new(RECYCLER, "recycler", [self.rollouts], 1, None)
        products = [Product.of(task.uid, task) for task in made]
        applied = self.streams.transfer(
            self.rollouts, RECYCLER, self.judge_tasks, [(entry_id.decode(), products)], issues="judge"
        )
        assert applied == [True]
        for delivery in self.streams.read_new(ACTORS, "a", [self.judge_tasks], 100, None):
            group = scored(decode(Task, delivery.payload), version)
            move = (delivery.id, [Product.of(group.uid, group)])
            self.streams.transfer(self.judge_tasks, ACTORS, self.judge_rollouts, [move])
        return [task.uid for task in made]

    def settle(self) -> dict[str, int]:
        """As after a durable checkpoint. Returns the ledger, without its zeros."""
        endings = list(self.shelf.endings)
        self.streams.settle(self.run.token, LEARNER, 0, endings)
        self.shelf.remember(endings)
        return {name: count for name, count in self.streams.ledger().items() if count}

    def outcomes(self) -> list[tuple[str, str]]:
        return [(ending.uid, ending.outcome) for ending in self.shelf.endings]

    @property
    def issued(self) -> int:
        return self.streams.ledger()["issued:policy"]


@pytest.fixture
def make_world(run, monkeypatch) -> Callable[..., World]:
    monkeypatch.setattr("learner.intake.BLOCK_MS", 0)  # an idle server wakes its blocked clients late

    def make(*, eta=0, source=None, streams=None, world=None, sampling=None, **learner) -> World:
        fields = {"groups_per_step": 2, "judge_share": 0.0, "max_steps": 120, **learner}
        settings = Settings(
            run={"name": "test"},
            sampling={"group_size": 2, **(sampling or {})},
            staleness={"max_staleness": eta},
            learner=fields,
        )
        return World(run, streams or run.streams, settings, source or prompts(500), **(world or {}))

    return make


def versions(groups: list[RolloutGroup]) -> list[int]:
    return [group.oldest_version for group in groups]


# -- the bound ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("eta", "updates"), [(0, 1), (1, 1), (2, 1), (3, 3)])
def test_no_batch_is_ever_staler_than_the_bound(make_world, seed, eta, updates) -> None:
    """Actors of any speed, groups in any order, some without a contrast, some generated with old weights."""
    rng, size = random.Random(seed), 3
    world = make_world(eta=eta, groups_per_step=size, updates_per_batch=updates, straggler_wait_s=0.0)
    allowed = groups_in_flight_allowed(size, updates, eta)
    held: list[tuple[Delivery, int]] = []
    version, most_in_flight, trained = 0, 0, []

    def actors_work() -> None:
        nonlocal most_in_flight
        most_in_flight = max(most_in_flight, world.issued - len(world.shelf.ended))
        lag = rng.randint(0, min(eta, version))
        held.extend((delivery, version - lag) for delivery in world.claim(rng.randint(1, 4)))
        rng.shuffle(held)
        for delivery, weights in [held.pop() for _ in range(min(len(held), rng.randint(1, 3)))]:
            world.ship([delivery], weights, rng.choice([CONTRAST, CONTRAST, ALL_RIGHT]))

    world.on_wait = actors_work
    for _ in range(8):
        batch = world.take(version)
        assert all(version - eta <= group.oldest_version <= version for group in batch)
        assert batch == sorted(batch, key=oldest_first)
        assert len(batch) == size
        trained += [group.uid for group in batch]
        version += updates
    assert len(set(trained)) == len(trained)
    assert most_in_flight <= allowed
    outcomes = world.outcomes()
    assert len({uid for uid, _ in outcomes}) == len(outcomes)
    if eta == 0:
        assert not any(outcome == "dropped_stale" for _, outcome in outcomes)  # admission prevents all of it
    ledger = world.settle()
    ended = sum(ledger.get(f"{outcome}:policy", 0) for outcome in ("trained", "filtered", "dropped_stale"))
    still_there = len(held) + world.streams.backlog(world.tasks, ACTORS).undelivered
    still_there += world.streams.backlog(world.rollouts, LEARNER).total
    assert ledger["issued:policy"] == ended + still_there


def test_a_batch_takes_the_oldest_first(make_world) -> None:
    world = make_world(eta=4, straggler_wait_s=0.0)
    world.on_wait = lambda: [world.ship([one], v) for one, v in zip(world.claim(4), (3, 1, 4, 2), strict=False)]
    assert versions(world.take(4)) == [1, 2]


def test_what_is_past_the_bound_is_dropped_counted_and_its_room_given_back(make_world) -> None:
    world = make_world(eta=1, straggler_wait_s=0.0)
    world.on_wait = lambda: world.ship_all(0)
    assert len(world.take(0)) == 2  # 4 issued, 4 shipped, 2 trained
    issued = world.issued
    world.on_wait = lambda: world.ship_all(2)
    assert versions(world.take(2)) == [2, 2]
    assert [outcome for _, outcome in world.outcomes()] == ["trained"] * 2 + ["dropped_stale"] * 2 + ["trained"] * 2
    assert world.issued == issued + 4  # the room of two trained and of two dropped
    ledger = world.settle()
    assert (ledger["trained:policy"], ledger["dropped_stale:policy"]) == (4, 2)


def test_a_group_that_ages_while_it_waits_is_looked_at_again_at_the_cut(make_world) -> None:
    """It was fresh when it arrived."""
    world = make_world(eta=1, straggler_wait_s=0.0)
    world.on_wait = lambda: [world.ship([one], v) for one, v in zip(world.claim(), (0, 0, 0, 1), strict=False)]
    assert versions(world.take(0)) == [0, 0]
    world.on_wait = lambda: world.ship_all(2)
    assert versions(world.take(2)) == [1, 2]


# -- groups that teach nothing --------------------------------------------------------------------------------


def test_a_group_without_contrast_is_filtered_and_another_is_issued(make_world) -> None:
    world = make_world()
    shipped = iter([ALL_RIGHT, CONTRAST, (0.0, 0.0), CONTRAST])
    world.on_wait = lambda: [world.ship([one], 0, next(shipped)) for one in world.claim()]
    batch = world.take(0)
    assert len(batch) == 2
    assert world.issued == 4
    assert [outcome for _, outcome in world.outcomes()] == ["filtered", "filtered", "trained", "trained"]
    assert world.settle() == {"issued:policy": 4, "filtered:policy": 2, "trained:policy": 2}


def test_the_refill_ends_and_a_smaller_batch_is_taken(make_world) -> None:
    world = make_world(refill=2.0)
    shipped = iter([CONTRAST, *[ALL_RIGHT] * 100])
    world.on_wait = lambda: [world.ship([one], 0, next(shipped)) for one in world.claim()]
    assert len(world.take(0)) == 1
    assert world.issued == 4  # 2 * groups_per_step, and not one more


def test_where_nothing_has_a_contrast_it_looks_further(make_world) -> None:
    """An empty batch would be no update: the refill begins anew until there is something to learn."""
    world = make_world(refill=2.0)
    shipped = iter([*[ALL_RIGHT] * 9, CONTRAST, CONTRAST, *[ALL_RIGHT] * 9])
    world.on_wait = lambda: [world.ship([one], 0, next(shipped)) for one in world.claim()]
    assert 1 <= len(world.take(0)) <= 2
    assert world.issued > 8


def test_looking_further_in_vain_is_told(make_world) -> None:
    """After two rounds of the refill; a batch ends it."""
    world = make_world(refill=2.0)
    shipped, told = iter([*[(0.0, 0.0)] * 12, *[CONTRAST] * 99]), []

    def ship_one_by_one() -> None:
        told.append(world.intake.figures())
        for one in world.claim():
            world.ship([one], 0, next(shipped))

    world.on_wait = ship_one_by_one
    world.take(0)
    assert next(figures for figures in told if figures) == {"no_contrast": {"groups": 8, "reward": 0.0}}
    assert told[0] == world.intake.figures() == {}


@pytest.mark.parametrize("seed", range(6))
def test_it_never_waits_for_groups_that_nobody_will_make(make_world, seed: int) -> None:
    """Groups left over from the last batch, a spent refill and the end of the run together: no one is on the way."""
    draw = random.Random(seed)
    world = make_world(
        eta=1, groups_per_step=4, refill=draw.choice([1.0, 1.5, 4.0]), max_steps=12, straggler_wait_s=0.0
    )
    contrast = draw.choice([0.1, 0.4])

    def ship() -> None:
        for one in world.claim(draw.randint(1, 4)):
            world.ship([one], version, CONTRAST if draw.random() < contrast else ALL_RIGHT)

    world.on_wait = ship
    for version in range(12):
        assert 1 <= len(world.take(version)) <= 4


def test_with_the_filter_off_all_are_trained(make_world) -> None:
    world = make_world(filter_zero_variance=False)
    world.on_wait = lambda: world.ship_all(0, ALL_RIGHT)
    assert len(world.take(0)) == 2
    assert world.issued == 2


# -- entries that come twice, or are none ---------------------------------------------------------------------


def lose(world: World, group: RolloutGroup) -> None:
    """The server loses its last second, and with it the entry; the task is done again and comes under a new id."""
    client = world.streams.client
    for entry_id, fields in client.xrange(world.rollouts):
        if fields[b"uid"].decode() == group.uid:
            client.xack(world.rollouts, LEARNER, entry_id)
            client.xdel(world.rollouts, entry_id)
    product = Product.of(group.uid, group)
    client.xadd(world.rollouts, {"uid": product.uid, "m": product.payload})


def test_a_group_that_the_server_lost_is_trained_once_and_counted_once(make_world) -> None:
    world = make_world()
    world.on_wait = lambda: world.ship_all(0)
    first = world.take(0)
    for group in first:
        lose(world, group)
    world.on_wait = lambda: world.ship_all(1)
    second = world.take(1)
    assert {g.uid for g in first}.isdisjoint(g.uid for g in second)
    assert world.settle() == {"issued:policy": 4, "trained:policy": 4}
    assert world.streams.backlog(world.rollouts, LEARNER).total == 0


def test_twins_of_before_a_restart_give_their_room_back(make_world) -> None:
    """The server forgot that they ended, so it counts them as in flight when the new learner starts."""
    old = make_world()
    old.on_wait = lambda: old.ship_all(0)
    first = old.take(0)
    for group in first:
        lose(old, group)
    new = make_world(world={"epoch": 2, "ended": old.shelf.ended})
    new.on_wait = lambda: new.ship_all(1)
    assert {group.uid for group in new.take(1)}.isdisjoint(group.uid for group in first)
    assert new.settle() == {"issued:policy": 4, "trained:policy": 4}
    assert new.shelf.trained == 2


def test_what_lost_weights_sampled_is_trained_within_the_bound_and_else_issued_again(make_world) -> None:
    """Epoch 2 goes on from version 1 of epoch 1, which had come to version 3."""
    lineage = Lineage.of(2, {1: (0, 0), 2: (1, 1)})
    world = make_world(eta=2, groups_per_step=3, straggler_wait_s=0.0, world={"epoch": 2, "lineage": lineage})
    world.issuer.issue(9, 0)
    shipped = {version: world.ship(world.claim(3), version) for version in (0, 3, 4)}  # the last two are lost weights
    batches = [world.take(1, policy=6)]
    assert sorted(group.uid for group in batches[0]) == sorted(shipped[0] + shipped[3])
    issued_again = [decode(Task, fields[b"m"]) for _, fields in world.streams.client.xrange(world.tasks)][9:12]
    assert [task.uid for task in issued_again] == shipped[4]  # before any new ones, in the order of the prompts
    assert {task.issued_version for task in issued_again} == {1}
    assert [world.shelf.staleness(group) for group in batches[0]] == [1] * 3 + [2] * 3
    assert not any(outcome == "dropped_stale" for _, outcome in world.outcomes())


def test_lost_weights_that_age_are_issued_again_and_not_dropped(make_world) -> None:
    lineage = Lineage.of(2, {1: (0, 0), 2: (1, 1)})
    world = make_world(eta=2, groups_per_step=2, straggler_wait_s=0.0, world={"epoch": 2, "lineage": lineage})
    world.issuer.issue(4, 0)
    old = world.ship(world.claim(2), 3)
    young = world.ship(world.claim(2), 0)
    assert sorted(group.uid for group in world.take(1, policy=2)) == sorted(young)
    world.on_wait = lambda: world.ship_all(2)
    for _ in range(3):
        world.take(2, policy=2)
    again = [task for task in world.run.uids(world.tasks) if task in old]
    assert again == old + old  # issued, and issued again in the order of the prompts
    assert set(old) <= {uid for uid, outcome in world.outcomes() if outcome == "trained"}
    assert not any(outcome == "dropped_stale" for _, outcome in world.outcomes())


def returned_and_two_ready(make_world) -> tuple[World, list[str]]:
    """The server forgot that the second prompt had no contrast, and it was sampled again, by weights that are lost now.

    The third one was issued in its place, so a batch is ready without it.
    """
    world = make_world(eta=0, world={"epoch": 2, "lineage": Lineage.of(2, {1: (0, 0), 2: (0, 0)})})
    world.issuer.issue(3, 0)
    first, second, third = world.claim(3)
    world.ship([first, third], 0)
    world.ship([second], 1)
    return world, [first.uid, second.uid, third.uid]


def test_synchronous_training_goes_by_the_order_of_the_prompts(make_world) -> None:
    world, uids = returned_and_two_ready(make_world)
    world.on_wait = lambda: world.ship_all(0, ALL_RIGHT)
    batch = world.take(0)
    assert world.outcomes()[0] == (uids[1], "filtered")
    assert sorted(group.uid for group in batch) == sorted([uids[0], uids[2]])
    assert world.run.uids(world.tasks) == [*uids, uids[1]]  # issued again, and nothing new


def test_a_prompt_that_came_back_is_trained_in_its_turn(make_world) -> None:
    world, uids = returned_and_two_ready(make_world)
    first = [group.uid for group in world.take(0, policy=1)]
    assert first == [uids[0]]  # its turn is before that of the one that is out


def test_a_prompt_on_its_way_back_is_waited_for_while_nothing_is_issued(make_world) -> None:
    world, uids = returned_and_two_ready(make_world)
    world.on_wait = lambda: world.ship_all(0, ALL_RIGHT)
    batch = world.intake.take(Quota(policy=2, judge=0), 0, tend=lambda: world.waits > 2)
    assert world.outcomes()[0] == (uids[1], "filtered")
    assert len(batch) == 2


def test_a_prompt_that_the_server_forgot_for_good_is_not_waited_for(make_world) -> None:
    world, uids = returned_and_two_ready(make_world)

    def forget() -> None:
        world.now += 2.0
        world.streams.client.xtrim(world.tasks, maxlen=0, approximate=False)

    world.on_wait = forget
    assert sorted(group.uid for group in world.take(0)) == sorted([uids[0], uids[2]])


def test_too_many_deaths_end_the_run_with_what_to_look_at(make_world) -> None:
    world = make_world(groups_per_step=2, refill=2.0)

    def kill_all() -> None:
        for delivery in world.claim():
            world.streams.bury(delivery, ACTORS, "the verifier is broken", "policy")

    world.on_wait = kill_all
    with pytest.raises(TooManyDead, match="tasks have died since the last batch"):
        world.take(0)
    assert world.issued < 20


def test_twins_that_arrive_together_are_one_group(make_world) -> None:
    world = make_world()

    def ship_twice() -> None:
        for delivery in world.claim():
            group = scored(decode(Task, delivery.payload), 0)
            product = Product.of(group.uid, group)
            world.streams.transfer(world.tasks, ACTORS, world.rollouts, [(delivery.id, [product, product])])

    world.on_wait = ship_twice
    batch = world.take(0)
    assert len({group.uid for group in batch}) == 2
    world.on_wait = lambda: world.ship_all(1)
    world.take(1)
    assert world.settle() == {"issued:policy": 4, "trained:policy": 4}


def poison_cases(task: Task) -> dict[str, tuple[str, object]]:
    """uid of the entry, and what is in it."""
    judge = replace(task, objective="pointwise")
    return {
        "no message": (task.uid, b"\xc1"),
        "uid of another": ("0" * 32, scored(task, 0)),
        "uid that is none": ("not-hex", scored(replace(task, uid="not-hex"), 0)),
        "short uid": ("ab", scored(replace(task, uid="ab"), 0)),
        "judge group on the policy stream": (task.uid, scored(judge, 0)),
    }


@pytest.mark.parametrize(
    "case", ["no message", "uid of another", "uid that is none", "short uid", "judge group on the policy stream"]
)
def test_poison_is_dead_and_gives_its_room_back(make_world, case) -> None:
    world = make_world()
    bad = []

    def ship() -> None:
        for delivery in world.claim():
            if bad:
                world.ship([delivery], 0)
                continue
            uid, content = poison_cases(decode(Task, delivery.payload))[case]
            product = Product(uid=uid, payload=content) if isinstance(content, bytes) else Product.of(uid, content)
            world.streams.transfer(world.tasks, ACTORS, world.rollouts, [(delivery.id, [product])])
            bad.append(uid)

    world.on_wait = ship
    assert len(world.take(0)) == 2
    [(_, fields)] = world.streams.client.xrange(world.streams.keys.dead)
    assert fields[b"uid"].decode() == bad[0]
    assert world.settle() == {"issued:policy": 3, "dead:policy": 1, "trained:policy": 2}


def first_batch(world: World) -> list[Delivery]:
    """Train the first batch of version 0; returns the tasks of it that are still being generated."""
    held: list[Delivery] = []

    def half_of_them() -> None:
        if not held:
            held.extend(world.claim())
            world.ship([held.pop() for _ in range(2)], 0)

    world.on_wait = half_of_them
    assert len(world.take(0)) == 2
    return held


# -- waiting ------------------------------------------------------------------------------------------------


def test_a_full_batch_waits_for_old_groups_but_not_for_ever(make_world) -> None:
    world = make_world(eta=1, straggler_wait_s=10.0)
    assert len(first_batch(world)) == 2
    started = world.now

    def the_new_ones_only() -> None:
        world.ship_all(1)
        world.now += 1.0

    world.on_wait = the_new_ones_only
    assert versions(world.take(1)) == [1, 1]
    assert 10.0 <= world.now - started <= 13.0


def test_a_straggler_that_comes_in_time_is_taken_first(make_world) -> None:
    world = make_world(eta=1, straggler_wait_s=10.0)
    late = first_batch(world)
    assert len(late) == 2

    def both() -> None:
        world.ship_all(1)
        world.now += 1.0
        if world.now > 4.0:
            world.ship([late.pop() for _ in range(len(late))], 0)

    world.on_wait = both
    assert versions(world.take(1)) == [0, 0]
    assert world.now < 8.0


def test_groups_with_time_left_are_not_waited_for(make_world) -> None:
    """Outstanding, but fresh enough for the next batch too."""
    world = make_world(eta=2, straggler_wait_s=10.0)
    world.on_wait = lambda: world.ship(world.claim(2), 0)
    assert len(world.take(0)) == 2
    world.on_wait = lambda: world.ship(world.claim(2), 1)
    world.take(1)
    assert world.now == 1.0


def test_judge_groups_never_block(make_world) -> None:
    world = make_world(eta=1, judge_share=0.5, judge_wait_s=0.0, straggler_wait_s=0.0)
    world.on_wait = lambda: world.ship_all(0)
    assert [group.task.objective for group in world.take(0, judge=2)] == ["solve", "solve"]


def test_judge_groups_on_their_way_are_waited_for_but_not_for_ever(make_world) -> None:
    world = make_world(eta=1, judge_share=0.5, judge_wait_s=5.0, straggler_wait_s=0.0)

    def policy_only() -> None:
        world.ship_all(0)
        world.now += 1.0

    world.on_wait = policy_only
    assert len(world.take(0, judge=2)) == 2
    assert 6.0 <= world.now <= 9.0


def test_a_recycler_that_has_nothing_more_ends_the_wait(make_world) -> None:
    world = make_world(eta=1, judge_share=0.5, judge_wait_s=500.0, straggler_wait_s=0.0)

    def recycler_has_looked_at_all() -> None:
        world.ship_all(0)
        granted = int(world.streams.progress().get("judge_granted", 0))
        newest = world.streams.client.xrevrange(world.rollouts, count=1)[0][0].decode()
        world.streams.report_progress(recycled_through=newest, recycled_grant=granted)
        world.now += 1.0

    world.on_wait = recycler_has_looked_at_all
    assert len(world.take(0, judge=2)) == 2
    assert world.now < 10.0


def test_judge_groups_fill_their_quota_and_the_rest_waits(make_world) -> None:
    world = make_world(eta=1, judge_share=0.5, judge_wait_s=0.0, straggler_wait_s=0.0)
    world.on_wait = lambda: world.ship_all(0)
    world.take(0, judge=0)
    shipped = world.judged("pointwise", "pairwise", "reflect", version=1, content=0)
    world.on_wait = lambda: world.ship_all(1)
    batch = world.take(1, judge=2)
    judged = [group.uid for group in batch if group.task.objective != "solve"]
    assert len(judged) == 2
    assert set(judged) < set(shipped)
    [rest] = set(shipped) - set(judged)
    assert [group.uid for group in world.take(2, policy=0, judge=2)] == [rest]
    ledger = world.settle()
    assert (ledger["issued:judge"], ledger["trained:judge"]) == (3, 3)


def test_content_has_a_bound_of_its_own(make_world) -> None:
    """Sampled with fresh weights, but about an answer of long ago: no ratio can correct that."""
    world = make_world(eta=1, judge_share=0.5, judge_wait_s=0.0, straggler_wait_s=0.0)
    world.on_wait = lambda: world.ship_all(0)
    world.take(0)
    [old, recent] = [*world.judged("reflect", version=9, content=4), *_next_judged(world)]
    world.on_wait = lambda: world.ship_all(9)
    batch = world.take(9, judge=2)
    assert [group.uid for group in batch if group.task.objective != "solve"] == [recent]
    assert (old, "dropped_stale") in world.outcomes()


def _next_judged(world: World) -> list[str]:
    client = world.streams.client
    client.xtrim(world.rollouts, maxlen=client.xlen(world.rollouts) - 1)  # the first entry has been recycled
    return world.judged("reflect", version=9, content=5)


def test_a_pure_judge_batch_issues_no_prompts_and_may_be_empty(make_world) -> None:
    world = make_world(eta=0, judge_share=0.5, mixing="alternate", judge_wait_s=0.0)
    assert world.take(0, policy=0, judge=2) == []
    assert world.issued == 0


# -- admission ----------------------------------------------------------------------------------------------


def test_no_prompt_is_issued_beyond_the_last_step(make_world) -> None:
    world = make_world(eta=4, max_steps=3, straggler_wait_s=0.0)
    world.on_wait = lambda: world.ship_all(0)
    for version in range(3):
        assert len(world.take(version)) == 2
    assert world.issued == 6


def test_judge_tasks_are_granted_within_their_own_budget(make_world) -> None:
    world = make_world(eta=1, judge_share=0.5, judge_wait_s=0.0, straggler_wait_s=0.0)
    world.on_wait = lambda: world.ship_all(0)
    world.take(0, judge=2)
    assert world.streams.progress()["judge_granted"] == "4"  # (eta + 1) * 2
    world.judged("pointwise", "reflect", version=1)
    world.on_wait = lambda: world.ship_all(1)
    world.take(1, judge=2)
    world.take(2, judge=2)
    assert world.streams.progress()["judge_granted"] == "6"  # two have ended


class Crowded(Streams):
    share = 0.9

    def memory_share(self) -> float:
        return self.share


def test_a_server_that_is_nearly_full_is_given_nothing_more(make_world, run) -> None:
    world = make_world(streams=Crowded(run.streams.client, "test"))

    def look() -> None:
        if world.waits == 5:
            assert world.issued == 0
            world.streams.share = 0.1
        world.ship_all(0)

    world.on_wait = look
    assert len(world.take(0)) == 2


class Full(Streams):
    refusals = 3

    def issue(self, *args, **options):
        if self.refusals:
            self.refusals -= 1
            raise ServerFull("no room")
        return super().issue(*args, **options)


def test_a_full_server_pauses_the_issuer_only(make_world, run) -> None:
    world = make_world(streams=Full(run.streams.client, "test"))
    world.on_wait = lambda: world.ship_all(0)
    assert len(world.take(0)) == 2
    assert world.issued == 2


# -- endings and beginnings -----------------------------------------------------------------------------------


def test_what_has_arrived_is_looked_at_even_when_a_batch_is_ready(make_world) -> None:
    """An actor that was slow ships at last: its group is the oldest, and this is its last chance."""
    world = make_world(eta=2, straggler_wait_s=0.0)
    held: list[Delivery] = []

    def all_but_one() -> None:
        if not held:
            [first, *others] = world.claim()
            held.append(first)
            world.ship(others, 0)

    world.on_wait = all_but_one
    world.take(0)  # 6 issued, 5 shipped, 2 trained
    world.on_wait = lambda: None
    slow = world.ship(held, 0)
    world.judged("reflect", version=0)
    assert [group.task.objective for group in world.take(2, judge=2)] == ["solve", "solve", "reflect"]
    world.take(2)
    assert (slow[0], "trained") in world.outcomes()


@pytest.mark.parametrize("eta", [0, 1])
def test_it_ends_when_the_prompts_do(make_world, eta) -> None:
    world = make_world(source=prompts(2, epochs=2), eta=eta, straggler_wait_s=0.0)
    version = 0
    world.on_wait = lambda: world.ship_all(version)
    for version in range(2):
        assert len(world.take(version)) == 2  # with eta = 0 nothing else is in flight when the last are issued
    assert world.take(2) is None
    assert world.issued == 4


def test_it_ends_when_told_to(make_world) -> None:
    world = make_world()

    def stop() -> None:
        world.stopped = True

    world.on_wait = stop
    assert world.take(0) is None


def test_a_fenced_learner_takes_nothing(make_world) -> None:
    def fenced() -> None:
        raise Fenced("newer")

    world = make_world(world={"guard": fenced})
    with pytest.raises(Fenced):
        world.take(0)
    assert world.issued == 0


def test_the_issuer_of_a_fenced_learner_issues_nothing(make_world, run) -> None:
    world = make_world()
    assert run.streams.take_fence(2, "2:newer")
    with pytest.raises(Fenced):
        world.take(0)
    assert world.issued == 0


def test_a_new_learner_trains_what_the_old_one_had_and_skips_what_it_trained(make_world) -> None:
    """Killed after a checkpoint that trained the first batch, before its acks; it had read more by then."""
    old = make_world(eta=2, straggler_wait_s=0.0)
    old.on_wait = lambda: old.ship_all(0)
    trained = {group.uid for group in old.take(0)}
    assert old.issued == 6
    assert old.shelf.ended.uids() == trained
    new = make_world(eta=2, straggler_wait_s=0.0, world={"epoch": 2, "ended": old.shelf.ended})
    for stream in (new.rollouts, new.judge_rollouts):
        new.streams.adopt(stream, LEARNER, "learner-e2")
    batches = [new.take(1), new.take(2)]
    uids = [group.uid for batch in batches for group in batch]
    assert len(set(uids)) == 4
    assert trained.isdisjoint(uids)


def test_settled_endings_are_forgotten_and_the_others_kept(make_world) -> None:
    world = make_world()
    world.on_wait = lambda: world.ship_all(0)
    world.take(0)
    settled = list(world.shelf.endings)
    world.on_wait = lambda: world.ship_all(1)
    world.take(1)
    world.shelf.remember(settled)
    assert len(world.shelf.endings) == 2
    assert set(settled).isdisjoint(world.shelf.endings)


# -- what must not make it wait -------------------------------------------------------------------------------


def test_a_server_without_room_is_relieved_by_acknowledging_what_has_ended(make_world, monkeypatch) -> None:
    """Without it no step would ever come: no room, hence no prompts; no step, hence no checkpoint; no ack, no room."""
    world = make_world()
    world.on_wait = lambda: world.ship([*world.claim(1)], 0, ALL_RIGHT)
    share, relieved = [0.0], []
    monkeypatch.setattr(world.streams, "memory_share", lambda: share[0])

    def relieve() -> None:
        relieved.append(len(world.shelf.endings))
        share[0] = 0.0  # what was acknowledged has been deleted
        world.on_wait = lambda: world.ship_all(0)

    def fill_up() -> None:
        world.ship(world.claim(1), 0, ALL_RIGHT)
        share[0] = 0.9

    world.on_wait = fill_up
    world.waits = 0
    batch = world.intake.take(Quota(policy=2, judge=0), 0, relieve)
    assert len(batch) == 2
    assert relieved
    assert relieved[0] >= 1


def test_no_batch_waits_for_a_task_that_died_at_its_actor(make_world) -> None:
    world = make_world(eta=1, straggler_wait_s=30.0)

    def first() -> None:
        claimed = world.claim()
        if claimed:
            world.streams.bury(claimed[0], ACTORS, "prompt too long", "policy")
            world.ship(claimed[1:], 0)

    world.on_wait = first
    assert len(world.take(0)) == 2
    world.now += 1.0
    assert len(world.take(1)) == 2
    assert world.now < 10.0
    assert all(version >= 1 for version in world.issuer.outstanding.values())


def test_the_same_entry_read_again_is_no_twin(make_world) -> None:
    world = make_world()
    world.on_wait = lambda: world.ship(world.claim(1), 0)
    shelf, seen = world.shelf, []
    arrive = shelf._arrive

    def twice(delivery, kind) -> None:
        arrive(delivery, kind)
        arrive(delivery, kind)
        seen.append(delivery.uid)

    shelf._arrive = twice
    assert len(world.take(0)) == 2
    assert [ending.uid for ending in shelf.endings if not ending.uid] == []
    assert world.settle()["trained:policy"] == 2


def test_a_death_between_two_batches_is_noticed(make_world) -> None:
    world = make_world(eta=1, straggler_wait_s=30.0)
    left: list[Delivery] = []

    def ship_two() -> None:
        if not left:
            left.extend(world.claim())
            world.ship([left.pop(), left.pop()], 0)

    world.on_wait = ship_two
    assert len(world.take(0)) == 2
    doomed, *others = left
    world.streams.bury(doomed, ACTORS, "prompt too long", "policy")
    world.on_wait = lambda: (world.ship(others, 0), others.clear(), world.ship_all(1))
    world.take(1)
    assert doomed.uid not in world.issuer.outstanding


def test_a_wait_names_what_it_waits_for_and_who_ends_it(make_world) -> None:
    intake, quota = make_world().intake, Quota(policy=2, judge=3)
    policy, judge = intake.waiting_for(quota, full=False), intake.waiting_for(quota, full=True)
    assert "2 policy groups" in policy.waits_for
    assert "actors" in policy.unblocked_by
    assert "3 judge groups" in judge.waits_for
    assert "recycler" in judge.unblocked_by
