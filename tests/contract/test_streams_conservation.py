"""Conservation, under random crashes, zombies, lost replies and restarts.

Every uid that was issued ends exactly once, or is in flight: after every step, whatever happened before.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from common.consumer import Consumer
from common.errors import Fenced
from common.keys import ACTORS, LEARNER, RECYCLER
from common.messages import OUTCOMES
from common.server import connect, load_functions
from common.streams import Delivery, Ending, Product, Streams

KINDS = ("policy", "judge")
which = st.integers(min_value=0, max_value=5)
count = st.integers(min_value=1, max_value=4)


class Minutes:
    """A clock that is a minute later at each look, so that every claim looks for expired leases."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 60.0
        return self.now


class Process:
    """An actor, a recycler or a learner: a consumer and what it has in its hands. A zombie keeps both."""

    def __init__(self, streams: Streams, group: str, name: str, sources: list[str], token: str = "") -> None:
        lease_s = 60.0 if group == ACTORS else None
        self.consumer = Consumer(streams, group, name, sources, lease_s=lease_s, clock=Minutes())
        self.hands: list[Delivery] = []
        self.token = token


class Conservation(RuleBasedStateMachine):
    """One run. ``zombies`` were given up for dead, and act all the same."""

    direct: Streams
    lossy: Streams
    proxy = None
    make_task = None

    @initialize()
    def start(self) -> None:
        self.direct.client.flushall()
        self.direct.create_groups()
        keys = self.direct.keys
        self.rollouts = {kind: keys.rollouts(kind) for kind in KINDS}
        self.kind_of = {stream: kind for kind in KINDS for stream in (keys.tasks(kind), keys.rollouts(kind))}
        self.serial = 0
        self.epoch = 0
        self.zombies: list[Process] = []
        self.actors = [self._actor(), self._actor()]
        self.recycler = self._recycler()
        self.learner = self._learner()

    # -- the processes ----------------------------------------------------------------------------------

    def _next(self) -> int:
        self.serial += 1
        return self.serial

    def _actor(self) -> Process:
        keys = self.direct.keys
        return Process(self.lossy, ACTORS, f"actor-{self._next()}", [keys.tasks("judge"), keys.tasks("policy")])

    def _recycler(self) -> Process:
        return Process(self.lossy, RECYCLER, "recycler", [self.rollouts["policy"]])

    def _learner(self) -> Process:
        self.epoch += 1
        learner = Process(self.lossy, LEARNER, f"L{self.epoch}", list(self.rollouts.values()), f"{self.epoch}:n")
        assert self.lossy.take_fence(self.epoch, learner.token)
        for stream in self.rollouts.values():
            self.lossy.adopt(stream, LEARNER, learner.consumer.name)
        return learner

    def _anyone(self, index: int, living: list[Process], group: str) -> Process:
        """One of the living, or of the zombies of this group."""
        crowd = living + [zombie for zombie in self.zombies if zombie.consumer.group == group]
        return crowd[index % len(crowd)]

    # -- what they do -----------------------------------------------------------------------------------

    @rule(tasks=count)
    def issue(self, tasks: int) -> None:
        cursor = self.direct.cursor() or 0
        wanted = [self.make_task(f"p{cursor + i}") for i in range(tasks)]
        assert self.lossy.issue(self.learner.token, cursor, wanted) == cursor + tasks

    @rule(index=which, wanted=count)
    def claim(self, index: int, wanted: int) -> None:
        processes = [*self.actors, self.recycler, self.learner, *self.zombies]
        process = processes[index % len(processes)]
        claimed = process.consumer.claim(wanted)
        assert len(claimed) <= wanted
        process.hands += claimed

    @rule(index=which, again=st.booleans())
    def ship(self, index: int, again: bool) -> None:
        """An actor finishes its oldest task; sometimes it forgets that it did, and does so again later."""
        actor = self._anyone(index, self.actors, ACTORS)
        if not actor.hands:
            return
        task = actor.hands[0] if again else actor.hands.pop(0)
        kind = self.kind_of[task.stream]
        move = (task.id, [Product(uid=task.uid, payload=actor.consumer.name.encode())])
        self.lossy.transfer(task.stream, ACTORS, self.rollouts[kind], [move])
        if not again:
            actor.consumer.done(task)

    @rule(products=st.integers(min_value=0, max_value=3), again=st.booleans())
    def recycle(self, products: int, again: bool) -> None:
        recycler = self.recycler
        if not recycler.hands:
            return
        group = recycler.hands[0] if again else recycler.hands.pop(0)
        made = [Product(uid=f"j{i}-{group.uid}", payload=b"") for i in range(products)]
        target = self.direct.keys.tasks("judge")
        self.lossy.transfer(group.stream, RECYCLER, target, [(group.id, made)], issues="judge")
        if not again:
            recycler.consumer.done(group)

    @rule(index=which, outcome=st.sampled_from(OUTCOMES[:3]), most=count)
    def settle(self, index: int, outcome: str, most: int) -> None:
        learner = self._anyone(index, [self.learner], LEARNER)
        endings = [
            Ending(stream=entry.stream, id=entry.id, uid=entry.uid, outcome=outcome, kind=self.kind_of[entry.stream])
            for entry in learner.hands[:most]
        ]
        if not endings:
            return
        try:
            self.lossy.settle(learner.token, LEARNER, 1, endings)
        except Fenced:
            assert learner is not self.learner
            self.zombies.remove(learner)
        else:
            assert learner is self.learner
            for entry in learner.hands[:most]:
                learner.consumer.done(entry)
            learner.hands = learner.hands[most:]

    @rule(index=which)
    def bury(self, index: int) -> None:
        actor = self._anyone(index, self.actors, ACTORS)
        if actor.hands:
            task = actor.hands.pop()
            self.lossy.bury(task, ACTORS, "poison", self.kind_of[task.stream])
            actor.consumer.done(task)

    # -- what happens to them ----------------------------------------------------------------------------

    @rule(index=which, gone=st.booleans())
    def actor_fails(self, index: int, gone: bool) -> None:
        """It crashes, or is only held up: its leases run out, another takes its place."""
        actor = self.actors[index % 2]
        for stream, ids in actor.consumer.held.items():
            self.direct.hand_back(stream, ACTORS, actor.consumer.name, sorted(ids))
        if not gone:
            self.zombies.append(actor)
        self.actors[index % 2] = self._actor()

    @rule(index=which)
    def actor_stops(self, index: int) -> None:
        actor = self.actors[index % 2]
        actor.consumer.hand_back_all()
        actor.hands = []

    @rule(index=which)
    def actor_renews(self, index: int) -> None:
        actor = self._anyone(index, self.actors, ACTORS)
        lost = actor.consumer.renew()
        actor.hands = [task for task in actor.hands if task.id not in lost]

    @rule()
    def recycler_restarts(self) -> None:
        self.recycler = self._recycler()

    @rule(gone=st.booleans())
    def learner_fails(self, gone: bool) -> None:
        if not gone:
            self.zombies.append(self.learner)
        self.learner = self._learner()

    @rule()
    def adopt(self) -> None:
        for stream in self.rollouts.values():
            self.lossy.adopt(stream, LEARNER, self.learner.consumer.name)

    @rule()
    def trim(self) -> None:
        for stream in self.direct.keys.groups():
            self.lossy.trim(stream)

    @rule(marker=st.sampled_from(["FCALL", "XREADGROUP", "XPENDING", "XCLAIM"]))
    def lose_a_reply(self, marker: str) -> None:
        self.proxy.lose(marker)

    # -- what must hold ----------------------------------------------------------------------------------

    @invariant()
    def every_uid_ends_once_or_is_in_flight(self) -> None:
        keys, ledger = self.direct.keys, self.direct.ledger()
        for kind in KINDS:
            ended = sum(ledger[f"{outcome}:{kind}"] for outcome in OUTCOMES)
            in_flight = (
                self.direct.backlog(keys.tasks(kind), ACTORS).total
                + self.direct.backlog(keys.rollouts(kind), LEARNER).total
            )
            assert ledger[f"issued:{kind}"] == ended + in_flight, (kind, ledger, in_flight)

    @invariant()
    def no_uid_is_issued_or_ends_twice(self) -> None:
        told = {"issued": Counter[str](), "ended": Counter[str]()}
        for _, fields in self.direct.client.xrange(self.direct.keys.events):
            told[fields[b"event"].decode()].update(fields[b"uids"].decode().split())
        assert max(told["issued"].values(), default=1) == 1
        assert max(told["ended"].values(), default=1) == 1
        assert told["ended"].keys() <= told["issued"].keys()
        assert sum(told["issued"].values()) == sum(self.direct.ledger()[f"issued:{kind}"] for kind in KINDS)

    def teardown(self) -> None:
        """With everybody well again, all that was issued comes to its end: nothing is stranded anywhere."""
        if not hasattr(self, "learner"):
            return
        self.proxy.lose("", 0)
        for index in range(2):
            self.actor_fails(index, gone=True)
        actor = self.actors[0]
        for _ in range(1000):
            for process in (actor, self.recycler, self.learner):
                process.hands += process.consumer.claim(50)
            if not (actor.hands or self.recycler.hands or self.learner.hands):
                break
            while actor.hands:
                self.actors = [actor]
                self.ship(0, again=False)
            while self.recycler.hands:
                self.recycle(0, again=False)
            if self.learner.hands:
                self.zombies.clear()
                self.settle(0, "trained", 50)
        ledger = self.direct.ledger()
        for kind in KINDS:
            assert ledger[f"issued:{kind}"] == sum(ledger[f"{outcome}:{kind}"] for outcome in OUTCOMES), ledger
        while any(self.direct.trim(stream) for stream in self.direct.keys.groups()):
            pass
        assert [self.direct.client.xlen(stream) for stream in self.direct.keys.groups()] == [0, 0, 0, 0]


def test_conservation(server_url: str, proxy, make_task) -> None:
    with connect(server_url) as direct, connect(proxy.url) as lossy:
        load_functions(direct)

        class Machine(Conservation):
            pass

        Machine.direct = Streams(direct, "test")
        Machine.lossy = Streams(lossy, "test", sleep=lambda _: None)
        Machine.proxy = proxy
        Machine.make_task = staticmethod(make_task)
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
