"""A task that kills its actor: it dies alone, and nobody that was claimed beside it pays for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from actors.actor import Actor
from actors.engine import Generated, Request
from actors.suspects import Suspects
from actors.verifiers.pool import InlineVerifier
from common.consumer import Consumer
from common.errors import ServerFull
from common.keys import ACTORS
from common.messages import Completion, Task
from common.streams import Delivery, Streams
from common.weights import WeightStore

LEASE_S = 40.0
FOR_DAYS_MS = 1_000_000_000


class Killed(BaseException):
    """The process is gone: nothing after this point happens."""


@dataclass
class Engine:
    """Finishes a group after three steps; a step with a poison among its prompts kills the process."""

    poisons: frozenset[str] = frozenset()
    policy_version: int = -1
    running: dict[str, list] = field(default_factory=dict)
    together: list[frozenset[str]] = field(default_factory=list)
    """Uids in flight at each step."""

    @property
    def groups_in_flight(self) -> int:
        return len(self.running)

    def tokenize(self, messages):
        return np.array([ord(c) for c in messages[0].content[0].text], dtype=np.int32)

    def add(self, request: Request) -> None:
        self.running[request.key] = [request, 0]

    def step(self) -> list[Generated]:
        if not self.running:
            return []
        uids = frozenset("".join(map(chr, request.prompt_token_ids)) for request, _ in self.running.values())
        self.together.append(uids)
        if uids & self.poisons:
            raise Killed
        for entry in self.running.values():
            entry[1] += 1
        done = [request for request, steps in self.running.values() if steps == 3]
        for request in done:
            del self.running[request.key]
        return [Generated(request=request, completions=completions(request)) for request in done]

    def forget(self) -> None:
        self.running.clear()

    def apply(self, files, policy_version: int) -> None:
        self.policy_version = policy_version


def completions(request: Request) -> tuple[Completion, ...]:
    one = Completion(
        token_ids=np.array([7, 2], dtype=np.int32),
        logprobs=np.array([-1.0, -0.5], dtype=np.float32),
        spans=((0, 0),),
        finish_reason="stop",
        text="\\boxed{2}",
    )
    return (one,) * request.sampling.n


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    run: object
    engines: list[Engine] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    def start(self, name: str, poisons: tuple[str, ...] = (), **options) -> Actor:
        """The next life of an actor."""
        self.engines.append(Engine(frozenset(poisons)))
        fields = {"max_staleness": 1, "groups_in_flight": 8, "lease_s": LEASE_S, "max_deliveries": 5} | options
        streams = fields.pop("streams", self.run.streams)
        return Actor(name, streams, self.engines[-1], InlineVerifier(), clock=self.clock, **fields)

    def leases_run_out(self) -> None:
        for entry_id, (owner, _) in self.run.pending(self.run.tasks, ACTORS).items():
            client = self.run.streams.client
            client.xclaim(self.run.tasks, ACTORS, owner, 0, [entry_id], idle=FOR_DAYS_MS, justid=True)

    def tick(self, actor: Actor, times: int = 1) -> None:
        for _ in range(times):
            self.clock.now += 0.6  # an idle actor looks for expired leases as often
            actor.tick()

    def live(self, names: Iterator[str], poisons: tuple[str, ...], lives: int, **options) -> int:
        """Actors one after the other, each until it is killed or nothing is left. Returns how many were killed."""
        for life in range(lives):
            actor = self.start(next(names), poisons, **options)
            try:
                self.tick(actor, 60)
            except Killed:
                self.leases_run_out()
            else:
                return life
        pytest.fail(f"{lives} actors were killed")

    @property
    def deliveries(self) -> dict[str, int]:
        """Uid -> deliveries of what is pending."""
        rows = dict(self.run.streams.client.xrange(self.run.tasks))
        pending = self.run.pending(self.run.tasks, ACTORS)
        return {rows[entry_id.encode()][b"uid"].decode(): count for entry_id, (_, count) in pending.items()}

    def dead(self) -> list[tuple[str, int]]:
        return [(letter.uid, letter.deliveries) for letter in self.run.streams.dead_letters()]


@pytest.fixture
def world(run, make_task, tmp_path: Path, monkeypatch) -> World:
    monkeypatch.setattr("actors.actor.IDLE_BLOCK_MS", 0)  # an idle server wakes its blocked clients late
    manifest = WeightStore(tmp_path / "weights").publish(1, 0, -1, lambda folder: (folder / "m").write_bytes(b"w"))
    run.streams.publish(manifest)
    return World(run)


@pytest.fixture
def issue(run, make_task) -> Callable[..., None]:
    def issue(*uids: str) -> None:
        def named(uid: str) -> Task:
            task = make_task(uid)
            return replace(task, messages=(replace(task.messages[0], content=named_content(task, uid)),))

        cursor = run.streams.cursor() or 0
        run.streams.issue(run.token, cursor, [named(uid) for uid in uids])

    return issue


def named_content(task: Task, uid: str):
    return (replace(task.messages[0].content[0], text=uid),)


def same_name() -> Iterator[str]:
    while True:
        yield "actor-0"


def other_names() -> Iterator[str]:
    yield from (f"actor-{number}" for number in range(1000))


@pytest.mark.parametrize("names", [same_name, other_names])
@pytest.mark.parametrize("max_deliveries", [3, 4, 5, 9])
def test_a_poison_dies_alone(world, issue, names, max_deliveries) -> None:
    uids = list("abcdefgh")
    issue(*uids)
    killed = world.live(names(), ("d",), 40, max_deliveries=max_deliveries)
    assert killed == max_deliveries
    assert world.dead() == [("d", max_deliveries + 1)]
    assert sorted(world.run.uids(world.run.rollouts)) == [uid for uid in uids if uid != "d"]
    assert world.run.pending(world.run.tasks, ACTORS) == {}


def test_two_poisons_in_one_batch_take_nobody_with_them(world, issue) -> None:
    uids = list("abcdefgh")
    issue(*uids)
    world.live(other_names(), ("b", "g"), 40)
    assert sorted(world.dead()) == [("b", 6), ("g", 6)]
    assert sorted(world.run.uids(world.run.rollouts)) == list("acdefh")


def test_a_suspect_has_the_actor_to_itself(world, issue) -> None:
    issue(*"abcd")
    world.live(other_names(), ("c",), 40)
    alone = [step for engine in world.engines for step in engine.together if "c" in step]
    assert [len(step) for step in alone] == [4, 4, 1, 1, 1]


def test_neighbours_lose_two_deliveries_at_most_and_none_while_they_wait_for_the_suspect(world, issue) -> None:
    issue(*"abcd")
    counts = []
    for name in ("x", "y", "z", "z2"):
        actor = world.start(name, ("a",))  # the first in line
        with pytest.raises(Killed):
            world.tick(actor, 60)
        counts.append(world.deliveries)
        world.leases_run_out()
    assert counts == [
        {"a": 1, "b": 1, "c": 1, "d": 1},
        {"a": 2, "b": 2, "c": 2, "d": 2},
        {"a": 3, "b": 2, "c": 2, "d": 2},
        {"a": 4, "b": 2, "c": 2, "d": 2},
    ]


def test_a_busy_actor_drains_and_then_takes_the_suspect(world, issue, run) -> None:
    """There is always more to claim, and still the suspect gets its turn."""
    issue("s")
    for name in ("dead-1", "dead-2"):
        Consumer(run.streams, ACTORS, name, [run.tasks], lease_s=1e-9).claim(1)
    world.leases_run_out()
    issue(*(f"n{number}" for number in range(40)))
    actor = world.start("actor-0", groups_in_flight=4)
    world.clock.now += LEASE_S  # the expired are looked for before new ones
    for _ in range(80):
        world.tick(actor)
    steps = world.engines[-1].together
    assert frozenset({"s"}) in steps
    assert not any("s" in step and len(step) > 1 for step in steps)
    assert len(world.run.uids(run.rollouts)) == 41


def test_a_suspect_that_comes_while_others_run_waits_for_them(world, issue, run) -> None:
    issue("s")
    for name in ("dead-1", "dead-2"):
        Consumer(run.streams, ACTORS, name, [run.tasks], lease_s=1e-9).claim(1)
    issue("a", "b")
    actor = world.start("actor-0")
    world.tick(actor)
    world.leases_run_out()
    world.clock.now += LEASE_S / 4
    issue("late")
    world.tick(actor, 12)
    steps = list(dict.fromkeys(world.engines[-1].together))
    assert steps == [frozenset({"a", "b"}), frozenset({"s"}), frozenset({"late"})]


def test_stopping_costs_no_task_a_delivery(world, issue) -> None:
    """Actors that are told to stop again and again, as on preemptible machines, wear no healthy task out."""
    issue("a", "b")
    for number in range(9):
        actor = world.start(f"actor-{number}")
        world.tick(actor, 2)
        actor.stop()
        world.clock.now += LEASE_S
    world.live(other_names(), (), 1)
    assert sorted(world.run.uids(world.run.rollouts)) == ["a", "b"]
    assert world.dead() == []


class Full(Streams):
    """Takes nothing back."""

    def transfer(self, *args, **options):
        raise ServerFull("the server takes no new entries")


def test_a_full_server_costs_a_task_that_goes_back_no_delivery(world, issue, run, make_task) -> None:
    """It was issued for a version that does not exist, and there is no room to return it."""
    ahead = replace(make_task("ahead"), issued_version=7)
    run.streams.issue(run.token, run.streams.cursor() or 0, [ahead])
    actor = world.start("actor-0", streams=Full(run.streams.client, run.streams.keys.run))
    for _ in range(12):
        world.clock.now += 1.0
        world.tick(actor)
    assert world.dead() == []
    assert world.deliveries == {"ahead": 0}


@pytest.mark.parametrize(("max_deliveries", "first"), [(1, 2), (2, 2), (3, 2), (4, 3), (5, 3), (100, 3)])
def test_who_is_a_suspect(run, max_deliveries, first) -> None:
    suspects = Suspects(Consumer(run.streams, ACTORS, "a", [run.tasks]), max_deliveries)
    entry = Delivery(stream=run.tasks, id="1-0", uid="u", payload=b"")
    counts = [count for count in range(1, 6) if suspects.includes(replace(entry, deliveries=count))]
    assert counts[0] == first


# -- the call on the server -----------------------------------------------------------------------------------


def test_only_the_owner_says_how_often_an_entry_was_delivered(run) -> None:
    run.issue("a", "b")
    first, second = run.streams.read_new(ACTORS, "mine", [run.tasks], 2, None)
    counts = {first.id: 0, second.id: 4}
    assert run.streams.recount(run.tasks, ACTORS, "other", counts) == set()
    assert run.pending(run.tasks, ACTORS) == {first.id: ("mine", 1), second.id: ("mine", 1)}
    assert run.streams.recount(run.tasks, ACTORS, "mine", counts) == {first.id, second.id}
    assert run.pending(run.tasks, ACTORS) == {first.id: ("mine", 0), second.id: ("mine", 4)}


def test_an_entry_handed_back_untried_comes_as_if_for_the_first_time(run) -> None:
    run.issue("a", "b")
    first, second = run.streams.read_new(ACTORS, "mine", [run.tasks], 2, None)
    back = run.streams.hand_back(run.tasks, ACTORS, "mine", [first.id, second.id], deliveries={first.id: 0})
    assert back == {first.id, second.id}
    again = run.streams.read_expired(ACTORS, "other", run.tasks, 1000, 10)
    assert [(delivery.uid, delivery.deliveries) for delivery in again] == [("a", 1), ("b", 2)]


def test_a_lost_reply_changes_no_count(run, lossy, proxy) -> None:
    run.issue("a")
    [entry] = run.streams.read_new(ACTORS, "mine", [run.tasks], 1, None)
    proxy.lose("spark_recount")
    assert lossy.recount(run.tasks, ACTORS, "mine", {entry.id: 2}) == {entry.id}
    assert proxy.lost == 1
    assert run.pending(run.tasks, ACTORS) == {entry.id: ("mine", 2)}
