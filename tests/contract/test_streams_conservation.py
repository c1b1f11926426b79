"""Conservation, under random crashes, zombies, lost replies and restarts.

Every uid that was issued ends exactly once, or is in flight: after every step, whatever happened before.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from common.consumer import Consumer
from common.errors import Fenced
from common.keys import ACTORS, LEARNER, RECYCLER
from common.messages import OUTCOMES, Kind, Outcome
from common.streams import Delivery, Ending, Product, Streams

KINDS: tuple[Kind, ...] = ("policy", "judge")
FAULTS = (
    "actor crashes",
    "actor is held up",
    "actor stops",
    "actors renew",
    "recycler restarts",
    "learner crashes",
    "learner is held up",
    "learner adopts",
    "trim",
    "FCALL",  # the reply to the next one of these is lost
    "XREADGROUP",
    "XCLAIM",
)
T = TypeVar("T")
ACTIONS = ("work", "work", "work", "work", "claim", "claim", "claim", "claim", "suffer", "suffer", "issue")


def pick(items: list[T], index: int) -> T:
    return items[index % len(items)]


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
        self.actors_born = self.epoch = 0
        self.zombies: list[Process] = []
        self.actors = [self._actor(), self._actor()]
        self.recycler = self._recycler()
        self.learner = self._learner()
        self.issue(4)

    # -- the processes ----------------------------------------------------------------------------------

    def _actor(self) -> Process:
        keys = self.direct.keys
        self.actors_born += 1
        return Process(self.lossy, ACTORS, f"actor-{self.actors_born}", [keys.tasks("judge"), keys.tasks("policy")])

    def _recycler(self) -> Process:
        return Process(self.lossy, RECYCLER, "recycler", [self.rollouts["policy"]])

    def _learner(self) -> Process:
        self.epoch += 1
        learner = Process(self.lossy, LEARNER, f"L{self.epoch}", list(self.rollouts.values()), f"{self.epoch}:n")
        assert self.lossy.take_fence(self.epoch, learner.token)
        learner.consumer.adopt()
        return learner

    def _busy(self) -> list[Process]:
        everybody = [*self.actors, self.recycler, self.learner, *self.zombies]
        return [process for process in everybody if process.hands]

    def _expire(self, actor: str) -> None:
        """Its leases run out, also those of entries it does not know it has because the reply was lost."""
        for stream in map(self.direct.keys.tasks, KINDS):
            rows = self.direct.own_pending(ACTORS, actor, stream, "0-0", 1000)
            self.direct.hand_back(stream, ACTORS, actor, [entry_id for entry_id, _ in rows])

    # -- what they do -----------------------------------------------------------------------------------

    @rule(
        action=st.sampled_from(ACTIONS),
        index=st.integers(min_value=0, max_value=6),
        count=st.integers(min_value=1, max_value=3),
        again=st.booleans(),
        fault=st.sampled_from(FAULTS),
    )
    def step(self, action: str, index: int, count: int, again: bool, fault: str) -> None:
        """One rule for all, so that the shares of ``ACTIONS`` hold and runs get somewhere."""
        match action:
            case "issue":
                self.issue(count)
            case "claim":
                self.claim(index, count)
            case "work" if self._busy():
                self.work(index, again, choice=count + index)
            case _:
                self.suffer(index, fault)

    def issue(self, tasks: int) -> None:
        cursor = self.direct.cursor() or 0
        wanted = [self.make_task(f"p{cursor + i}") for i in range(tasks)]
        assert self.lossy.issue(self.learner.token, cursor, wanted) == cursor + tasks

    def claim(self, index: int, wanted: int) -> None:
        process = pick([*self.actors, self.recycler, self.learner, *self.zombies], index)
        claimed = process.consumer.claim(wanted)
        assert len(claimed) <= wanted
        assert not {entry.id for entry in claimed} & {entry.id for entry in process.hands}, "claimed what is in hand"
        process.hands += claimed

    def work(self, index: int, again: bool, choice: int) -> None:
        """Do what is in some process's hands; it may forget that it did (``again``), and do it once more later."""
        process = pick(self._busy(), index)
        entry = process.hands[0]
        if process.consumer.group == RECYCLER:
            self._recycle(entry, products=choice % 3)
        elif process.consumer.group == LEARNER:
            self._settle(process, entry, OUTCOMES[choice % 3])
        elif choice == 5:
            self.lossy.bury(entry, ACTORS, "poison", self.kind_of[entry.stream])
        else:
            self._ship(process, entry)
        if not again:
            process.hands.remove(entry)
            process.consumer.done(entry)

    def _ship(self, actor: Process, task: Delivery) -> None:
        move = (task.id, [Product(uid=task.uid, payload=actor.consumer.name.encode())])
        self.lossy.transfer(task.stream, ACTORS, self.rollouts[self.kind_of[task.stream]], [move])

    def _recycle(self, group: Delivery, products: int) -> None:
        made = [Product(uid=f"j{i}-{group.uid}", payload=b"") for i in range(products)]
        target = self.direct.keys.tasks("judge")
        self.lossy.transfer(group.stream, RECYCLER, target, [(group.id, made)], issues="judge")

    def _settle(self, learner: Process, entry: Delivery, outcome: Outcome) -> None:
        """Every learner but the last one must be fenced."""
        kind = self.kind_of[entry.stream]
        end = Ending(stream=entry.stream, id=entry.id, uid=entry.uid, outcome=outcome, kind=kind)
        try:
            self.lossy.settle(learner.token, LEARNER, 1, [end])
            fenced = False
        except Fenced:
            fenced = True
        assert fenced == (learner is not self.learner)

    # -- what happens to them ----------------------------------------------------------------------------

    def suffer(self, index: int, fault: str) -> None:
        actor = pick(self.actors, index)
        match fault:
            case "actor crashes" | "actor is held up":
                self._expire(actor.consumer.name)
                self.actors[self.actors.index(actor)] = self._actor()
            case "actor stops":
                actor.consumer.hand_back_all()
                actor.hands = []
            case "actors renew":
                for one in [*self.actors, *(zombie for zombie in self.zombies if zombie.consumer.group == ACTORS)]:
                    lost = one.consumer.renew()
                    one.hands = [task for task in one.hands if task.id not in lost]
            case "recycler restarts":
                self.recycler = self._recycler()
            case "learner crashes" | "learner is held up":
                former, self.learner = self.learner, self._learner()
                self.zombies += [former] if fault == "learner is held up" else []
            case "learner adopts":
                self.learner.consumer.adopt()
            case "trim":
                for stream in self.direct.keys.groups():
                    self.lossy.trim(stream)
            case command:
                self.proxy.lose(command)
        if fault == "actor is held up":
            self.zombies.append(actor)

    # -- what must hold ----------------------------------------------------------------------------------

    @invariant()
    def every_uid_ends_once_or_is_in_flight(self) -> None:
        keys, ledger = self.direct.keys, self.direct.ledger()
        for kind in KINDS:
            ended = sum(ledger[f"{outcome}:{kind}"] for outcome in OUTCOMES)
            waiting = self.direct.backlog(keys.tasks(kind), ACTORS).total
            generated = self.direct.backlog(keys.rollouts(kind), LEARNER).total
            assert ledger[f"issued:{kind}"] == ended + waiting + generated, (kind, ledger, waiting, generated)

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
        """With everybody well again, all that was issued comes to its end and is deleted: nothing is stranded."""
        if not hasattr(self, "learner"):
            return
        self.proxy.lose("", 0)
        self.zombies.clear()
        self.actors = [self._actor()]
        for serial in range(self.actors_born):
            self._expire(f"actor-{serial}")
        passes = 0
        while self._left() and (passes := passes + 1) < 100:
            self.learner.consumer.adopt()
            for process in (*self.actors, self.recycler, self.learner):
                process.hands += process.consumer.claim(50)
            while self._busy():
                self.work(0, again=False, choice=1)
        ledger = self.direct.ledger()
        for kind in KINDS:
            assert ledger[f"issued:{kind}"] == sum(ledger[f"{outcome}:{kind}"] for outcome in OUTCOMES), ledger
        while any(self.direct.trim(stream) for stream in self.direct.keys.groups()):
            pass
        assert not any(self.direct.client.xlen(stream) for stream in self.direct.keys.groups())

    def _left(self) -> int:
        groups = self.direct.keys.groups().items()
        return sum(self.direct.backlog(stream, group).total for stream, names in groups for group in names)


def test_conservation(client, proxy, make_task) -> None:
    with proxy.connect() as lossy:

        class Machine(Conservation):
            pass

        Machine.direct = Streams(client, "test")
        Machine.lossy = Streams(lossy, "test", sleep=lambda _: None)
        Machine.proxy = proxy
        Machine.make_task = staticmethod(make_task)
        bounds = settings(
            max_examples=40,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.reuse, Phase.generate),  # add Phase.shrink to study a failure: it takes minutes
        )
        run_state_machine_as_test(Machine, settings=bounds)
