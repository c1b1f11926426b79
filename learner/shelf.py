"""The shelf: groups of both streams that have arrived, and are in no batch yet.

Nothing is acknowledged here. Every group read ends in exactly one ``Ending``; the checkpoint makes it durable,
and only then is it settled with the server.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from common.codec import decode
from common.consumer import Consumer
from common.errors import InvalidMessage, ServerFull
from common.keys import LEARNER
from common.lineage import ONE_LINE, Lineage
from common.messages import Kind, Outcome, RolloutGroup
from common.settings import Settings
from common.staleness import content_staleness, fresh, of_lost_weights, token_staleness
from common.streams import Delivery, Ending, Product, Streams
from learner.accounts import Account
from learner.advantage import has_contrast
from learner.group_stats import GroupStats
from learner.issuer import Issuer
from learner.uid_ledger import UidLedger

log = structlog.get_logger()

READ_COUNT: Final = 64
ADOPT_S: Final = 1.0
"""A fenced learner may claim entries until it notices; they are taken over this often."""
KINDS: Final[tuple[Kind, Kind]] = ("policy", "judge")
OnEnding = Callable[[RolloutGroup, Outcome, int, int, int], None]
"""Told of a group that ended: how, at which policy version, and its staleness and content staleness then."""
_UID: Final = re.compile(r"[0-9a-f]{32}")


class Shelf:
    """Reads groups, and keeps those that a batch may be made of; the others end here."""

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
        consumed: OnEnding = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stats = GroupStats(settings.metrics)
        self.endings: list[Ending] = []
        self.ended = ended
        self.trained = trained
        """Groups cut into batches since the run began."""
        self.lineage = lineage
        self.policy_version = 0
        """That the next batch is for."""
        self.accounts = {kind: Account() for kind in KINDS}
        self.last_policy_id = "0-0"
        """Entry of the policy group that came last."""
        self._streams = streams
        self._issuer = issuer
        self._settings = settings
        self._consumer = consumer
        self._consumed = consumed
        self._clock = clock
        self._kinds: dict[str, Kind] = {streams.keys.rollouts(kind): kind for kind in KINDS}
        self._ready: dict[Kind, dict[str, tuple[Delivery, RolloutGroup]]] = {kind: {} for kind in KINDS}
        self._orphans: dict[str, tuple[Delivery, RolloutGroup]] = {}
        self._adopted = clock()

    def use(self, settings: Settings) -> None:
        """Other settings from the next batch on."""
        self._settings = settings

    def ready(self, kind: Kind) -> list[RolloutGroup]:
        """What a batch can be made of, in order of arrival."""
        return [group for _, group in self._ready[kind].values()]

    def staleness(self, group: RolloutGroup) -> int:
        """Token staleness at the version that the next batch is for."""
        return token_staleness(group, self.policy_version, self.lineage)

    def fresh_next(self, group: RolloutGroup) -> bool:
        """Still fresh enough for the batch after this one."""
        return self._fresh(group, self.policy_version + self._settings.learner.updates_per_batch)

    def cut(self, groups: Sequence[RolloutGroup]) -> None:
        """These are a batch."""
        for group in groups:
            delivery, _ = self._ready[group.task.kind].pop(group.uid)
            self._end(delivery, group.task.kind, "trained")
            self._tell(group, "trained")
        self.trained += len(groups)

    def remember(self, endings: list[Ending]) -> None:
        """Endings of this list are settled: forget their entries."""
        self.endings = self.endings[len(endings) :]
        for kind, account in self.accounts.items():
            account.unsettled = {ending.uid for ending in self.endings if ending.kind == kind and ending.uid}
        for ending in endings:
            self._consumer.held[ending.stream].discard(ending.id)

    # -- arrival ----------------------------------------------------------------------------------------

    def poll(self, block_ms: int | None) -> bool:
        """Read what has come, or wait so long for it. Whether anything came."""
        if self._clock() - self._adopted > ADOPT_S:
            self._adopted = self._clock()
            self._consumer.adopt()
            self._issuer.adopt(waiting=self.early() > 0)
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
            self.last_policy_id = delivery.id
        if (outcome := self.ended.end_of(group.uid)) is not None:
            self._end_again(delivery, kind, outcome)
            return
        if (held := self._ready[kind].get(group.uid)) is not None:
            self._replace(held[0], delivery, kind)
            return
        if kind == "policy" and of_lost_weights(group, self.lineage) and not self._fresh(group, self.policy_version):
            self._orphans[group.uid] = (delivery, group)
            return
        self.accounts[kind].arrived()
        self.stats.arrived(group, content_staleness(group, self.policy_version, self.lineage))
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
        self.accounts[kind].end(delivery.uid, filtered=outcome == "filtered")
        self.stats.ended(outcome, kind)

    def _tell(self, group: RolloutGroup, outcome: Outcome) -> None:
        """Whoever wants to hear of groups that ended; figures of trained ones are for the metrics, too."""
        staleness, content = self.staleness(group), content_staleness(group, self.policy_version, self.lineage)
        if outcome == "trained":
            self.stats.trained(group, staleness, content)
        self._consumed(group, outcome, self.policy_version, staleness, content)

    def _end_again(self, delivery: Delivery, kind: Kind, outcome: Outcome) -> None:
        """The twin of a uid that has its end already: the server forgot the end, so it is told once more.

        Nothing is trained.
        """
        self.accounts[kind].end(delivery.uid)
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

    def return_orphans(self) -> None:
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

    def expire(self) -> None:
        """Drop what is past the bound, count it, give its room back. What lost weights sampled is returned instead."""
        for kind, ready in self._ready.items():
            for uid, (delivery, group) in list(ready.items()):
                if self._fresh(group, self.policy_version):
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
                    content_staleness=content_staleness(group, self.policy_version, self.lineage),
                )

    # -- the order of the prompts, which synchronous training goes by ----------------------------------------

    def last_place(self) -> int:
        """Synchronous: position of the last policy group that is ready. What came back goes before it."""
        if self._settings.staleness.max_staleness:
            return 0
        return max((group.task.position for group in self.ready("policy")), default=0)

    def first_out(self) -> float:
        """Synchronous training goes by the order of the prompts: position of the first that came back and is still out.

        What is ready and comes after it was issued because this one had no contrast. No one knows that any more.
        """
        if self._settings.staleness.max_staleness:
            return math.inf
        ready, out = self._ready["policy"], self._issuer.came_back.items()
        return min((position for uid, position in out if uid not in self.ended and uid not in ready), default=math.inf)

    def early(self) -> int:
        """Policy groups that are ready, but whose turn has not come."""
        first_out = self.first_out()
        return sum(group.task.position > first_out for group in self.ready("policy"))


def _checked(group: RolloutGroup, delivery: Delivery, kind: Kind) -> RolloutGroup:
    """The group, if it is the one its entry names. Raises InvalidMessage: nothing else could account for it."""
    if group.uid != delivery.uid or _UID.fullmatch(group.uid) is None:
        raise InvalidMessage(
            f"uid {group.uid!r} in an entry of uid {delivery.uid!r}; need 32 hex digits, twice the same"
        )
    if group.task.kind != kind:
        raise InvalidMessage(f"a group of objective {group.task.objective!r} on the {kind} stream")
    return group
