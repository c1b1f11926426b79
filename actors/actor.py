"""The actor: claims tasks, generates groups, verifies and ships them, in one loop that it owns.

One thread, no locks: a *tick* claims, takes weights, samples one token of every running completion and
ships what is finished. Weights therefore change only between two decoding steps, and spans are exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from actors.engine import Engine, Generated, Request
from actors.fetching import Source
from actors.policy import PolicyFollower
from actors.spans import GroupSpans
from actors.stages import stage_of
from actors.suspects import Suspects
from actors.verifying import PendingVerdicts, Verifying
from actors.waiting import WaitingShare
from common.codec import decode
from common.consumer import Consumer
from common.errors import InvalidMessage, ServerFull, TaskError
from common.heartbeat import Heartbeat
from common.keys import ACTORS
from common.messages import Kind, Rollout, RolloutGroup, Task, Verdict
from common.streams import Delivery, Product, Streams
from common.watchdog import Stage

log = structlog.get_logger()

IDLE_BLOCK_MS = 100
FULL_PAUSE_S = 1.0
VERDICT_POLL_S = 0.002
PAUSE_POLL_S = 0.05
LOOKING_SHARE = 0.02
"""Of its time, an actor that generates looks this much for more tasks while there are none."""


@dataclass(frozen=True, slots=True)
class _Unverified:
    generated: Generated
    verdicts: PendingVerdicts
    epoch: int
    """Learner epoch of the weights that generated it."""
    since: float
    """When it went to the verifiers, by the actor's clock."""


class Actor:
    """Keeps ``groups_in_flight`` groups going until told to stop.

    consumes: tasks of both kinds, judge tasks first (what they show is already ageing)
        waits for:    a task, or weights no older than the staleness bound
        unblocked by: the issuer when the learner publishes; the recycler; the learner's next version
    produces: one scored RolloutGroup per task, on the rollout stream of its kind
    """

    def __init__(
        self,
        name: str,
        streams: Streams,
        engine: Engine,
        verifying: Verifying,
        *,
        max_staleness: int,
        groups_in_flight: int,
        lease_s: float,
        max_deliveries: int,
        heartbeat: Heartbeat | None = None,
        source: Source | None = None,
        spans: GroupSpans | None = None,
        on_epoch: Callable[[int], None] = lambda _epoch: None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = name
        self._spans = spans or GroupSpans()
        self._on_epoch = on_epoch
        self.policy = PolicyFollower(streams, engine, max_staleness, clock, source, self._spans.applied)
        self._streams = streams
        self._engine = engine
        self._verifying = verifying
        self._groups_in_flight = groups_in_flight
        self._max_deliveries = max_deliveries
        self._clock = clock
        self._wall_clock = wall_clock
        self._sleep = sleep
        keys = streams.keys
        self._kinds: dict[str, Kind] = {keys.tasks("judge"): "judge", keys.tasks("policy"): "policy"}
        self._consumer = Consumer(streams, ACTORS, name, list(self._kinds), lease_s=lease_s, clock=clock)
        self._suspects = Suspects(self._consumer, max_deliveries)
        self._working: dict[str, tuple[Delivery, Task]] = {}
        self._verdicts_due: list[_Unverified] = []
        self._heartbeat = heartbeat or Heartbeat(streams, name, "actor", clock=clock)
        self._watchdog = self._heartbeat.watchdog
        self._counts = {
            "groups": 0,
            "rollouts": 0,
            "tokens": 0,
            "lost_leases": 0,
            "verifier_errors": 0,
            "unverified_groups": 0,
            "returned": 0,
        }
        self._waited_s = 0.0
        self._waiting = WaitingShare()
        self._paused_until = float("-inf")
        self._look_again_at = float("-inf")

    def tick(self) -> None:
        """One round; at most IDLE_BLOCK_MS long when there is nothing to do."""
        self._watchdog.enter(self._stage())
        claimed = self._claim()
        self._follow(now=bool(claimed) or self._engine.policy_version < 0)
        for delivery in claimed:
            self._start(delivery)
        if not self._working and (suspect := self._suspects.next()):
            self._begin(suspect)
        if self.policy.may_generate:
            self._generate()
        elif not claimed:
            self._wait_for_weights()
        self._ship_verified()
        if self._verdicts_due and not self._engine.groups_in_flight:
            self._sleep(VERDICT_POLL_S)
        self._drop_lost_leases()
        self._beat()

    def stop(self) -> None:
        """Hand everything back: whatever is unfinished is claimable by others at once, and was not tried in vain."""
        for stream in self._kinds:
            begun = {d.id: d.deliveries - 1 for d, _ in self._working.values() if d.stream == stream}
            self._streams.recount(stream, ACTORS, self.name, begun)
        handed_back = self._consumer.hand_back_all()
        self._heartbeat.stop()
        log.info("actor.stopped", handed_back=handed_back, **self._counts)

    def _claim(self) -> list[Delivery]:
        idle = not self._engine.groups_in_flight and not self._verdicts_due
        started = self._clock()
        if started < self._paused_until:
            if idle:
                self._sleep(PAUSE_POLL_S)
            return []
        if not idle and started < self._look_again_at:
            return []
        deliveries = self._consumer.claim(self._room(), IDLE_BLOCK_MS if idle else None)
        took = self._clock() - started
        if idle:
            self._waited_s += took
        elif not deliveries:
            self._look_again_at = started + took / LOOKING_SHARE
        return deliveries

    def _room(self) -> int:
        """Groups to claim. None while a suspect waits or runs: the others finish, it gets its turn, and alone."""
        if self._suspects or any(self._suspects.includes(delivery) for delivery, _ in self._working.values()):
            return 0
        return self._groups_in_flight - self._engine.groups_in_flight

    def _follow(self, *, now: bool) -> None:
        """Take newer weights. Those of another learner start everything anew: a completion never mixes two lines."""
        epoch, published = self.policy.epoch, self.policy.published_version
        self.policy.follow(now=now)
        if self.policy.published_version != published and self.policy.may_generate:
            self._progress()  # the learner works: to wait for its tasks is no stall
        if self.policy.epoch == epoch:
            return
        self._on_epoch(self.policy.epoch)
        self._engine.forget()
        finished = {due.generated.request.key for due in self._verdicts_due}
        for key in [key for key in self._working if key not in finished]:
            delivery, _ = self._working.pop(key)
            self._spans.gone(key)
            if delivery.id in self._consumer.held[delivery.stream]:
                self._start(delivery)

    def _start(self, delivery: Delivery) -> None:
        if delivery.key in self._working:  # its lease was lost and came back while it was still being generated
            self._working[delivery.key] = (delivery, self._working[delivery.key][1])
            return None
        if delivery.deliveries > self._max_deliveries:
            return self._bury(
                delivery, f"delivered {delivery.deliveries - 1} times without a result; this delivery buries it"
            )
        if self._suspects.includes(delivery):
            return self._suspects.set_aside(delivery)
        return self._begin(delivery)

    def _begin(self, delivery: Delivery) -> None:
        try:
            task = decode(Task, delivery.payload)
            if self.policy.is_ahead(task):
                return self._return(delivery)
            prompt_token_ids = self._engine.tokenize(task.messages)
            self._engine.add(Request(key=delivery.key, prompt_token_ids=prompt_token_ids, sampling=task.sampling))
        except (InvalidMessage, TaskError) as error:
            return self._bury(delivery, str(error))
        self._working[delivery.key] = (delivery, task)
        self._spans.begun(delivery.key)
        return None

    def _generate(self) -> None:
        """One more token of everything in flight; what is complete goes to the verifiers."""
        if self._engine.groups_in_flight:
            self._progress()
        for generated in self._engine.step():
            _, task = self._working[generated.request.key]
            self._spans.generated(generated.request.key)
            pending = self._verifying.submit(task, generated.completions)
            self._verdicts_due.append(_Unverified(generated, pending, self.policy.epoch, self._clock()))

    def _return(self, delivery: Delivery) -> None:
        """To the learner, which issues it again when its time comes. On a full server: to anybody, for another try."""
        product = Product(uid=delivery.uid, payload=delivery.payload)
        try:
            self._streams.transfer(delivery.stream, ACTORS, self._streams.keys.returned, [(delivery.id, [product])])
        except ServerFull as error:
            log.warning("actor.cannot_return", reason=str(error))
            untried = {delivery.id: delivery.deliveries - 1}
            self._streams.hand_back(delivery.stream, ACTORS, self.name, [], deliveries=untried)
            self._paused_until = self._clock() + FULL_PAUSE_S
        self._consumer.done(delivery)
        self._counts["returned"] += 1

    def _wait_for_weights(self) -> None:
        """No usable weights yet; unblocked by the learner publishing, or by readable files of the version it did."""
        started = self._clock()
        self._streams.wait_for_weights(IDLE_BLOCK_MS)
        self._waited_s += self._clock() - started

    def _ship_verified(self) -> None:
        if self._clock() < self._paused_until:
            return
        due, self._verdicts_due = self._verdicts_due, []
        for one in due:
            if not one.verdicts.done():
                self._verdicts_due.append(one)
                continue
            delivery, task = self._working[one.generated.request.key]
            if delivery.id in self._consumer.held[delivery.stream]:
                try:
                    self._finish(delivery, self._group(task, one))
                except ServerFull as error:  # kept until consumers have made room; nothing new is claimed meanwhile
                    self._paused_until = self._clock() + FULL_PAUSE_S
                    self._verdicts_due.append(one)
                    log.warning("actor.paused", reason=str(error))
                    continue
            del self._working[one.generated.request.key]
            self._spans.gone(one.generated.request.key)

    def _group(self, task: Task, one: _Unverified) -> RolloutGroup:
        generated, verdicts = one.generated, one.verdicts.verdicts()
        pairs = zip(generated.completions, verdicts, strict=True)
        return RolloutGroup(
            task=task,
            prompt_token_ids=generated.request.prompt_token_ids,
            rollouts=tuple(Rollout(completion=completion, verdict=verdict) for completion, verdict in pairs),
            actor=self.name,
            weights_epoch=one.epoch,
            generated_at=self._wall_clock(),
        )

    def _finish(self, delivery: Delivery, group: RolloutGroup) -> None:
        if not group.scored:
            return self._retry_or_bury(delivery, group.rollouts[0].verdict)
        try:
            product = Product.of(group.uid, group)
        except InvalidMessage as error:  # over the size limit: another try would be as large
            return self._bury(delivery, str(error))
        rollouts = self._streams.keys.rollouts(group.task.kind)
        self._streams.transfer(delivery.stream, ACTORS, rollouts, [(delivery.id, [product])])
        self._consumer.done(delivery)
        self._spans.shipped(delivery, group)
        self._progress()
        self._counts["groups"] += 1
        self._counts["verifier_errors"] += len(group.rollouts) - len(group.scored)
        self._counts["rollouts"] += len(group.rollouts)
        self._counts["tokens"] += sum(len(rollout.completion.token_ids) for rollout in group.rollouts)
        return None

    def _retry_or_bury(self, delivery: Delivery, verdict: Verdict) -> None:
        """No completion could be verified. That is a failure, never a reward of 0."""
        reason = f"verifier {verdict.verifier}: {verdict.status}: {verdict.detail}"
        self._counts["unverified_groups"] += 1
        if delivery.deliveries >= self._max_deliveries:
            return self._bury(delivery, reason)
        log.warning("actor.task_handed_back", uid=delivery.uid, reason=reason, deliveries=delivery.deliveries)
        self._streams.hand_back(delivery.stream, ACTORS, self.name, [delivery.id])
        self._consumer.done(delivery)
        return None

    def _bury(self, delivery: Delivery, reason: str) -> None:
        self._streams.bury(delivery, ACTORS, reason, self._kinds[delivery.stream])
        self._consumer.done(delivery)
        self._progress()
        log.warning("actor.task_dead", uid=delivery.uid, reason=reason, deliveries=delivery.deliveries)

    def _drop_lost_leases(self) -> None:
        """Entries that another actor took over: their results would change nothing, so they are not shipped."""
        lost = self._consumer.renew()
        if lost:
            self._counts["lost_leases"] += len(lost)
            log.warning("actor.leases_lost", entries=len(lost))

    def _progress(self) -> None:
        """Whatever else it gets done, an actor that cannot load the weights is not well."""
        if not self.policy.trouble:
            self._watchdog.progress()

    def _stage(self) -> Stage:
        return stage_of(
            self.policy,
            running=self._engine.groups_in_flight,
            unverified=len(self._verdicts_due),
            paused=self._clock() < self._paused_until,
        )

    def _beat(self) -> None:
        if not self._heartbeat.due:
            return
        state = "generating" if self._engine.groups_in_flight else "waiting for tasks"
        self._heartbeat.beat(
            state if self.policy.may_generate else "waiting for weights",
            epoch=self.policy.epoch,
            policy_version=self._engine.policy_version,
            groups_in_flight=self._engine.groups_in_flight,
            suspects=len(self._suspects),
            unverified=len(self._verdicts_due),
            unverified_s=round(max((self._clock() - due.since for due in self._verdicts_due), default=0.0), 1),
            behind_s=round(self.policy.behind_s, 1),
            trouble=self.policy.trouble,
            apply_failures=self.policy.failures,
            waited_s=round(self._waited_s, 3),
            waiting_share=self._waiting.after(self._clock(), self._waited_s),
            **self._counts,
        )
