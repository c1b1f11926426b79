"""The recycler's loop: scored policy groups in, judge tasks out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import structlog

from common.codec import decode
from common.consumer import Consumer
from common.errors import InvalidMessage, ServerFull, SettingsError
from common.heartbeat import Heartbeat
from common.keys import LEARNER, RECYCLER
from common.lineage import ONE_LINE, Lineage
from common.messages import RolloutGroup
from common.settings import Settings
from common.streams import Delivery, Product, Streams, position
from common.telemetry.quiet import QUIET, Traces
from common.watchdog import Stage
from recycler.following import Following, least_room
from recycler.reservoir import Emission, Reservoir

log = structlog.get_logger()

BLOCK_MS: Final = 50
READ_COUNT: Final = 64
FULL_PAUSE_S: Final = 1.0


class RecyclerLoop:
    """Turns groups into judge tasks as the learner grants room.

    consumes: rollouts:policy, in its own consumer group
        waits for:    a scored group, or room for judge tasks
        unblocked by: actors shipping groups; the learner raising ``judge_granted``
    produces: tasks:judge; every group is acknowledged together with its tasks, or with none
    """

    def __init__(
        self,
        streams: Streams,
        reservoir: Reservoir,
        *,
        content_bound: int,
        least_room: int = 1,
        following: Following | None = None,
        heartbeat: Heartbeat | None = None,
        traces: Traces = QUIET.traces,
        on_epoch: Callable[[int], None] = lambda _epoch: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._streams = streams
        self._reservoir = reservoir
        self._content_bound = content_bound
        self._least_room = least_room
        self._following = following
        self._clock = clock
        self._sleep = sleep
        self._outbox: list[Emission] = []
        self._traces = traces
        self._on_epoch = on_epoch
        self._epoch = 0
        self._contexts: dict[str, str] = {}
        """Entry -> context of the group in it, of groups that are traced."""
        self._issued: list[Callable[[], None]] = []
        """To be told once the outbox is sent."""
        self._source = streams.keys.rollouts("policy")
        self._consumer = Consumer(streams, RECYCLER, "recycler", [self._source], clock=clock)
        self._deliveries: dict[str, Delivery] = {}
        self._reported: tuple[str, int] | None = None
        self._through = streams.progress().get("recycled_through", "0-0")
        self._heartbeat = heartbeat or Heartbeat(streams, "recycler", "recycler", clock=clock)
        self._watchdog = self._heartbeat.watchdog
        self._seen: tuple[int, int] = (0, 0)
        """Policy version and judge tasks granted, as read last."""
        self._room = 0

    def tick(self) -> None:
        """One round: read, expire, plan within the grant, say how far it got."""
        self._watchdog.enter(self._stage())
        if self._flush():
            self._round()
        self._beat()

    def _round(self) -> None:
        deliveries = self._consumer.claim(READ_COUNT, BLOCK_MS)
        for delivery in deliveries:
            self._add(delivery)
        progress = self._streams.progress()
        granted, policy_version = int(progress.get("judge_granted", 0)), int(progress.get("policy_version", 0))
        if deliveries or (policy_version, granted) != self._seen:
            self._seen = (policy_version, granted)
            self._watchdog.progress()
        if (epoch := int(progress.get("epoch", 0))) != self._epoch:
            self._epoch = epoch
            self._on_epoch(epoch)
        if self._following and (settings := self._following.look(progress)) is not None:
            self._use(settings)
        lineage = Lineage.from_json(progress["lineage"]) if "lineage" in progress else ONE_LINE
        self._emit(self._reservoir.expire(policy_version, self._content_bound, lineage))
        self._room = granted - self._streams.ledger()["issued:judge"]
        if self._room >= self._least_room:  # a group is decided once, so room that trickles would waste wrong answers
            self._emit(self._reservoir.plan(self._room, policy_version))
        if not self._outbox:
            self._report(granted)

    def _use(self, settings: Settings) -> None:
        """Other settings from now on. What the template set has no texts for is left as it is."""
        self._least_room = least_room(settings)
        try:
            self._reservoir.use(settings.recycler)
        except SettingsError as error:
            log.error("recycler.not_steered", reason=str(error))

    def stop(self) -> None:
        """Nothing to hand back: the groups held stay pending for the next recycler, which has the same name."""
        self._heartbeat.stop()
        log.info("recycler.stopped", held=len(self._reservoir), **self._reservoir.counts)

    def _add(self, delivery: Delivery) -> None:
        try:
            group = decode(RolloutGroup, delivery.payload)
        except InvalidMessage as error:
            self._streams.bury(delivery, RECYCLER, str(error), None)  # its uid ends at the learner, not here
            self._consumer.done(delivery)
            log.warning("recycler.group_dead", uid=delivery.uid, reason=str(error))
        else:
            self._deliveries[delivery.id] = delivery
            self._reservoir.add(delivery.id, group)
            if group.task.trace:
                self._contexts[delivery.id] = group.task.trace
        self._through = max(self._through, delivery.id, key=position)  # a re-read entry is no step back

    def _emit(self, emissions: Sequence[Emission]) -> None:
        self._outbox += [self._traced(emission) for emission in emissions]
        self._flush()

    def _traced(self, emission: Emission) -> Emission:
        """Its tasks in traces of their own, each linked to the group whose answers it shows."""
        source = self._contexts.pop(emission.entry_id, "")
        issue = self._traces.issue(emission.tasks, self._seen[0], source)
        self._issued.append(issue.told)
        return replace(emission, tasks=tuple(issue.tasks))

    def _flush(self) -> bool:
        """Send what was decided. False when the server is full: waits for consumers, who make room."""
        moves = [(e.entry_id, [Product.of(task.uid, task) for task in e.tasks]) for e in self._outbox]
        target = self._streams.keys.tasks("judge")
        try:
            applied = self._streams.transfer(self._source, RECYCLER, target, moves, issues="judge")
        except ServerFull as error:
            log.warning("recycler.paused", reason=str(error), decided=len(self._outbox))
            self._sleep(FULL_PAUSE_S)
            return False
        for emission, counted in zip(self._outbox, applied, strict=True):
            self._consumer.done(self._deliveries.pop(emission.entry_id))
            if not counted:
                log.warning("recycler.already_decided", uid=emission.uid)
        if self._outbox:
            self._watchdog.progress()
        for told in self._issued:
            told()
        self._outbox, self._issued = [], []
        return True

    def _report(self, granted: int) -> None:
        """After the transfers: everything up to ``through`` was planned under this grant."""
        if (self._through, granted) != self._reported:
            self._reported = (self._through, granted)
            self._streams.report_progress(recycled_through=self._through, recycled_grant=granted)

    def _stage(self) -> Stage:
        if self._outbox:
            return Stage(
                name="issue_judge_tasks",
                waits_for=f"room on the server for the tasks of {len(self._outbox)} groups",
                unblocked_by="the learner's checkpoints, or more memory or disk for the server",
                owner=LEARNER,
            )
        if self._room < self._least_room:
            return Stage(
                name="wait_for_room",
                waits_for=f"room for {self._least_room} judge tasks; there is room for {max(0, self._room)}",
                unblocked_by="the learner, which grants more when it takes judge groups",
                owner=LEARNER,
                idle=True,
            )
        return Stage(
            name="wait_for_groups",
            waits_for="scored policy groups",
            unblocked_by="actors shipping policy groups",
            idle=True,
        )

    def _beat(self) -> None:
        if not self._heartbeat.due:
            return
        self._heartbeat.beat(
            self._state(),
            policy_version=self._seen[0],
            room=self._room,
            held=len(self._reservoir),
            **self._reservoir.counts,
        )

    def _state(self) -> str:
        if self._outbox:
            return "paused: the server is full"
        return "waiting for groups" if self._room > 0 else "waiting for room"
