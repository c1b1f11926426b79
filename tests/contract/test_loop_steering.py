"""A learner that is steered: the real loop, actors, recycler and helm in one thread, on toy engines.

The learner looks all the time whether to stop; the test's users, actors and recycler act whenever it does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from actors.actor import Actor
from actors.verifiers.pool import InlineVerifier
from cli.audit import audit
from cli.audit_events import read_events
from common.codec import encode
from common.consumer import Consumer
from common.errors import Fenced
from common.keys import ACTORS
from common.settings import Settings
from common.steering import Action, Command, Steering
from common.streams import Streams
from common.templates import load_templates
from learner.checkpoint import CheckpointStore
from learner.intake import Intake
from learner.journal import Journal
from learner.loop import run as train
from learner.start import Parts, Takeover, assemble, load, take_over, take_the_helm
from learner.steering import SteeredHelm
from recycler.following import Following
from recycler.loop import RecyclerLoop
from recycler.reservoir import Reservoir
from simulation.scenario import prompts
from simulation.toys import Family, ToyEngine, ToyTrainer

TEMPLATES = load_templates("default")
MOST_LOOKS = 3000


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch) -> None:
    monkeypatch.setattr("actors.actor.IDLE_BLOCK_MS", 0)
    monkeypatch.setattr("learner.intake.BLOCK_MS", 0)
    monkeypatch.setattr("recycler.loop.BLOCK_MS", 0)
    monkeypatch.setattr(Streams, "wait_for_weights", lambda self, block_ms: None)


class Killed(BaseException):
    """kill -9: nothing catches it."""


class Trainer(ToyTrainer):
    """Remembers with which settings each step was made."""

    def __init__(self) -> None:
        super().__init__(Family(), lambda _point: None)
        self.lr = 1e-6
        self.rates: list[float] = []

    def use(self, settings: Settings) -> None:
        self.lr = settings.learner.lr

    def step(self, microbatches, old=None) -> dict[str, float]:
        self.rates.append(self.lr)
        return super().step(microbatches, old)


@dataclass
class Rig:
    """One run. ``on_look`` is what happens whenever the learner looks whether to stop; it may raise Killed."""

    streams: Streams
    folder: Path
    learner: dict = field(default_factory=dict)
    eta: int = 1
    looks: int = 0
    now: float = 0.0
    stopped: bool = False
    helm: SteeredHelm | None = None
    intake: Intake | None = None
    engine: Trainer | None = None
    sizes: list[int] = field(default_factory=list)
    """Groups of every batch."""
    on_look: Callable[[], None] = lambda: None

    @property
    def settings(self) -> Settings:
        fields = {"groups_per_step": 2, "judge_share": 0.5, "max_steps": 8, "checkpoint_every": 4, "refill": 16.0}
        return Settings(
            run={"name": "test", "dir": self.folder},
            sampling={"group_size": 2, "max_new_tokens": 4},
            staleness={"max_staleness": self.eta},
            learner={**fields, "straggler_wait_s": 0.0, **self.learner},
        )

    @property
    def store(self) -> CheckpointStore:
        return CheckpointStore(self.settings.run.directory / "checkpoints", 2)

    def look(self) -> bool:
        self.looks += 1
        self.now += 2.0  # a second is what the helm waits between two looks
        assert self.looks < MOST_LOOKS, "the run makes no progress"
        self.on_look()
        for member in self.members:
            member.tick()
        return self.stopped

    def hire(self) -> None:
        """An actor and a recycler, which outlive learners."""
        settings = self.settings
        reservoir = Reservoir(settings.recycler, settings.sampling, TEMPLATES, run="test", seed=0)
        recycler = RecyclerLoop(
            self.streams, reservoir, content_bound=8, following=Following(settings), clock=lambda: self.now
        )
        actor = Actor(
            "actor-0",
            self.streams,
            ToyEngine(lambda _point: None),
            InlineVerifier(),
            max_staleness=self.eta,
            groups_in_flight=2,
            lease_s=60.0,
            max_deliveries=5,
            clock=lambda: self.now,
        )
        self.reservoir, self.members = reservoir, [actor, recycler]

    def take(self) -> tuple[Takeover, SteeredHelm]:
        clock = self.clock
        taken = take_over(self.streams, self.store, prompts(), TEMPLATES, self.settings, clock=clock)
        helm = take_the_helm(taken, self.streams, self.store, self.settings, clock=clock, wall_clock=clock)
        return taken, helm

    def clock(self) -> float:
        return self.now

    def run(self) -> int:
        """A learner from its start to its end; the policy version it reached."""
        taken, self.helm = self.take()
        self.engine = Trainer()
        load(self.engine, taken)
        parts: Parts = assemble(
            taken,
            self.streams,
            self.store,
            prompts(),
            TEMPLATES,
            self.helm.settings,
            stopping=self.look,
            clock=self.clock,
            helm=self.helm,
        )
        self.intake = parts.intake
        inner = parts.intake.take

        def watched(*args):
            groups = inner(*args)
            self.engine.batch = tuple(group.uid for group in groups or ())
            if groups:
                self.sizes.append(sum(group.task.kind == "judge" for group in groups))
            return groups

        parts.intake.take = watched
        self.looks = 0
        train(self.engine, parts.intake, parts.publisher, parts.committer, self.helm.settings, lambda _: None)
        return self.engine.policy_version

    def tell(self, action: Action, nonce: str = "", **values) -> str:
        nonce = nonce or f"{action}-{self.now}-{len(values)}"
        named = {key.replace("__", "."): value for key, value in values.items()}
        self.streams.steer(Command(nonce=nonce, action=action, by="ann", at=self.now, values=named))
        return nonce

    def events(self) -> list[dict[str, str]]:
        """What the event log says, on the server and on disk."""
        logged = read_events(self.streams, self.settings.run.directory / "events")
        return [dict(event.fields) for event in logged if event.fields["event"] == "steered"]

    def in_flight(self) -> dict[str, int]:
        return {kind: counts["in_flight"] for kind, counts in self.streams.conservation().kinds.items()}


def at(version: int, rig: Rig, act: Callable[[], None]) -> Callable[[], None]:
    """Once, when this many steps are made."""
    done: list[bool] = []

    def look() -> None:
        if not done and rig.engine.policy_version == version:
            done.append(True)
            act()

    return look


def kill() -> None:
    raise Killed


@pytest.fixture
def make_rig(streams: Streams, tmp_path: Path) -> Callable[..., Rig]:
    def make(**fields) -> Rig:
        rig = Rig(streams, tmp_path, **fields)
        rig.hire()
        return rig

    return make


def wipe(streams: Streams) -> None:
    """The server loses all of the run."""
    keys = streams.keys
    names = [keys.weights, keys.generation, keys.rebuilt, keys.clock, keys.dead, keys.events, keys.ledger, keys.fence]
    streams.client.delete(*names, keys.cursor, keys.progress, keys.control, keys.members, *keys.groups())
    streams.create_groups()


@contextmanager
def killed():
    with pytest.raises(Killed):
        yield


# -- pause and resume ---------------------------------------------------------------------------------------------


def test_a_paused_run_takes_no_step_and_issues_nothing_until_it_is_resumed(make_rig) -> None:
    rig = make_rig()
    held: list[tuple[int, int, int]] = []

    def user() -> None:
        if rig.engine.policy_version == 3 and rig.helm.steering.mode == "running" and not held:
            rig.tell("pause", "p")
        if rig.helm.paused:
            ledger = rig.streams.ledger()
            held.append((rig.engine.policy_version, ledger["issued:policy"], ledger["issued:judge"]))
            if len(held) == 200:
                rig.tell("resume", "r")

    rig.on_look = user
    assert rig.run() == 8
    steps = {version for version, _, _ in held}
    assert len(held) >= 200
    assert len(steps) == 1
    assert steps <= {3, 4}  # the batch at hand is done first
    assert len({policy for _, policy, _ in held}) == 1
    assert len({judge for _, _, judge in held[5:]}) == 1  # the recycler reads of it a round later
    assert rig.streams.steering().mode == "running"
    assert [event["action"] for event in rig.events()] == ["pause", "resume"]


def test_all_that_was_trained_before_a_pause_is_durable(make_rig) -> None:
    rig = make_rig(learner={"checkpoint_every": 100})

    def user() -> None:
        if rig.engine.policy_version == 3 and not rig.helm.paused:
            rig.tell("pause", "p")
        rig.stopped = rig.helm.paused

    rig.on_look = user
    with killed():
        rig.on_look = lambda: kill() if rig.helm.paused else user()
        rig.run()
    assert rig.store.newest().state.policy_version == 3


def test_a_pause_outlives_the_learner_and_says_so(make_rig) -> None:
    rig = make_rig()
    rig.on_look = at(2, rig, lambda: rig.tell("pause", "p"))
    with killed():
        look = rig.on_look
        rig.on_look = lambda: kill() if rig.helm.paused else look()
        rig.run()
    looks: list[str] = []

    def second() -> None:
        assert rig.helm.paused
        looks.append(rig.streams.steering().held)
        rig.stopped = len(looks) == 50

    rig.on_look = second
    assert rig.run() == 2
    assert looks[-1].startswith("paused by ann since")


# -- set ------------------------------------------------------------------------------------------------------------


def test_a_change_holds_from_the_next_step_on_and_is_not_rolled_back_with_training(make_rig) -> None:
    """Told at step 2, killed at step 3, resumed from the base: the steps are made again, with the new value."""
    rig = make_rig(learner={"checkpoint_every": 100})
    look = at(2, rig, lambda: rig.tell("set", "s", learner__lr=5e-6, learner__max_steps=6))
    rig.on_look = lambda: kill() if rig.engine.policy_version == 4 else look()
    with killed():
        rig.run()
    assert rig.engine.rates == [1e-6, 1e-6, 5e-6, 5e-6]
    rig.on_look = lambda: None
    assert rig.run() == 6
    assert rig.engine.rates == [5e-6] * 6
    assert [event["changes"] for event in rig.events()] == ["learner.lr=1e-06->5e-06 learner.max_steps=8->6"]


def test_a_wait_for_groups_is_interrupted_by_a_change(make_rig) -> None:
    """Otherwise a starved run could not be ended by max_steps."""
    rig = make_rig()
    look = at(3, rig, lambda: rig.tell("set", "s", learner__max_steps=3))

    def user() -> None:
        look()
        if rig.engine.policy_version == 3:
            rig.members = []  # nobody works any more

    rig.on_look = user
    assert rig.run() == 3


def test_the_share_of_judge_groups_follows_and_the_recycler_too(make_rig) -> None:
    rig = make_rig(learner={"max_steps": 30, "groups_per_step": 4, "judge_wait_s": 100.0}, eta=2)
    mix = {"recycler__mix__pointwise": 1.0, "recycler__mix__pairwise": 0.0, "recycler__mix__reflect": 0.0}
    seen: list[dict] = []
    under_way: list[int] = []

    def user() -> None:
        look()
        if rig.engine.policy_version == 22 and not seen:
            seen.append(dict(rig.reservoir.counts))
        if rig.engine.policy_version > 22:
            under_way.append(rig.intake._admission.in_flight("judge", rig.streams.ledger()))

    look = at(12, rig, lambda: rig.tell("set", "s", learner__judge_share=0.2, **mix))
    rig.on_look = user
    assert rig.run() == 30
    assert max(rig.sizes[:12]) == 4
    assert max(rig.sizes[16:]) == 1
    assert max(under_way) == (rig.eta + 1) * 1  # the learner grants less room, too
    later = {name: count - seen[0].get(name, 0) for name, count in rig.reservoir.counts.items()}
    assert sum(count for name, count in later.items() if name.startswith("tasks.pointwise")) > 0
    assert sum(count for name, count in later.items() if name.startswith(("tasks.pair", "tasks.refl"))) == 0


def test_synchronous_training_is_the_same_whenever_it_was_paused(make_rig, streams) -> None:
    """eta = 0, no judge: the weights are those of an undisturbed run."""
    plain = make_rig(eta=0, learner={"judge_share": 0.0})
    plain.run()
    wipe(streams)
    rig = make_rig(eta=0, learner={"judge_share": 0.0})
    rig.folder = rig.folder / "again"

    def user() -> None:
        if rig.looks % 9 == 3:
            rig.tell("pause", f"p{rig.looks}")
        if rig.looks % 9 == 7:
            rig.tell("resume", f"r{rig.looks}")

    rig.on_look = user
    assert rig.run() == 8
    assert len(rig.events()) > 2
    assert rig.engine.weights == plain.engine.weights


# -- drain ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("eta", "judge"), [(0, 0.0), (1, 0.0), (2, 0.5), (4, 0.8)])
def test_a_drain_trains_all_that_is_in_flight_and_ends(make_rig, eta, judge) -> None:
    rig = make_rig(eta=eta, learner={"max_steps": 100, "groups_per_step": 3, "judge_share": judge})
    rig.on_look = at(5, rig, lambda: rig.tell("drain", "d"))
    reached = rig.run()
    assert 5 <= reached < 30
    assert rig.helm.draining
    assert rig.in_flight() == {"policy": 0, "judge": 0}
    assert rig.store.newest().state.policy_version == reached
    found = audit(rig.streams, rig.settings.run.directory / "events", rig.store)
    assert found.ok, found
    rig.helm.drained(reached)
    assert rig.streams.steering().mode == "drained"
    rig.learner["max_steps"] = 100
    rig.on_look = lambda: setattr(rig, "stopped", rig.engine.policy_version >= reached + 3)
    assert rig.run() >= reached + 3  # the next start goes on
    assert [event["action"] for event in rig.events()] == ["drain", "drained", "resume"]


def test_a_drain_waits_for_the_judge_groups_that_are_left_and_asks_for_no_more(make_rig) -> None:
    """Here the actors work on judge tasks only when no prompt is left."""
    rig = make_rig(eta=4, learner={"max_steps": 100, "groups_per_step": 3, "judge_share": 0.5})
    actor, keys = rig.members[0], rig.streams.keys
    both, actor._consumer = actor._consumer, Consumer(rig.streams, ACTORS, "actor-0", [keys.tasks("policy")])
    issued: list[int] = []

    def user() -> None:
        look()
        if rig.helm.draining:
            issued.append(rig.streams.ledger()["issued:judge"])
            if rig.intake._admission.in_flight("policy", rig.streams.ledger()) == 0:
                actor._consumer = both

    look = at(3, rig, lambda: rig.tell("drain", "d"))
    rig.on_look = user
    rig.run()
    assert rig.in_flight() == {"policy": 0, "judge": 0}
    assert issued[0] > 6  # more than a batch of them
    assert issued[-1] == issued[2]  # the recycler reads a round later that it has no more room
    assert sum(rig.sizes) == issued[-1] - rig.streams.ledger()["filtered:judge"]


def test_a_drain_that_is_killed_goes_on_draining(make_rig) -> None:
    rig = make_rig(learner={"max_steps": 100})
    look = at(3, rig, lambda: rig.tell("drain", "d"))
    rig.on_look = lambda: kill() if rig.helm.draining else look()
    with killed():
        rig.run()
    issued = rig.streams.ledger()["issued:policy"]
    rig.on_look = lambda: None
    rig.run()
    assert rig.streams.ledger()["issued:policy"] == issued
    assert rig.in_flight() == {"policy": 0, "judge": 0}


def test_a_drain_that_is_called_off_goes_on(make_rig) -> None:
    rig = make_rig(learner={"max_steps": 12})
    first, second = (
        at(3, rig, lambda: rig.tell("drain", "d")),
        lambda: rig.helm.draining and not rig.streams.steering().answer("r") and rig.tell("resume", "r"),
    )
    rig.on_look = lambda: (first(), second())
    assert rig.run() == 12
    assert not rig.helm.draining


# -- exactly once, whatever happens --------------------------------------------------------------------------------


def test_a_command_that_was_sent_twice_counts_once(make_rig) -> None:
    """Its reply was lost, and another user resumed the run in between."""
    rig = make_rig(learner={"max_steps": 5})

    def user() -> None:
        if rig.looks == 5:
            rig.tell("pause", "same")
        if rig.looks == 10:
            rig.tell("resume", "r")
            rig.tell("pause", "same")

    rig.on_look = user
    assert rig.run() == 5
    assert [event["nonce"] for event in rig.events()] == ["same", "r"]


def test_a_command_that_was_sent_twice_within_one_look_counts_once(make_rig) -> None:
    rig = make_rig(learner={"max_steps": 5})
    for action, nonce in (("pause", "same"), ("resume", "r"), ("pause", "same")):
        rig.tell(action, nonce)
    assert rig.run() == 5


def test_a_command_given_while_no_learner_runs_waits(make_rig) -> None:
    rig = make_rig()
    rig.streams.client.delete(rig.streams.keys.control)
    rig.tell("set", "s", learner__max_steps=4)
    assert rig.run() == 4


def test_a_bad_command_is_refused_and_an_unreadable_one_passed_over(make_rig) -> None:
    rig = make_rig()
    rig.streams.client.xadd(rig.streams.keys.control, {"m": b"\xc1"})
    rig.streams.client.xadd(rig.streams.keys.control, {"other": b"x"})
    rig.tell("set", "bad", learner__lr=-1.0)
    rig.tell("set", "bad too", run__seed=1)
    rig.tell("set", "good", learner__max_steps=4)
    assert rig.run() == 4
    steering = rig.streams.steering()
    assert steering.answer("bad").refused.startswith("learner.lr=-1.0: ")
    assert "is fixed for a run" in steering.answer("bad too").refused
    assert steering.answer("good").refused == ""


def test_a_server_that_lost_what_it_was_told_is_told_again(make_rig) -> None:
    rig = make_rig(learner={"max_steps": 100})
    told: list[Steering] = []

    def user() -> None:
        if rig.looks == 5:
            rig.tell("set", "s", learner__lr=5e-6)
        if rig.looks == 20:
            assert rig.streams.steering().values == {"learner.lr": 5e-6}
            rig.streams.client.hdel(rig.streams.keys.progress, "steering", "steered")
        if rig.looks > 20:
            told.append(rig.streams.steering())
            rig.stopped = bool(told[-1].values)

    rig.on_look = user
    rig.run()
    assert told[-1].values == {"learner.lr": 5e-6}


def test_what_users_said_outlives_the_server(make_rig, streams) -> None:
    """FLUSHALL, then --rebuild: control stream and progress are gone, the journal is not."""
    rig = make_rig(learner={"checkpoint_every": 1})
    look = at(2, rig, lambda: rig.tell("set", "s", learner__lr=5e-6, learner__max_steps=5))
    rig.on_look = lambda: kill() if rig.engine.policy_version == 3 else look()
    with killed():
        rig.run()
    wipe(streams)
    rig.on_look = lambda: None
    rebuild = Settings.model_validate({**rig.settings.model_dump(), "redis": {"rebuild": True}})
    take_over(streams, rig.store, prompts(), TEMPLATES, rebuild)
    rig.hire()
    assert rig.run() == 5
    assert set(rig.engine.rates) == {5e-6}
    assert rig.streams.steering().values == {"learner.lr": 5e-6, "learner.max_steps": 5}


def test_a_learner_that_was_fenced_obeys_nobody_any_more(make_rig) -> None:
    rig = make_rig()
    _, zombie = rig.take()
    _, helm = rig.take()
    rig.tell("pause", "p")
    rig.now += 10.0
    assert zombie.listen()
    with pytest.raises(Fenced):
        zombie.obey(0)
    assert not zombie.paused
    assert [change.nonce for change in Journal(rig.store.root).read()] == []
    assert helm.listen()
    assert helm.obey(0)
    assert helm.paused
    assert [event["epoch"] for event in rig.events()] == ["2"]


def test_a_zombie_that_journaled_before_it_noticed_changes_nothing(make_rig) -> None:
    """It looked at its fence, was paused, and its successor obeyed the command meanwhile."""
    rig = make_rig()
    _, zombie = rig.take()
    rig.tell("pause", "p")
    rig.now += 10.0
    zombie.listen()
    _, helm = rig.take()
    helm.listen()
    helm.obey(7)
    zombie._fence.check = lambda: None
    with pytest.raises(Fenced):
        zombie.obey(3)
    _, third = rig.take()
    assert third.paused
    assert [event["epoch"] for event in rig.events()] == ["2"]
    assert [change.nonce for change in Journal(rig.store.root).read()] == ["p"]


@pytest.mark.parametrize("before", ["journal", "server"])
def test_killed_in_the_middle_of_obeying_the_command_is_obeyed_once(make_rig, monkeypatch, before) -> None:
    rig = make_rig(learner={"max_steps": 4})
    _, helm = rig.take()
    rig.tell("set", "s", learner__lr=5e-6)
    rig.now += 10.0
    helm.listen()
    with killed(), monkeypatch.context() as patched:
        patched.setattr(*((Journal, "append") if before == "journal" else (Streams, "tell_steering")), _die)
        helm.obey(0)
    rig.run()
    assert rig.engine.rates[-1] == 5e-6
    assert [change.nonce for change in Journal(rig.store.root).read()] == ["s"]
    assert [event["nonce"] for event in rig.events()] == ["s"]


def _die(*_args) -> None:
    raise Killed


def test_a_full_disk_makes_a_command_wait(make_rig, monkeypatch) -> None:
    rig = make_rig(learner={"max_steps": 6})
    append, failures = Journal.append, []

    def full(journal: Journal, change) -> None:
        if len(failures) < 3:
            failures.append(change)
            raise OSError(28, "No space left on device")
        append(journal, change)

    monkeypatch.setattr(Journal, "append", full)
    rig.tell("set", "s", learner__lr=5e-6)
    assert rig.run() == 6
    assert len(failures) == 3
    assert rig.engine.rates[-1] == 5e-6


def test_a_full_server_can_be_paused(make_rig, streams) -> None:
    """Everything that pausing needs is allowed above maxmemory."""
    rig = make_rig()
    _, helm = rig.take()
    streams.client.config_set("maxmemory", 1)
    try:
        rig.tell("pause", "p")
        rig.now += 10.0
        assert helm.listen()
        assert helm.obey(0)
        assert streams.steering().mode == "paused"
    finally:
        streams.client.config_set("maxmemory", 0)


def test_a_changed_run_file_overtakes_a_live_value(make_rig) -> None:
    rig = make_rig()
    rig.tell("set", "s", learner__max_steps=3, learner__lr=5e-6)
    assert rig.run() == 3
    rig.learner["max_steps"] = 5
    assert rig.run() == 5
    assert rig.helm.steering.values == {"learner.lr": 5e-6}
    assert [(event["action"], event["changes"]) for event in rig.events()][1:] == [("file", "learner.max_steps=3->5")]


def test_commands_are_of_the_message_schema(make_rig) -> None:
    command = Command(nonce="n", action="set", by="ann", at=0.0, values={"learner.lr": 1e-6, "learner.max_steps": 3})
    rig = make_rig()
    rig.streams.steer(command)
    [(_, payload)] = rig.streams.control()
    assert payload == encode(command)
