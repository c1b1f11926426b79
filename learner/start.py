"""How a learner starts: a new epoch, the fence, the newest checkpoint, and what older epochs left behind."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from common.consumer import Consumer
from common.errors import Fenced
from common.keys import LEARNER
from common.lineage import Lineage
from common.settings import Settings
from common.streams import Streams, position
from common.telemetry.quiet import QUIET, Telemetry
from common.templates import TemplateSet
from common.weights import WeightStore
from learner.checkpoint import Checkpoint, CheckpointStore, EpochStart
from learner.commit import Committer
from learner.engine import Engine
from learner.event_log import EventLog
from learner.fence import Fence, wiped
from learner.identity import Identity, identity_of, refuse_other
from learner.intake import Intake
from learner.issuer import Issuer, in_flight
from learner.journal import Journal
from learner.prompts import PromptSource
from learner.publisher import Publisher
from learner.rebuild import rebuild
from learner.shelf import OnEnding, Shelf
from learner.steering import SteeredHelm
from learner.uid_ledger import UidLedger

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """What a new epoch goes on from."""

    fence: Fence
    saved: Checkpoint | None
    identity: Identity
    lineage: Lineage
    cursor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A learner, put together; ``learner.loop.run`` drives them."""

    intake: Intake
    publisher: Publisher
    committer: Committer


def take_over(
    streams: Streams,
    checkpoints: CheckpointStore,
    prompts: PromptSource,
    templates: TemplateSet,
    settings: Settings,
    *,
    clock: Callable[[], float] = time.monotonic,
    nonce: Callable[[], str] = lambda: secrets.token_hex(8),
) -> Takeover:
    """A new epoch with the fence, and the server told what the newest checkpoint says has ended.

    From here on no older learner can issue or acknowledge. Raises Fenced, WipedServer, and SettingsError when the
    prompts or the model are others than those of the checkpoint.
    """
    epoch = checkpoints.new_epoch()
    token = f"{epoch}:{nonce()}"
    if not streams.take_fence(epoch, token):
        raise Fenced(
            f"epoch {epoch} is not the highest on the server: another learner of this run is alive elsewhere, or the "
            "server remembers an earlier run of this name; choose another run.name, or delete the keys of the old one"
        )
    saved = checkpoints.newest()
    identity = identity_of(settings, prompts)
    if saved is not None:
        refuse_other(identity, saved.state.identity, saved.folder.name)
    known = known_generation(checkpoints)
    found = streams.generation()
    if (highest := checkpoints.highest_epoch()) > epoch:  # paused in its start, and woken on a server that forgot both
        raise Fenced(f"a learner of epoch {highest} has taken over from epoch {epoch}; this one stops")
    parked: int | None = None
    if saved is None:
        generation = streams.begin(token, nonce())
    elif found is not None and found == known:
        generation = found
    elif found is None and settings.redis.rebuild:
        parked = rebuild(streams, token, saved.state, prompts, templates, settings)
        generation = nonce()
    else:
        raise wiped(found, known or "unknown")
    start = saved.state if saved else None
    checkpoints.record_start(
        epoch,
        EpochStart(
            epoch=start.epoch if start else 0,
            policy_version=start.policy_version if start else 0,
            generation=generation,
        ),
    )
    if parked is not None:  # after all of the rebuilt data are there, and after their name is on disk
        streams.begin(token, generation, parked=parked)
    starts = {e: (s.epoch, s.policy_version) for e, s in checkpoints.starts().items()}
    fence = Fence(streams, checkpoints, epoch, token, generation, clock)
    if saved:
        _settle(streams, fence, saved)
    streams.mend_leases()  # before the first task is leased: without an earlier time nobody sees the clock go back
    return Takeover(
        fence=fence, saved=saved, identity=identity, lineage=Lineage.of(epoch, starts), cursor=streams.cursor() or 0
    )


def known_generation(checkpoints: CheckpointStore) -> str | None:
    """Name of the data set that the last start worked on."""
    starts = checkpoints.starts()
    return starts[max(starts)].generation if starts else None


def assemble(
    taken: Takeover,
    streams: Streams,
    checkpoints: CheckpointStore,
    prompts: PromptSource,
    templates: TemplateSet,
    settings: Settings,
    *,
    stopping: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    consumed: OnEnding = lambda *_: None,
    telemetry: Telemetry = QUIET,
    **watchers: Any,
) -> Parts:
    """The parts of a learner that has taken over. ``watchers``: who is told how the intake waits, and its helm."""
    keys, fence, saved = streams.keys, taken.fence, taken.saved
    name = f"learner-e{fence.epoch:06d}"
    consumer = Consumer(streams, LEARNER, name, [keys.rollouts("judge"), keys.rollouts("policy")], clock=clock)
    returned = Consumer(streams, LEARNER, name, [keys.returned], clock=clock)
    inherited = in_flight(streams) if settings.staleness.max_staleness == 0 else set()
    if moved := consumer.adopt() + returned.adopt():
        log.info("learner.adopted", entries=moved)
    issuer = Issuer(
        streams,
        fence,
        prompts,
        templates,
        settings,
        cursor=taken.cursor,
        returned=returned,
        inherited=inherited,
        reached=saved.state.cursor if saved else 0,
        traces=telemetry.traces,
    )
    shelf = Shelf(
        streams,
        issuer,
        settings,
        consumer=consumer,
        ended=saved.state.ended if saved else UidLedger(),
        trained=saved.state.trained if saved else 0,
        lineage=taken.lineage,
        consumed=consumed,
        clock=clock,
    )
    intake = Intake(streams, issuer, shelf, settings, guard=fence.check, stopping=stopping, clock=clock, **watchers)
    publisher = Publisher(
        streams,
        WeightStore.of(settings),
        fence.epoch,
        settings.weights.keep,
        lineage=taken.lineage,
        clock=clock,
    )
    committer = Committer(
        streams,
        checkpoints,
        shelf,
        issuer,
        fence=fence,
        every=settings.learner.checkpoint_every,
        saved=saved,
        identity=taken.identity,
        after_settling=EventLog(streams, fence, settings.run.directory / "events", clock).spool,
        meters=telemetry.meters,
        clock=clock,
        sleep=sleep,
    )
    return Parts(intake=intake, publisher=publisher, committer=committer)


def take_the_helm(
    taken: Takeover, streams: Streams, checkpoints: CheckpointStore, settings: Settings, **clocks: Any
) -> SteeredHelm:
    """What users have told the run, and will. ``settings``: of the run file; to work with are those of the helm."""
    version = taken.saved.state.policy_version if taken.saved else 0
    journal = Journal(checkpoints.root, taken.fence.epoch)
    return SteeredHelm(streams, taken.fence, journal, settings, policy_version=version, **clocks)


def load(engine: Engine, taken: Takeover) -> None:
    """Put the engine where the checkpoint says. Raises Fenced when a newer learner has removed it meanwhile."""
    if taken.saved is None:
        return
    try:
        engine.read_checkpoint(taken.saved.folder, taken.saved.state.policy_version)
    except OSError:
        taken.fence.check()
        raise


def _settle(streams: Streams, fence: Fence, saved: Checkpoint) -> None:
    """What the checkpoint ended is acknowledged before anything else; the server may have lost it, or never heard."""
    endings = saved.state.endings
    for stream in sorted({ending.stream for ending in endings}):
        streams.raise_id(stream, max((e.id for e in endings if e.stream == stream), key=position))
    acked = fence.hold(lambda: streams.settle(fence.token, LEARNER, saved.state.policy_version, endings))
    log.info("learner.resumes", checkpoint=saved.folder.name, acked=acked)
