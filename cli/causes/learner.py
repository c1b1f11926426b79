"""What may be wrong with the learner and the recycler: gone, cut off, starved, wedged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from cli.causes.finding import Finding, names, several, span
from cli.causes.members import died, ended, gone, is_long, not_running, stuck_on_learner
from cli.progress import mean_of, waiting_share
from cli.report.history import Row
from cli.snapshot import Snapshot
from cli.status import CHECK, in_vain, is_stalled
from common.messages import OUTCOMES
from common.records import Beat

STARVED_SHARE: Final = 0.5
MOST_FILTERED: Final = 0.5
"""Share of filtered groups from which on they are why a learner starves."""
IDLE_SHARE: Final = 0.5
"""Actors that wait for so much of their time are not too slow."""
STARVED_S: Final = 30.0
"""A wait for groups that is worth a word, whatever was before."""
LATE_S: Final = 30.0
"""A recycler takes what waits at once, or it hangs."""
SILENT_S: Final = 10.0
"""What a learner said so long ago need not be so any more; it says something every 2 s unless it is inside a call."""
CUT_OFF_S: Final = 30.0
"""The watchdog speaks for a learner that is silent for run.no_progress_s; this long after it nobody does."""
WAITS_FOR_POLICY: Final = "waiting for policy groups"


def learner(s: Snapshot) -> Iterator[Finding]:
    if gone(s, "learner"):
        yield Finding(
            severity="problem",
            code="dead_learner",
            subject="learner",
            cause=f"{not_running(['learner'], 'learner')}; nothing is issued or trained, and actors come to a stand"
            f"{died(s, ['learner'])}",
            do="`spark up` starts it again once its process has ended; without it: spark learner RUN/config.toml; it "
            "goes on from its newest checkpoint",
        )
    elif not s.held and ended(s, "learner"):
        yield Finding(
            severity="warning",
            code="no_learner",
            subject="learner",
            cause="the learner has ended: it was stopped, or its prompts are used up; nothing is issued or trained",
            do="spark learner RUN/config.toml goes on from its newest checkpoint; logs/learner.log says why it ended",
        )
    elif "learner" not in s.members:
        yield Finding(
            severity="warning",
            code="no_learner",
            subject="learner",
            cause="the learner has not come up yet; nothing is issued before it has",
            do="if this stays: logs/learner.stderr and logs/learner.log of the run",
        )
    for beat in s.living("learner").values():
        yield from _cut_off(s)
        yield from _starved(s, beat)
        yield from _no_contrast(s, beat)


def _cut_off(s: Snapshot) -> Iterator[Finding]:
    """Silence alone may be a long step; not where another member has stood still for it all the while."""
    silent, stuck = _silent_s(s), stuck_on_learner(s)
    overdue = silent > s.settings.run.no_progress_s + CUT_OFF_S
    if not overdue and not (stuck and silent > SILENT_S):
        return
    waiting = f", and {names(stuck)} {'waits' if len(stuck) == 1 else 'wait'} for it" if stuck else ""
    why = "it hangs, is dead or cut off"
    if overdue:
        why += f", for its watchdog would have spoken after {span(s.settings.run.no_progress_s)}"
    yield Finding(
        # alone a problem only when its sign of life ends: a call may keep the watchdog from speaking
        severity="problem" if any(is_long(s, seconds) for seconds in stuck.values()) else "warning",
        code="silent_learner",
        subject="learner",
        cause=f"the learner has not been heard of for {span(silent)}{waiting}: {why}",
        do="look whether its process lives and reaches the server; restart it (kill one that hangs): it goes on from "
        "its checkpoint",
    )


def _silent_s(s: Snapshot) -> float:
    return s.heard_s.get("learner", 0.0)


def _starved(s: Snapshot, beat: Beat) -> Iterator[Finding]:
    """It waits for a long time now, or waited for most of the last batches' time."""
    how = _how_starved(s, beat)
    if s.held or is_stalled(beat) or _silent_s(s) > SILENT_S or in_vain(beat) or not how:
        return
    why, do = _why_starved(s)
    yield Finding(
        severity="warning",
        code="starved_learner",
        subject="learner",
        cause=f"the learner is starved: {how}; {why}",
        do=do,
        symptom=True,
    )


def _no_contrast(s: Snapshot, beat: Beat) -> Iterator[Finding]:
    if (vain := in_vain(beat)) and not s.held:
        yield Finding(
            severity="problem",
            code="no_contrast",
            subject="learner",
            cause=f"the learner finds nothing to train: {vain}",
            do=f"{CHECK}: `spark tail RUN rollouts:policy` shows what came",
        )


def _how_starved(s: Snapshot, beat: Beat) -> str:
    """Empty for a learner that has enough to do."""
    waited_s = float(beat.get("state_s", 0.0))
    if beat.get("state") == WAITS_FOR_POLICY and waited_s > STARVED_S:
        return f"it has waited {span(waited_s)} for groups by now"
    share = beat.get("waiting_share", waiting_share(s.rows))
    if share is not None and share >= STARVED_SHARE:
        return f"it spent {share:.0%} of the last batches' time waiting for groups"
    return ""


def _why_starved(s: Snapshot) -> tuple[str, str]:
    actors = s.living("actor")
    waiting = sum(queue.undelivered for queue in s.queues if queue.group == "actors")
    held, room = sum(lease.owner in actors for lease in s.leases), len(actors) * s.settings.actor.groups_in_flight
    if not actors:
        return "no actor is running", "start actors: spark actor RUN/config.toml --name actor-0"
    if (filtered := filtered_share(s.rows)) >= MOST_FILTERED:
        reward = mean_of("reward/solve")(s.rows)
        mean = f" (mean reward {reward:.2f})" if reward is not None else ""
        return (
            f"{filtered:.0%} of the arriving groups are filtered: all answers right or all wrong{mean}",
            "prompts that are less easy, or less hard, for the model; if these should suit it, look at the verifier",
        )
    shares = [float(beat["waiting_share"]) for beat in actors.values() if "waiting_share" in beat]
    idle = sum(shares) / len(shares) >= IDLE_SHARE if shares else not waiting and held < room / 2
    if not idle:
        return (
            f"{_verb(len(actors), 'hold')} {several(held, 'task')} and {waiting} more wait: too slow, or too few",
            "more actors, shorter completions (sampling.max_new_tokens), or a quicker engine",
        )
    return (
        f"{_verb(len(actors), 'wait')} for tasks as well (holding {held}, with room for {room}): "
        f"staleness.max_staleness = {s.settings.staleness.max_staleness} allows no more ahead",
        "a larger staleness.max_staleness, or larger batches (learner.groups_per_step)",
    )


def filtered_share(rows: Sequence[Row]) -> float:
    """Of the policy groups that ended in the last batches."""
    ended = sum(row.get(f"{outcome}/policy", 0.0) for row in rows for outcome in OUTCOMES)
    return sum(row.get("filtered/policy", 0.0) for row in rows) / ended if ended else 0.0


def _verb(actors: int, verb: str) -> str:
    return f"{several(actors, 'actor')} {verb}{'s' if actors == 1 else ''}"


# -- the recycler -------------------------------------------------------------------------------------------


def recycler(s: Snapshot) -> Iterator[Finding]:
    queue = s.queue("rollouts:policy", "recycler")
    waiting = queue.undelivered if queue else 0
    if gone(s, "recycler"):
        yield Finding(
            severity="problem",
            code="dead_recycler",
            subject="recycler",
            cause=f"{not_running(['recycler'], 'recycler')}; no judge tasks are made, {several(waiting, 'group')} wait "
            f"for it{died(s, ['recycler'])}",
            do="`spark up` starts it again once its process has ended; without it: spark recycler RUN/config.toml",
        )
    if not s.held and ended(s, "recycler") and s.living("learner"):
        yield Finding(
            severity="warning",
            code="no_recycler",
            subject="recycler",
            cause=f"the recycler was stopped; no judge tasks are made, {several(waiting, 'group')} wait for it",
            do="spark recycler RUN/config.toml",
        )
    for beat in s.living("recycler").values():
        late = queue.oldest_undelivered_s if queue and queue.oldest_undelivered_s else 0.0
        if late > LATE_S and not str(beat.get("state")).startswith("paused"):
            yield _wedged(beat, waiting, late)


def _wedged(beat: Beat, waiting: int, late: float) -> Finding:
    standing = f", and has got nothing done for {span(float(beat['stalled_s']))}" if is_stalled(beat) else ""
    return Finding(
        severity="problem",
        code="wedged_recycler",
        subject="recycler",
        cause=f"the recycler is wedged: it runs, but does not take the {several(waiting, 'group')} before it, the "
        f"oldest of which has waited {span(late)}{standing}; no judge tasks come",
        do="restart it (end its process, kill one that hangs; `spark up` starts it again): nothing is lost. `stalled` "
        "in logs/recycler.log says the call it hangs in",
    )
