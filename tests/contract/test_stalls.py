"""What each role says when it gets nothing done: in its heartbeat, on the real server, with a clock of the test's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs

from actors.actor import Actor
from actors.engine import Generated, Request
from actors.stages import stage_of
from actors.verifiers.pool import InlineVerifier
from cli.status import in_words
from common.consumer import Consumer
from common.errors import ServerFull, WeightsError
from common.heartbeat import EVERY_S, TTL_S, Heartbeat
from common.keys import LEARNER
from common.messages import ChatMessage
from common.server import connect
from common.settings import Recycler, Sampling, Settings
from common.streams import Streams
from common.templates import load_templates
from common.watchdog import Stage, Stall, Watchdog
from common.weights import WeightStore
from learner.heartbeat import Heartbeat as LearnerHeartbeat
from learner.intake import Intake
from learner.issuer import Issuer
from learner.prompts.records import Prompt
from learner.prompts.source import PromptSource
from learner.quota import Quota
from learner.shelf import Shelf
from learner.uid_ledger import UidLedger
from recycler.loop import RecyclerLoop
from recycler.reservoir import Emission, Reservoir

NO_PROGRESS_S = 100.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Engine:
    """Never finishes a group. Weights that say ``misfit`` do not fit."""

    policy_version: int = -1
    running: list[Request] = field(default_factory=list)

    @property
    def groups_in_flight(self) -> int:
        return len(self.running)

    def tokenize(self, messages):
        return []

    def add(self, request: Request) -> None:
        self.running.append(request)

    def step(self) -> list[Generated]:
        return []

    def forget(self) -> None:
        self.running.clear()

    def apply(self, files, policy_version: int) -> None:
        if any(Path(file).read_bytes() == b"misfit" for file in files):
            raise WeightsError("they do not fit")
        self.policy_version = policy_version


@dataclass
class ActorOnStage:
    """An actor with a clock of its own."""

    run: object
    store: WeightStore
    clock: Clock = field(default_factory=Clock)
    max_staleness: int = 1

    def __post_init__(self) -> None:
        self.engine = Engine()
        self.heartbeat = Heartbeat(
            self.run.streams, "actor-0", "actor", Watchdog(NO_PROGRESS_S, self.clock), self.clock
        )
        self.actor = Actor(
            "actor-0",
            self.run.streams,
            self.engine,
            InlineVerifier(),
            max_staleness=self.max_staleness,
            groups_in_flight=4,
            lease_s=40.0,
            max_deliveries=5,
            heartbeat=self.heartbeat,
            clock=self.clock,
        )

    def publish(self, version: int, content: bytes = b"good", epoch: int = 1) -> None:
        manifest = self.store.publish(epoch, version, version - 1, lambda folder: _write(folder, content))
        self.run.streams.publish(manifest)

    def pass_time(self, seconds: float, step_s: float = 5.0) -> None:
        for _ in range(round(seconds / step_s)):
            self.clock.now += step_s
            self.actor.tick()

    @property
    def beat(self) -> dict:
        return self.run.streams.members()["actor-0"]


def _write(folder: Path, content: bytes) -> None:
    (folder / "m").write_bytes(content)


@pytest.fixture
def actor(run, tmp_path: Path, monkeypatch) -> ActorOnStage:
    monkeypatch.setattr("actors.actor.IDLE_BLOCK_MS", 0)  # an idle server wakes its blocked clients late
    monkeypatch.setattr(Streams, "wait_for_weights", lambda self, block_ms: None)
    return ActorOnStage(run, WeightStore(tmp_path / "weights"))


# -- actors -------------------------------------------------------------------------------------------------


def test_an_idle_actor_of_a_working_learner_is_well(actor: ActorOnStage) -> None:
    for version in range(4):
        actor.publish(version)
        actor.pass_time(90.0)
        assert actor.beat["state"] == "waiting for tasks"
    assert actor.beat["stalls"] == 0


def test_an_actor_whose_learner_died_says_what_it_waits_for_and_when_the_learner_was_last_heard_of(
    run, actor: ActorOnStage
) -> None:
    run.streams.heartbeat("learner", {"role": "learner"}, ttl_s=TTL_S["learner"] - 70)
    actor.publish(0)
    actor.pass_time(110.0)
    beat = actor.beat
    assert (beat["state"], beat["stage"], beat["waits_for"]) == ("stalled", "wait_for_tasks", "a task")
    assert beat["stalled_s"] == 105.0
    assert "the learner" in beat["unblocked_by"]
    assert any(
        f"the last heartbeat of learner was {seconds} s ago" in beat["unblocked_by"] for seconds in range(70, 80)
    )
    run.streams.client.delete(run.streams.keys.heartbeat("learner"))
    actor.pass_time(5.0)
    assert "learner is not running" in actor.beat["unblocked_by"]


def test_an_actor_that_nobody_gave_weights_says_so(actor: ActorOnStage) -> None:
    actor.pass_time(110.0)
    beat = actor.beat
    assert (beat["stage"], beat["waits_for"]) == ("wait_for_weights", "the first weights")
    assert beat["unblocked_by"] == "the learner publishing; learner is not running"


def test_an_actor_of_a_lost_line_waits_for_the_new_learners_weights(actor: ActorOnStage) -> None:
    actor.publish(3)
    actor.pass_time(5.0)
    actor.publish(1, b"misfit", epoch=2)
    actor.actor.policy.trouble = ""
    actor.pass_time(5.0)
    assert actor.actor.policy.wanted == "weights of learner epoch 2, not of epoch 1"


def test_an_actor_that_generates_is_well_however_long_it_takes(run, actor: ActorOnStage) -> None:
    actor.publish(0)
    run.issue("a")
    actor.pass_time(500.0)
    assert actor.beat["state"] == "generating"


def test_an_actor_that_cannot_load_the_weights_is_stalled_although_it_generates(run, actor: ActorOnStage) -> None:
    actor.publish(0)
    run.issue("a")
    actor.pass_time(5.0)
    actor.publish(1, b"misfit")
    actor.pass_time(110.0)
    assert actor.actor.policy.may_generate
    beat = actor.beat
    assert (beat["state"], beat["stage"]) == ("stalled", "load_weights")
    assert "version 1" in beat["waits_for"]
    assert "they do not fit" in beat["waits_for"]
    actor.publish(2)
    actor.pass_time(10.0)
    assert (actor.beat["state"], actor.beat["stalls"]) == ("generating", 1)


def test_a_learner_that_publishes_on_does_not_hide_an_actor_that_is_left_behind(actor: ActorOnStage) -> None:
    actor.publish(0)
    actor.pass_time(5.0)
    for version in range(1, 5):
        actor.publish(version, b"misfit")
        actor.pass_time(30.0)
    assert not actor.actor.policy.may_generate
    assert actor.beat["state"] == "stalled"
    assert actor.beat["apply_failures"] >= 4
    assert actor.actor.policy.wanted == "weights no older than policy version 3, not those of version 0"


@pytest.mark.parametrize(
    ("running", "unverified", "paused", "name", "says"),
    [
        (2, 1, True, "ship", "room on the server for 1 groups"),
        (2, 1, False, "generate", "the completions of 2 groups"),
        (0, 1, False, "verify", "the verdicts of 1 groups"),
        (0, 0, False, "wait_for_tasks", "a task"),
    ],
)
def test_every_wait_of_an_actor_has_two_ends(actor: ActorOnStage, running, unverified, paused, name, says) -> None:
    actor.publish(0)
    actor.pass_time(5.0)
    stage = stage_of(actor.actor.policy, running=running, unverified=unverified, paused=paused)
    assert (stage.name, stage.waits_for) == (name, says)
    assert stage.unblocked_by


# -- the recycler -------------------------------------------------------------------------------------------


def recycler(run, clock: Clock, streams: Streams | None = None) -> RecyclerLoop:
    reservoir = Reservoir(Recycler(), Sampling(), load_templates("default"), run="test", seed=0)
    streams = streams or run.streams
    heartbeat = Heartbeat(streams, "recycler", "recycler", Watchdog(NO_PROGRESS_S, clock), clock)
    return RecyclerLoop(
        streams, reservoir, content_bound=4, heartbeat=heartbeat, clock=clock, sleep=lambda _: None, least_room=2
    )


@pytest.fixture(autouse=True)
def _no_blocking(monkeypatch) -> None:
    monkeypatch.setattr("recycler.loop.BLOCK_MS", 0)


def test_a_recycler_with_nothing_to_do_says_what_it_waits_for(run) -> None:
    clock = Clock()
    loop = recycler(run, clock)
    run.streams.report_progress(judge_granted=5)
    for _ in range(30):
        clock.now += 5.0
        loop.tick()
    beat = run.streams.members()["recycler"]
    assert (beat["state"], beat["stage"]) == ("stalled", "wait_for_groups")
    run.streams.report_progress(judge_granted=0)
    for _ in range(30):
        clock.now += 5.0
        loop.tick()
    beat = run.streams.members()["recycler"]
    assert (beat["state"], beat["stage"]) == ("stalled", "wait_for_room")
    assert "2 judge tasks" in beat["waits_for"]
    assert "learner is not running" in beat["unblocked_by"]


class Full(Streams):
    def transfer(self, *args, **options):
        raise ServerFull("the server takes no new entries")


def test_a_recycler_that_a_full_server_holds_up_still_gives_its_sign_of_life(run) -> None:
    clock = Clock()
    loop = recycler(run, clock, Full(run.streams.client, run.streams.keys.run))
    loop._outbox = [Emission(entry_id="1-0", uid="u", tasks=(), reason="")]
    clock.now += EVERY_S
    loop.tick()
    assert run.streams.members()["recycler"]["state"] == "paused: the server is full"
    clock.now += 150.0
    loop.tick()
    beat = run.streams.members()["recycler"]
    assert (beat["state"], beat["stage"]) == ("stalled", "issue_judge_tasks")


# -- the learner --------------------------------------------------------------------------------------------


@dataclass
class Held:
    token: str

    def hold(self, call):
        return call()


def intake(run, clock: Clock, watchdog: Watchdog, stopping: Callable[[], bool], beat) -> Intake:
    keys = run.streams.keys
    settings = Settings(
        run={"name": "test"}, sampling={"group_size": 2}, learner={"groups_per_step": 4, "judge_share": 0.0}
    )
    records = [
        Prompt(index=i, question="q", messages=(ChatMessage.user("q"),), answer="2", verifier="exact") for i in range(9)
    ]
    issuer = Issuer(
        run.streams,
        Held(run.token),
        PromptSource(records, seed=0, shuffle=False, epochs=None),
        load_templates("default"),
        settings,
        cursor=0,
        returned=Consumer(run.streams, LEARNER, "learner-e1", [keys.returned]),
    )
    consumer = Consumer(run.streams, LEARNER, "learner-e1", [keys.rollouts("judge"), keys.rollouts("policy")])
    return Intake(
        run.streams,
        issuer,
        Shelf(run.streams, issuer, settings, consumer=consumer, ended=UidLedger(), clock=clock),
        settings,
        guard=lambda: None,
        stopping=stopping,
        beat=beat,
        watchdog=watchdog,
        clock=clock,
    )


def test_a_learner_without_groups_says_how_many_it_waits_for_and_who_ships_them(run, monkeypatch) -> None:
    monkeypatch.setattr("learner.intake.BLOCK_MS", 0)
    clock, rounds = Clock(), iter(range(40))
    watchdog = Watchdog(NO_PROGRESS_S, clock)
    heartbeat = LearnerHeartbeat(run.streams, 1, watchdog, clock)

    def stopping() -> bool:
        clock.now += 5.0
        return next(rounds) > 30

    gate = intake(run, clock, watchdog, stopping, heartbeat.beat)
    assert gate.take(Quota(policy=4, judge=0), 0) is None
    beat = run.streams.members()["learner"]
    assert (beat["state"], beat["stage"]) == ("stalled", "wait_for_groups")
    assert in_words(beat) == (
        f"stalled for {beat['stalled_s']:.0f} s in wait_for_groups; waits for 4 policy groups (0 ready, 20 on their "
        "way); unblocked by actors shipping groups of tasks:policy"
    )


# -- a loop that hangs in a call ------------------------------------------------------------------------------


def hung(run, clock: Clock, streams: Streams | None = None) -> Heartbeat:
    heartbeat = Heartbeat(streams or run.streams, "actor-0", "actor", Watchdog(NO_PROGRESS_S, clock), clock)
    heartbeat.beat("generating", policy_version=3)
    heartbeat.watchdog.enter(Stage(name="generate", waits_for="2 groups", unblocked_by="the engine"))
    return heartbeat


def test_the_watchdog_speaks_for_a_loop_that_hangs_and_never_says_that_it_works(run) -> None:
    clock = Clock()
    dog = hung(run, clock).watchdog
    clock.now = NO_PROGRESS_S - 1
    dog.look()
    assert run.streams.members()["actor-0"]["state"] == "generating"
    run.streams.client.delete(run.streams.keys.heartbeat("actor-0"))  # it has lived out its time
    clock.now = NO_PROGRESS_S + 1
    with capture_logs() as said:
        dog.look()
    beat = run.streams.members()["actor-0"]
    assert (beat["state"], beat["stage"], beat["policy_version"]) == ("stalled", "generate", 3)
    assert beat["role"] == "actor"
    assert [event["event"] for event in said] == ["stalled"]


def test_metrics_of_a_loop_that_hangs_count_its_stall(run) -> None:
    clock = Clock()
    heartbeat = hung(run, clock)
    for clock.now in (NO_PROGRESS_S + 1, NO_PROGRESS_S + 11):
        heartbeat.watchdog.look()
        said = heartbeat.said()
        assert (said["stalls"], said["stalls_s"], said["policy_version"]) == (1, clock.now, 3)


def test_a_loop_that_still_sends_heartbeats_is_not_spoken_for(run, monkeypatch) -> None:
    clock = Clock()
    heartbeat = hung(run, clock)
    clock.now = NO_PROGRESS_S + 1
    heartbeat.beat("waiting", policy_version=4)
    before = run.streams.members()["actor-0"]
    assert before["state"] == "stalled"
    clock.now += EVERY_S
    heartbeat.watchdog.look()
    assert run.streams.members()["actor-0"] == before


def test_nothing_is_said_for_a_process_that_has_stopped(run) -> None:
    clock = Clock()
    heartbeat = hung(run, clock)
    heartbeat.stop()
    clock.now = 1000.0
    heartbeat.watchdog.look()
    assert run.streams.members()["actor-0"] == {"role": "actor", "state": "stopped"}


def test_the_watchdog_does_not_wait_for_a_server_that_is_away(run, tmp_path: Path) -> None:
    """The loop may be waiting for just that server, without limit. The log gets its line all the same."""
    clock = Clock()
    with contextlib.closing(connect(f"unix://{tmp_path / 'nowhere.sock'}")) as client:
        heartbeat = Heartbeat(
            Streams(client, "test", give_up_s=1e9), "actor-0", "actor", Watchdog(NO_PROGRESS_S, clock), clock
        )
        heartbeat.watchdog.enter(Stage(name="s", waits_for="w", unblocked_by="b", owner="learner"))
        clock.now = NO_PROGRESS_S + 1
        with capture_logs() as said, pytest.raises(redis.ConnectionError):
            heartbeat.watchdog.look()
    [event] = said
    assert "whether learner runs is unknown" in event["unblocked_by"]


def test_a_stall_in_words() -> None:
    stage = Stage(name="step", waits_for="the engine", unblocked_by="itself")
    beat = {"state": "stalled", **Stall(stage=stage, seconds=130.4).fields("learner is not running")}
    assert in_words(beat) == (
        "stalled for 130 s in step; waits for the engine; unblocked by itself; learner is not running"
    )
    assert in_words(beat, seconds=False).startswith("stalled in step; ")
    assert in_words(None) == "not running"
    assert in_words({}) == "alive"
    assert in_words({"state": "updating"}) == "updating"
