"""The members of a simulated run: the real actor, recycler and learner, put together as their commands do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from actors.actor import Actor
from actors.verifiers.pool import InlineVerifier
from common.messages import RolloutGroup
from common.server import load_functions
from common.streams import Streams
from learner.heartbeat import Heartbeat
from learner.intake import Intake
from learner.loop import run as train
from learner.start import assemble, load, take_over
from recycler.loop import RecyclerLoop
from recycler.reservoir import Reservoir
from simulation.scenario import prompts, templates
from simulation.toys import ToyEngine, ToyTrainer
from simulation.wire import Wire

ROUND_S: Final = 0.001
"""What a round of an actor or recycler takes besides its commands, which may be none."""


def actor(wire: Wire) -> str:
    world, settings = wire.world, wire.world.settings
    streams = _opened(wire)
    found = Actor(
        wire.member,
        streams,
        ToyEngine(wire.point),
        InlineVerifier(),
        max_staleness=settings.staleness.max_staleness,
        groups_in_flight=settings.actor.groups_in_flight,
        lease_s=settings.redis.lease_s,
        max_deliveries=settings.redis.max_deliveries,
        clock=world.scheduler.clock,
        wall_clock=world.scheduler.clock,
        sleep=wire.process.rest,
    )
    while not wire.stopping:
        found.tick()
        wire.process.rest(ROUND_S)
    found.stop()
    return "stopped"


def recycler(wire: Wire) -> str:
    world, settings = wire.world, wire.world.settings
    streams = _opened(wire)
    reservoir = Reservoir(
        settings.recycler, settings.sampling, templates(), run=settings.run.name, seed=settings.run.seed
    )
    loop = RecyclerLoop(
        streams,
        reservoir,
        content_bound=settings.staleness.content_bound,
        least_room=max(1, settings.learner.judge_groups_per_step // 4),
        clock=world.scheduler.clock,
        sleep=wire.process.rest,
    )
    while not wire.stopping:
        loop.tick()
        wire.process.rest(ROUND_S)
    loop.stop()
    return "stopped"


def learner(wire: Wire) -> str:
    world, settings = wire.world, wire.world.settings
    streams = _opened(wire)
    checkpoints = world.checkpoints()
    taken = take_over(
        streams, checkpoints, prompts(), templates(), settings, clock=world.scheduler.clock, nonce=world.nonce
    )
    engine = ToyTrainer(world.family, wire.point)
    load(engine, taken)
    heartbeat = Heartbeat(streams, taken.fence.epoch, clock=world.scheduler.clock)
    parts = assemble(
        taken,
        streams,
        checkpoints,
        prompts(),
        templates(),
        settings,
        stopping=lambda: wire.stopping,
        beat=heartbeat.beat,
        clock=world.scheduler.clock,
        sleep=wire.process.rest,
    )
    _watch(parts.intake, engine, world.batch_taken)
    train(engine, parts.intake, parts.publisher, parts.committer, settings, lambda _: None)
    heartbeat.stop()
    return "stopped" if wire.stopping else "done"


def _opened(wire: Wire) -> Streams:
    """As ``common.process.open_streams``. The functions are installed by whoever comes first."""
    streams = wire.world.streams(wire)
    load_functions(wire.client)
    streams.create_groups()
    if wire.role == "learner":
        streams.remove_unused_groups()
    return streams


def _watch(intake: Intake, engine: ToyTrainer, told: Callable[[ToyTrainer, list[RolloutGroup]], None]) -> None:
    """The engine learns the uids of its batches, and the checks what they were sampled by."""
    take: Callable[..., Any] = intake.take

    def watched(*args: Any) -> Any:
        groups = take(*args)
        engine.batch = tuple(group.uid for group in groups or ())
        told(engine, groups or [])
        return groups

    intake.take = watched  # type: ignore[method-assign]


BODIES = {"actor": actor, "recycler": recycler, "learner": learner}
