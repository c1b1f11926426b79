"""The intake: scored groups of both streams, cut into batches no staler than the bound. The learner's gate."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from common.messages import JUDGE_OBJECTIVES, Objective, RolloutGroup
from common.records import lives
from common.settings import Settings
from common.streams import Streams, position
from common.watchdog import Stage, Watchdog
from learner.admission import Admission
from learner.deaths import Deaths
from learner.issuer import Issuer
from learner.quota import DeficitRoundRobin, Quota, oldest_first
from learner.shelf import Shelf
from learner.steering import Helm

log = structlog.get_logger()

BLOCK_MS: Final = 50
RELIEVE_S: Final = 5.0
VAIN_ROUNDS: Final = 2
"""Batches' worth of refill without a contrast that are no bad luck any more."""
UPDATE: Final = Stage(
    name="update",
    waits_for="the optimizer step, publishing or the checkpoint",
    unblocked_by="this process itself; `where` in its log says the call",
)
PAUSED: Final = Stage(name="paused", waits_for="the user", unblocked_by="`spark resume RUN`", idle=True)


class Intake:
    """Admits prompts, collects groups on the shelf, cuts batches.

    consumes: rollouts of both kinds, already scored
        waits for:    ``quota.policy`` fresh groups with a contrast
        unblocked by: actors shipping groups; the refill limit; SIGTERM (``stopping``)
    produces: batches, and one Ending for every group
    """

    def __init__(
        self,
        streams: Streams,
        issuer: Issuer,
        shelf: Shelf,
        settings: Settings,
        *,
        guard: Callable[[], None],
        stopping: Callable[[], bool],
        beat: Callable[[str, int], None] = lambda _state, _version: None,
        watchdog: Watchdog | None = None,
        helm: Helm | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.helm = helm or Helm(settings)
        self.shelf = shelf
        self.stopping = stopping
        self._streams = streams
        self._issuer = issuer
        self._settings = settings
        self._guard = guard
        self._beat = beat
        self._watchdog = watchdog or Watchdog(clock=clock)
        self._clock = clock
        self._deaths = Deaths(streams, issuer, settings)
        self._admission = Admission(streams, issuer, shelf.accounts, settings)
        self._round_robin = DeficitRoundRobin(_mix(settings))
        self._relieved = float("-inf")
        self._in_vain = 0
        """Groups since the last batch that were looked at in rounds without any contrast."""

    def use(self, settings: Settings) -> None:
        """Other settings from the next batch on."""
        self._settings = settings
        self.shelf.use(settings)
        self._deaths.use(settings)
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
        self.shelf.policy_version = policy_version
        self._deaths.mark()
        self._admission.report_again()
        while self.shelf.poll(
            None
        ):  # what has arrived: it may be older than what is ready, and judge groups may be in it
            pass
        self.shelf.expire()
        full_since: float | None = None
        while not self.stopping():
            self._guard()
            if self.helm.listen():
                return []
            announced = tend()
            self.shelf.return_orphans()
            ledger = self._streams.ledger()
            self._deaths.forget(ledger["dead:policy"])
            if self.helm.paused:
                self._rest(ledger, policy_version)
                continue
            new, last = not self.helm.draining, self.shelf.last_place()
            issued = self._admission.admit(quota, ledger, policy_version, last, new=new) if announced else 0
            if self._admission.paused and self.shelf.endings and self._clock() - self._relieved > RELIEVE_S:
                self._relieved = self._clock()
                relieve()
            on_their_way = self._admission.in_flight("policy", ledger) + issued - len(self.shelf.ready("policy"))
            on_their_way += not announced  # no batch is cut short for want of what will be issued then
            if self.helm.draining and on_their_way == 0 and not self.shelf.ready("policy"):
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
            if not full and on_their_way == 0 and self._issuer.exhausted and not self.shelf.ready("policy"):
                return None
            if self.shelf.poll(BLOCK_MS):
                self._watchdog.progress()
        return None

    def _rest(self, ledger: Mapping[str, int], policy_version: int) -> None:
        """A round of a paused run: what is under way arrives. Unblocked by the user."""
        self._admission.hold(ledger)
        self._watchdog.enter(PAUSED)
        self._watchdog.rest()
        self._beat(self.helm.steering.held, policy_version)
        self.shelf.poll(BLOCK_MS)

    def _judge_left(self) -> int:
        """Judge groups that the end of a drain waits for, at most a batch of them.

        At least one until the recycler has seen that it gets no more room: it may be making tasks for what it had.
        """
        most = self._settings.learner.judge_groups_per_step
        if most == 0:
            return 0
        told = self._streams.progress().get("recycled_grant") == str(self._admission.granted)
        left = self._admission.in_flight("judge", self._streams.ledger())  # read after the recycler's word
        if left == 0 and not told and lives(self._streams.members().get("recycler")):
            return 1
        return min(left, most)

    def figures(self) -> dict[str, Any]:
        """For a sign of life: that group after group comes, and nothing of it can be trained."""
        learner = self._settings.learner
        if self._in_vain < VAIN_ROUNDS * int(learner.refill * learner.groups_per_step):
            return {}
        return {"no_contrast": {"groups": self._in_vain, "reward": self.shelf.stats.mean("reward/solve")}}

    def waiting_for(self, quota: Quota, *, full: bool) -> Stage:
        """What the learner waits for, and who should end the wait. ``full``: the policy part of the batch is there."""
        ready, outstanding = len(self.shelf.ready("policy")), len(self._issuer.outstanding)
        waits_for = f"{quota.policy} policy groups ({ready} ready, {outstanding} on their way)"
        unblocked_by = "actors shipping groups of tasks:policy"
        if full:
            waits_for = f"{quota.judge} judge groups ({len(self.shelf.ready('judge'))} ready), or older policy groups"
            unblocked_by = "the recycler and actors, or judge_wait_s and straggler_wait_s"
        elif self._admission.paused:
            unblocked_by = "room on the server for new prompts; actors shipping groups"
        return Stage(name="wait_for_groups", waits_for=waits_for, unblocked_by=unblocked_by)

    # -- the cut ----------------------------------------------------------------------------------------

    def _full(self, quota: Quota, on_their_way: int) -> bool:
        """The policy part of the batch is complete: as wanted, or as large as it can get (a judge batch has none)."""
        self.shelf.expire()
        if quota.policy and self._issuer.inherited:
            return False  # synchronous training goes on where it was: what belongs to this batch may still be coming
        ready, account, learner = len(self.shelf.ready("policy")), self.shelf.accounts["policy"], self._settings.learner
        early = 0 if self._admission.paused else self.shelf.early()
        if ready - early >= quota.policy:
            return True
        if (on_their_way > 0 or early) and not account.refill_spent(learner.groups_per_step, learner.refill):
            return False
        if ready == 0 and account.arrived_since_cut:
            log.warning("learner.no_contrast", groups=account.arrived_since_cut)
            self._in_vain += account.arrived_since_cut
            account.cut()  # all right or all wrong: nothing to learn from, look further
        return ready > 0

    def _worth_waiting(self, quota: Quota, waited_s: float) -> bool:
        """A full batch waits a bounded time for old policy groups it would otherwise drop, and for judge groups."""
        learner, bound = self._settings.learner, self._settings.staleness.max_staleness
        last_chance = range(
            self.shelf.policy_version - bound, self.shelf.policy_version + learner.updates_per_batch - bound
        )
        stragglers = any(version in last_chance for version in self._issuer.outstanding.values())
        if quota.policy and bound and stragglers and waited_s < learner.straggler_wait_s:
            return True
        if len(self.shelf.ready("judge")) >= quota.judge:
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
        caught_up = grant >= self._admission.granted and position(through) >= position(self.shelf.last_policy_id)
        return not caught_up or in_flight > len(self.shelf.ready("judge"))

    def _cut(self, quota: Quota) -> list[RolloutGroup]:
        first_out = self.shelf.first_out()
        in_turn = sorted(
            self.shelf.ready("policy"), key=lambda group: (group.task.position > first_out, *oldest_first(group))
        )
        judge = self._round_robin.choose(
            self.shelf.ready("judge"), quota.judge, lambda group: not self.shelf.fresh_next(group)
        )
        groups = in_turn[: quota.policy] + judge
        self._in_vain = 0
        self.shelf.cut(groups)
        self._deaths.cut()
        if quota.policy:
            self.shelf.accounts["policy"].cut()
        if quota.judge:
            self.shelf.accounts["judge"].cut()
        return groups


def _mix(settings: Settings) -> dict[Objective, float]:
    mix = settings.recycler.mix.model_dump()
    return {objective: mix[objective] for objective in JUDGE_OBJECTIVES}
