"""Admission: room for prompts and judge tasks, as much as the staleness bound leaves. The first of three gates."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from common.errors import ServerFull
from common.messages import Kind
from common.settings import Settings
from common.staleness import groups_in_flight_allowed
from common.streams import Streams
from learner.accounts import Account
from learner.issuer import Issuer
from learner.quota import Quota

log = structlog.get_logger()


class Admission:
    """Issues prompts into the room there is, and grants the recycler its share.

    An ended group gives its room back, except that filtered ones stop doing so when the refill is spent.
    """

    def __init__(self, streams: Streams, issuer: Issuer, accounts: Mapping[Kind, Account], settings: Settings) -> None:
        self.granted = 0
        """Judge tasks that the recycler may have made in total."""
        self._reported = -1
        self.paused = False
        """The server has no room for new prompts at the moment."""
        self._streams = streams
        self._issuer = issuer
        self._accounts = accounts
        self._settings = settings

    def use(self, settings: Settings) -> None:
        """Other settings from now on."""
        self._settings = settings

    def admit(
        self, quota: Quota, ledger: Mapping[str, int], policy_version: int, before: int = 0, *, new: bool = True
    ) -> int:
        """Issue and grant for the batch being collected. Returns how many prompts were issued. Raises Fenced.

        What came back and lies ``before`` this place in the order of the prompts needs no room. Unless ``new``, only
        what came back is issued: it is in flight already.
        """
        self._issuer.take_back()
        if new:
            self._grant(self._judge_grant(quota, ledger, policy_version))
        else:
            self.hold(ledger)
        self.paused = False
        room = self._policy_room(quota, ledger, policy_version, before)
        try:
            return self._issuer.issue(room, policy_version, new=new)
        except ServerFull as error:  # consuming goes on, which makes room
            self.paused = True
            log.warning("issuer.paused", reason=str(error))
            return 0

    def hold(self, ledger: Mapping[str, int]) -> None:
        """No room for judge tasks: the recycler may have made as many as have ended."""
        self._grant(self._ended("judge", ledger) + ledger["dead:judge"])

    def _grant(self, granted: int) -> None:
        self.granted = granted
        if granted != self._reported:
            self._reported = granted
            self._streams.report_progress(judge_granted=granted)

    def report_again(self) -> None:
        """With the next ``admit``: the server may have lost what it was told last."""
        self._reported = -1

    def in_flight(self, kind: Kind, ledger: Mapping[str, int]) -> int:
        """Issued and not ended anywhere."""
        return ledger[f"issued:{kind}"] - ledger[f"dead:{kind}"] - self._ended(kind, ledger)

    def _ended(self, kind: Kind, ledger: Mapping[str, int]) -> int:
        settled = sum(ledger[f"{outcome}:{kind}"] for outcome in ("trained", "filtered", "dropped_stale"))
        return self._accounts[kind].ended(settled)

    def _policy_room(self, quota: Quota, ledger: Mapping[str, int], policy_version: int, before: int) -> int:
        """Full servers get nothing more, and no prompts are issued beyond the last step."""
        if quota.policy == 0:
            return 0  # alternating: what is sampled now would be stale after the judge's updates
        learner, account = self._settings.learner, self._accounts["policy"]
        withheld = account.withheld(learner.groups_per_step, learner.refill)
        busy = self.in_flight("policy", ledger) - self._issuer.parked
        room = self._allowed(learner.groups_per_step, policy_version) - busy - withheld
        room = max(room, self._issuer.parked_before(before))
        if room <= 0:
            return 0
        if (share := self._streams.memory_share()) > self._settings.redis.memory_share:
            self.paused = True
            log.warning("issuer.paused", reason="server memory", share=round(share, 3))
            return 0
        return room

    def _judge_grant(self, quota: Quota, ledger: Mapping[str, int], policy_version: int) -> int:
        """Alternating: only while a judge batch is due."""
        learner, account = self._settings.learner, self._accounts["judge"]
        groups = learner.judge_groups_per_step
        granted = self._ended("judge", ledger) + ledger["dead:judge"]
        if learner.mixing == "joint":
            withheld = min(groups, account.withheld(groups, learner.refill))
            return granted + self._allowed(groups, policy_version) - withheld
        return granted + quota.judge

    def _allowed(self, groups_per_batch: int, policy_version: int) -> int:
        learner, bound = self._settings.learner, self._settings.staleness.max_staleness
        batches_left = -(-(learner.max_steps - policy_version) // learner.updates_per_batch)
        allowed = groups_in_flight_allowed(groups_per_batch, learner.updates_per_batch, bound)
        return min(allowed, batches_left * groups_per_batch)
