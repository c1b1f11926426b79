"""Runs under faults that a user steers meanwhile: what was answered holds, and every promise of a run is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from common.live import value_of
from common.steering import Action, Command, fold
from common.streams import Streams
from learner.heartbeat import Heartbeat
from learner.journal import Journal
from learner.loop import run as train
from learner.start import assemble, load, take_over, take_the_helm
from simulation import members, schedule
from simulation.campaign import run_some
from simulation.scenario import prompts, templates
from simulation.toys import ToyTrainer, Weights
from simulation.wire import Wire
from simulation.world import World

SEEDS = range(40)
COMMANDS = 6
"""That the users of one run give; then they let it go on."""


def steered_learner(wire: Wire) -> str:
    """As ``simulation.members.learner``, with a helm."""
    world, clock = wire.world, wire.world.scheduler.clock
    streams, checkpoints = members._opened(wire), world.checkpoints()
    taken = take_over(streams, checkpoints, prompts(), templates(), world.settings, clock=clock, nonce=world.nonce)
    helm = take_the_helm(taken, streams, checkpoints, world.settings, clock=clock, wall_clock=clock)
    engine = ToyTrainer(world.family, wire.point)
    load(engine, taken)
    heartbeat = Heartbeat(streams, taken.fence.epoch, clock=clock)
    parts = assemble(
        taken,
        streams,
        checkpoints,
        prompts(),
        templates(),
        helm.settings,
        stopping=lambda: wire.stopping,
        beat=heartbeat.beat,
        helm=helm,
        clock=clock,
        sleep=wire.process.rest,
    )
    members._watch(parts.intake, engine, world.batch_taken)
    train(engine, parts.intake, parts.publisher, parts.committer, helm.settings, lambda _: None)
    heartbeat.stop()
    if wire.stopping:
        return "stopped"
    if helm.draining and engine.policy_version < world.scenario.steps:
        helm.drained(engine.policy_version)
        return "drained"
    return "done"


class Users:
    """What the users of one run have said, and what was answered."""

    def __init__(self) -> None:
        self.said: list[Command] = []
        self.answered: set[str] = set()

    def body(self, wire: Wire) -> str:
        streams, rest = members._opened(wire), wire.process.rest
        while not wire.stopping and len(self.said) < COMMANDS:
            rest(wire.world.draw.uniform(0.0, 2.0))
            self._give(wire, streams, self._drawn(wire))
        self._give(wire, streams, "resume")
        while not wire.stopping:
            rest(1.0)
        return "stopped"

    def _drawn(self, wire: Wire) -> Action:
        """A drain cuts a smaller batch, after which the weights are others."""
        choices: tuple[Action, ...] = ("pause", "resume", "set", "set")
        return wire.world.draw.choice(choices if wire.world.scenario.exact else (*choices, "drain"))

    def _give(self, wire: Wire, streams: Streams, action: Action) -> None:
        draw, world = wire.world.draw, wire.world
        values: dict[str, Any] = {}
        if action == "set":
            values = {"learner.lr": draw.uniform(1e-6, 1e-3), "learner.checkpoint_every": draw.randint(1, 4)}
        command = Command(nonce=world.nonce(), action=action, by=wire.member, at=world.scheduler.now, values=values)
        self.said.append(command)
        streams.steer(command)
        for _ in range(draw.randint(0, 6)):
            if streams.steering().answer(command.nonce) is not None:
                self.answered.add(command.nonce)
                return
            wire.process.rest(0.5)

    def wrong(self, world: World) -> Iterator[str]:
        changes = Journal(world.checkpoints().root).read()
        decided = [change.nonce for change in changes]
        yield from (f"{nonce} was answered, and is not in the journal" for nonce in self.answered - set(decided))
        said = [command.nonce for command in self.said]
        order = [said.index(nonce) for nonce in decided if nonce in said]
        if order != sorted(order):
            yield f"commands were obeyed in the order {order}"
        [*_, last] = [None, *(c for c in self.said if c.action == "set" and c.nonce in decided)]
        held, file = fold(changes).values, world.settings
        meant = {key: value for key, value in (last.values if last else {}).items() if value != value_of(file, key)}
        if held != meant:
            yield f"{held} holds, and {meant} was said last"


@pytest.fixture
def users(monkeypatch) -> list[Users]:
    """Of every run; they are at work in every schedule made meanwhile."""
    everybody: list[Users] = []
    inner = schedule._wrong

    def start(world: World) -> None:
        everybody.append(Users())
        world._bodies = {**members.BODIES, "learner": steered_learner, "user": everybody[-1].body}
        world.scheduler.after(0.0, world.start, "user")
        run(world)

    def wrong(world: World, reference: Weights | None) -> list[str]:
        return [*inner(world, reference), *everybody[-1].wrong(world)]

    run = World.run
    monkeypatch.setattr(World, "run", start)
    monkeypatch.setattr(schedule, "_wrong", wrong)
    monkeypatch.setattr(schedule, "_references", {})
    return everybody


def test_no_schedule_of_a_steered_run_breaks_a_promise(users: list[Users]) -> None:
    results = run_some(SEEDS)
    assert {result.seed: result.violations for result in results if result.violations} == {}
    assert sum(result.outcomes["learner killed"] for result in results) > 5
    assert sum(result.outcomes["learner drained"] for result in results) > 0
    assert sum(len(each.answered) for each in users) > len(SEEDS) // 2


def test_a_run_whose_journal_is_lost_is_found_out(users: list[Users], monkeypatch) -> None:
    """A learner that obeys and does not journal: the next one has forgotten what was answered."""
    monkeypatch.setattr(Journal, "append", lambda _journal, _change: None)
    results = run_some(range(8))
    assert any("not in the journal" in text for result in results for text in result.violations)
