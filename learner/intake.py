"""The intake: scored groups of both streams, cut into batches no staler than the bound. The learner's gate.

Nothing is acknowledged here. Every group read ends in exactly one ``Ending``; the checkpoint makes it durable,
and only then is it settled with the server.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from common.codec import decode
from common.consumer import Consumer
from common.errors import InvalidMessage, ServerFull, TooManyDead
from common.keys import LEARNER
from common.lineage import ONE_LINE, Lineage
from common.messages import JUDGE_OBJECTIVES, Kind, Objective, Outcome, RolloutGroup
from common.settings import Settings
from common.staleness import content_staleness, fresh, of_lost_weights, token_staleness
from common.streams import Delivery, Ending, Product, Streams, position
from common.watchdog import Stage, Watchdog
from learner.accounts import Account
from learner.admission import Admission
from learner.advantage import has_contrast
from learner.group_stats import GroupStats
from learner.issuer import Issuer
from learner.quota import DeficitRoundRobin, Quota, oldest_first
from learner.steering import Helm
from learner.uid_ledger import UidLedger

log = structlog.get_logger()

BLOCK_MS: Final = 50
READ_COUNT: Final = 64
ADOPT_S: Final = 1.0
"""A fenced learner may claim entries until it notices; they are taken over this often."""
RELIEVE_S: Final = 5.0
UPDATE: Final = Stage(
    name="update",
    waits_for="the optimizer step, publishing or the checkpoint",
    unblocked_by="this process itself; `where` in its log says the call",
)
PAUSED: Final = Stage(name="paused", waits_for="the user", unblocked_by="`spark resume RUN`", idle=True)
KINDS: Final[tuple[Kind, Kind]] = ("policy", "judge")
_UID: Final = re.compile(r"[0-9a-f]{32}")


class Intake:
    """Admits prompts, collects groups, cuts batches.

    consumes: rollouts of both kinds, already scored
        waits for:    ``quota.policy`` fresh groups with a contrast
        unblocked by: actors shipping groups; the refill limit; SIGTERM (``stopping``)
    produces: batches, and one Ending for every group
    """

    def __init__(
        self,
        streams: Streams,
        issuer: Issuer,
        settings: Settings,
        *,
        consumer: Consumer,
        ended: UidLedger,
        trained: int = 0,
        lineage: Lineage = ONE_LINE,
        guard: Callable[[], None],
        stopping: Callable[[], bool],
        beat: Callable[[str, int], None] = lambda _state, _version: None,
        consumed: Callable[[RolloutGroup, Outcome, int, int, int], None] = lambda *_: None,
        watchdog: Watchdog | None = None,
        helm: Helm | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.helm = helm or Helm(settings)
        self.stats = GroupStats(settings.metrics)
        self.endings: list[Ending] = []
        self.ended = ended
        self.trained = trained
        """Groups cut into batches since the run began."""
        self.lineage = lineage
        self._streams = streams
        self._issuer = issuer
        self._settings = settings
        self._consumer = consumer
        self._guard = guard
        self.stopping = stopping
        self._beat = beat
        self._consumed = consumed
        self._watchdog = watchdog or Watchdog(clock=clock)
        self._clock = clock
        self._kinds: dict[str, Kind] = {streams.keys.rollouts(kind): kind for kind in KINDS}
        self._ready: dict[Kind, dict[str, tuple[Delivery, RolloutGroup]]] = {kind: {} for kind in KINDS}
        self._orphans: dict[str, tuple[Delivery, RolloutGroup]] = {}
        ledger = streams.ledger()
        self._accounts = {kind: Account() for kind in KINDS}
        self._admission = Admission(streams, issuer, self._accounts, settings)
        self._round_robin = DeficitRoundRobin(_mix(settings))
        self._last_policy_id = "0-0"
        self._adopted = clock()
        self._relieved = float("-inf")
        self._dead = self._dead_at_cut = ledger["dead:policy"]
        self._newest_event = streams.newest_event()
        self._policy_version = 0

    def use(self, settings: Settings) -> None:
        """Other settings from the next batch on."""
        self._settings = settings
        self._admission.use(settings)
        self._round_robin.use(_mix(settings))

    def take(
        self,
        quota: Quota,
        policy_version: int,
        relieve: Callable[[], object] = lambda: None,
        tend: Callable[[], bool] = lambda: True,
    ) -> list[RolloutGroup] | None:
        """The next batch, oldest groups first; None when the run is over or drained.

        [] when a judge batch has nothing, or when a user's command waits (``helm.is_called``). While the run is paused
        groups are collected and nothing is issued or cut.

        ``relieve`` makes what has ended durable and acknowledges it. It is called when the server has no room for new
        prompts: acknowledged entries are what can be deleted, and no step may ever come without new prompts.
        ``tend`` is called all the time: it keeps the newest weights announced, without which no group may ever come,
        and says whether they are. While they are not, nothing is issued: it would be sampled by older ones.
        """
        self._policy_version = policy_version
        self._mark_events()
        self._admission.report_again()
        while self._poll(None):  # what has arrived: it may be older than what is ready, and judge groups may be in it
            pass
        self._expire()
        full_since: float | None = None
        while not self.stopping():
            self._guard()
            if self.helm.listen():
                return []
            announced = tend()
            self._return_orphans()
            ledger = self._streams.ledger()
            self._forget_dead(ledger["dead:policy"])
            if self.helm.paused:
                self._rest(ledger, policy_version)
                continue
            new, last = not self.helm.draining, self._last_place()
            issued = self._admission.admit(quota, ledger, policy_version, last, new=new) if announced else 0
            if self._admission.paused and self.endings and self._clock() - self._relieved > RELIEVE_S:
                self._relieved = self._clock()
                relieve()
            on_their_way = self._admission.in_flight("policy", ledger) + issued - len(self._ready["policy"])
            on_their_way += not announced  # no batch is cut short for want of what will be issued then
            if self.helm.draining and on_their_way == 0 and not self._ready["policy"]:
                quota = Quota(policy=0, judge=self._judge_left())
                if quota.judge == 0:
                    return None
            full = self._full(quota, on_their_way)
            full_since = (full_since or self._clock()) if full else None
            if full_since is not None and not self._worth_waiting(quota, self._clock() - full_since):
                self._watchdog.progress()
                self._watchdog.enter(UPDATE)
                self._beat("updating", policy_version)
                return self._cut(quota)
            self._watchdog.enter(self.waiting_for(quota, full=full))
            self._beat("waiting for judge groups" if full else "waiting for policy groups", policy_version)
            if not full and on_their_way == 0 and self._issuer.exhausted and not self._ready["policy"]:
                return None
            if self._poll(BLOCK_MS):
                self._watchdog.progress()
        return None

    def _rest(self, ledger: Mapping[str, int], policy_version: int) -> None:
        """A round of a paused run: what is under way arrives. Unblocked by the user."""
        self._admission.hold(ledger)
        self._watchdog.enter(PAUSED)
        self._watchdog.rest()
        self._beat(self.helm.steering.held, policy_version)
        self._poll(BLOCK_MS)

    def _judge_left(self) -> int:
        """Judge groups that the end of a drain waits for, at most a batch of them.

        At least one until the recycler has seen that it gets no more room: it may be making tasks for what it had.
        """
        most = self._settings.learner.judge_groups_per_step
        if most == 0:
            return 0
        told = self._streams.progress().get("recycled_grant") == str(self._admission.granted)
        left = self._admission.in_flight("judge", self._streams.ledger())  # read after the recycler's word
        if left == 0 and not told and self._streams.members().get("recycler") is not None:
            return 1
        return min(left, most)

    def waiting_for(self, quota: Quota, *, full: bool) -> Stage:
        """What the learner waits for, and who should end the wait. ``full``: the policy part of the batch is there."""
        ready, outstanding = len(self._ready["policy"]), len(self._issuer.outstanding)
        waits_for = f"{quota.policy} policy groups ({ready} ready, {outstanding} on their way)"
        unblocked_by = "actors shipping groups of tasks:policy"
        if full:
            waits_for = f"{quota.judge} judge groups ({len(self._ready['judge'])} ready), or older policy groups"
            unblocked_by = "the recycler and actors, or judge_wait_s and straggler_wait_s"
        elif self._admission.paused:
            unblocked_by = "room on the server for new prompts; actors shipping groups"
        return Stage(name="wait_for_groups", waits_for=waits_for, unblocked_by=unblocked_by)

    def remember(self, endings: list[Ending]) -> None:
        """Endings of this list are settled: forget their entries."""
        self.endings = self.endings[len(endings) :]
        for kind, account in self._accounts.items():
            account.unsettled = {ending.uid for ending in self.endings if ending.kind == kind and ending.uid}
        for ending in endings:
            self._consumer.held[ending.stream].discard(ending.id)

    def _mark_events(self) -> None:
        """Deaths are looked for from here on: a run that goes well for days must not read back all its events."""
        newest = self._streams.newest_event()
        if self._streams.ledger()["dead:policy"] == self._dead:  # read after the mark: no death lies before it
            self._newest_event = newest

    def _forget_dead(self, dead: int) -> None:
        """Tasks that died at an actor are on nobody's way: no batch waits for them. Raises TooManyDead."""
        if dead > self._dead:
            self._newest_event, uids = self._streams.dead_since(self._newest_event)
            for uid in uids:
                self._issuer.forget(uid)
        self._dead = dead  # fewer, when the user has revived some
        self._dead_at_cut = min(self._dead_at_cut, dead)
        learner = self._settings.learner
        if dead - self._dead_at_cut > learner.refill * learner.groups_per_step + 8:
            raise TooManyDead(
                f"{dead - self._dead_at_cut} tasks have died since the last batch; `spark dead list` says of what. "
                "Nothing more is issued: mend the cause, start again, and `spark dead retry` them"
            )

    # -- arrival ----------------------------------------------------------------------------------------

    def _poll(self, block_ms: int | None) -> bool:
        if self._clock() - self._adopted > ADOPT_S:
            self._adopted = self._clock()
            self._consumer.adopt()
            self._issuer.adopt(waiting=self._early() > 0)
            if leases := self._streams.mend_leases():
                log.warning("learner.server_clock_went_back", leases=leases)
        deliveries = self._consumer.claim(READ_COUNT, block_ms)
        for delivery in deliveries:
            self._arrive(delivery, self._kinds[delivery.stream])
        return bool(deliveries)

    def _arrive(self, delivery: Delivery, kind: Kind) -> None:
        try:
            group = _checked(decode(RolloutGroup, delivery.payload), delivery, kind)
        except InvalidMessage as error:
            self._streams.bury(delivery, LEARNER, str(error), kind)
            self._consumer.done(delivery)
            self._issuer.forget(delivery.uid)
            log.warning("learner.group_dead", uid=delivery.uid, reason=str(error))
            return
        self._issuer.forget(group.uid)
        if kind == "policy":
            self._last_policy_id = delivery.id
        if (outcome := self.ended.end_of(group.uid)) is not None:
            self._end_again(delivery, kind, outcome)
            return
        if (held := self._ready[kind].get(group.uid)) is not None:
            self._replace(held[0], delivery, kind)
            return
        if kind == "policy" and of_lost_weights(group, self.lineage) and not self._fresh(group, self._policy_version):
            self._orphans[group.uid] = (delivery, group)
            return
        self._accounts[kind].arrived()
        self.stats.arrived(group, content_staleness(group, self._policy_version, self.lineage))
        if self._settings.learner.filter_zero_variance and not has_contrast(group):
            self._end(delivery, kind, "filtered")
            self._tell(group, "filtered")
            return
        self._ready[kind][group.uid] = (delivery, group)

    def _end(self, delivery: Delivery, kind: Kind, outcome: Outcome) -> None:
        self.endings.append(
            Ending(stream=delivery.stream, id=delivery.id, uid=delivery.uid, outcome=outcome, kind=kind)
        )
        self.ended.add(delivery.uid, outcome, kind)
        self._accounts[kind].end(delivery.uid, filtered=outcome == "filtered")
        self.stats.ended(outcome, kind)

    def _tell(self, group: RolloutGroup, outcome: Outcome) -> None:
        """Whoever wants to hear of groups that ended; figures of trained ones are for the metrics, too."""
        staleness, content = self.staleness(group), content_staleness(group, self._policy_version, self.lineage)
        if outcome == "trained":
            self.stats.trained(group, staleness, content)
        self._consumed(group, outcome, self._policy_version, staleness, content)

    def _end_again(self, delivery: Delivery, kind: Kind, outcome: Outcome) -> None:
        """The twin of a uid that has its end already: the server forgot the end, so it is told once more.

        Nothing is trained.
        """
        self._accounts[kind].end(delivery.uid)
        self.endings.append(
            Ending(stream=delivery.stream, id=delivery.id, uid=delivery.uid, outcome=outcome, kind=kind)
        )
        log.warning("learner.twin", uid=delivery.uid, stream=delivery.stream, ended=outcome)

    def _replace(self, held: Delivery, delivery: Delivery, kind: Kind) -> None:
        """The group in hand came once more. Its old entry is one that the server lost, or counts nowhere."""
        if held.id == delivery.id:
            return
        _, group = self._ready[kind][delivery.uid]
        self._ready[kind][delivery.uid] = (delivery, group)
        self.endings.append(Ending(stream=held.stream, id=held.id, uid="", outcome="trained", kind=kind))
        log.warning("learner.group_came_twice", uid=delivery.uid, stream=delivery.stream)

    def _return_orphans(self) -> None:
        """Prompts that a lost line of weights sampled, beyond the bound: to be sampled again, never dropped for it."""
        for uid, (delivery, group) in list(self._orphans.items()):
            move = (delivery.id, [Product.of(uid, group.task)])
            try:
                self._streams.transfer(delivery.stream, LEARNER, self._streams.keys.returned, [move])
            except ServerFull as error:
                log.warning("learner.orphans_wait", reason=str(error), groups=len(self._orphans))
                return
            self._consumer.done(delivery)
            self._issuer.came_back[uid] = group.task.position
            del self._orphans[uid]
            log.info("group.returned", reason="its weights are lost", uid=uid, weights_epoch=group.weights_epoch)

    def _fresh(self, group: RolloutGroup, policy_version: int) -> bool:
        staleness = self._settings.staleness
        return fresh(group, policy_version, staleness.max_staleness, staleness.content_bound, self.lineage)

    def _fresh_next(self, group: RolloutGroup) -> bool:
        """Still fresh enough for the batch after this one."""
        return self._fresh(group, self._policy_version + self._settings.learner.updates_per_batch)

    def _expire(self) -> None:
        """Drop what is past the bound, count it, give its room back. What lost weights sampled is returned instead."""
        for kind, ready in self._ready.items():
            for uid, (delivery, group) in list(ready.items()):
                if self._fresh(group, self._policy_version):
                    continue
                del ready[uid]
                if kind == "policy" and of_lost_weights(group, self.lineage):
                    self._orphans[uid] = (delivery, group)
                    continue
                self._end(delivery, kind, "dropped_stale")
                self._tell(group, "dropped_stale")
                log.info(
                    "group.dropped",
                    reason="stale",
                    uid=uid,
                    objective=group.task.objective,
                    staleness=self.staleness(group),
                    content_staleness=content_staleness(group, self._policy_version, self.lineage),
                )

    def staleness(self, group: RolloutGroup) -> int:
        """Token staleness at the version that the last batch was asked for."""
        return token_staleness(group, self._policy_version, self.lineage)

    # -- the cut ----------------------------------------------------------------------------------------

    def _full(self, quota: Quota, on_their_way: int) -> bool:
        """The policy part of the batch is complete: as wanted, or as large as it can get (a judge batch has none)."""
        self._expire()
        if quota.policy and self._issuer.inherited:
            return False  # synchronous training goes on where it was: what belongs to this batch may still be coming
        ready, account, learner = len(self._ready["policy"]), self._accounts["policy"], self._settings.learner
        early = 0 if self._admission.paused else self._early()
        if ready - early >= quota.policy:
            return True
        if (on_their_way > 0 or early) and not account.refill_spent(learner.groups_per_step, learner.refill):
            return False
        if ready == 0 and account.arrived_since_cut:
            log.warning("learner.no_contrast", groups=account.arrived_since_cut)
            account.cut()  # all right or all wrong: nothing to learn from, look further
        return ready > 0

    def _last_place(self) -> int:
        """Synchronous: position of the last policy group that is ready. What came back goes before it."""
        if self._settings.staleness.max_staleness:
            return 0
        return max((group.task.position for _, group in self._ready["policy"].values()), default=0)

    def _first_out(self) -> float:
        """Synchronous training goes by the order of the prompts: position of the first that came back and is still out.

        What is ready and comes after it was issued because this one had no contrast. No one knows that any more.
        """
        if self._settings.staleness.max_staleness:
            return math.inf
        ready, out = self._ready["policy"], self._issuer.came_back.items()
        return min((position for uid, position in out if uid not in self.ended and uid not in ready), default=math.inf)

    def _early(self) -> int:
        """Policy groups that are ready, but whose turn has not come."""
        first_out = self._first_out()
        return sum(group.task.position > first_out for _, group in self._ready["policy"].values())

    def _worth_waiting(self, quota: Quota, waited_s: float) -> bool:
        """A full batch waits a bounded time for old policy groups it would otherwise drop, and for judge groups."""
        learner, bound = self._settings.learner, self._settings.staleness.max_staleness
        last_chance = range(self._policy_version - bound, self._policy_version + learner.updates_per_batch - bound)
        stragglers = any(version in last_chance for version in self._issuer.outstanding.values())
        if quota.policy and bound and stragglers and waited_s < learner.straggler_wait_s:
            return True
        if len(self._ready["judge"]) >= quota.judge:
            return False
        if self.helm.draining and not quota.policy:
            return True  # the last of what is in flight
        if waited_s >= learner.judge_wait_s:
            return False
        return self._judge_on_its_way()

    def _judge_on_its_way(self) -> bool:
        """False once the recycler has looked at everything, under the present grant, and its tasks are all back."""
        progress = self._streams.progress()
        through, grant = progress.get("recycled_through", "0-0"), int(progress.get("recycled_grant", "-1"))
        ledger = self._streams.ledger()  # read after the recycler's word, so that it includes what it issued before
        in_flight = self._admission.in_flight("judge", ledger)
        caught_up = grant >= self._admission.granted and position(through) >= position(self._last_policy_id)
        return not caught_up or in_flight > len(self._ready["judge"])

    def _cut(self, quota: Quota) -> list[RolloutGroup]:
        first_out = self._first_out()
        ready = [group for _, group in self._ready["policy"].values()]
        in_turn = sorted(ready, key=lambda group: (group.task.position > first_out, *oldest_first(group)))
        policy = in_turn[: quota.policy]
        judge = self._round_robin.choose(
            [group for _, group in self._ready["judge"].values()],
            quota.judge,
            lambda group: not self._fresh_next(group),
        )
        for group in policy + judge:
            delivery, _ = self._ready[group.task.kind].pop(group.uid)
            self._end(delivery, group.task.kind, "trained")
            self._tell(group, "trained")
        self.trained += len(policy + judge)
        self._dead_at_cut = self._dead
        if quota.policy:
            self._accounts["policy"].cut()
        if quota.judge:
            self._accounts["judge"].cut()
        return policy + judge


def _mix(settings: Settings) -> dict[Objective, float]:
    mix = settings.recycler.mix.model_dump()
    return {objective: mix[objective] for objective in JUDGE_OBJECTIVES}


def _checked(group: RolloutGroup, delivery: Delivery, kind: Kind) -> RolloutGroup:
    """The group, if it is the one its entry names. Raises InvalidMessage: nothing else could account for it."""
    if group.uid != delivery.uid or _UID.fullmatch(group.uid) is None:
        raise InvalidMessage(
            f"uid {group.uid!r} in an entry of uid {delivery.uid!r}; need 32 hex digits, twice the same"
        )
    if group.task.kind != kind:
        raise InvalidMessage(f"a group of objective {group.task.objective!r} on the {kind} stream")
    return group
