"""What may be wrong with the actors: gone, left behind, without weights that load, waiting for verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cli.causes.finding import Finding, names, several, span
from cli.causes.members import died, gone, not_running
from cli.plain import plain
from cli.snapshot import Snapshot
from cli.status import version_of
from common.records import Beat

BEHIND_S: Final = 10.0
"""Newer weights may be on offer for so long before an actor that does not take them counts as stale."""
SLOW_VERDICT_S: Final = 5.0


def actors(s: Snapshot) -> Iterator[Finding]:
    yield from _gone(s)
    yield from _weights(s)
    yield from _slow_verifier(s)


def _gone(s: Snapshot) -> Iterator[Finding]:
    missing = gone(s, "actor")
    if not missing:
        return
    held = sum(lease.owner in missing for lease in s.leases)
    lost = f"{several(held, 'task')} held there: free when the lease of {s.settings.redis.lease_s:.0f} s ends; "
    others = s.living("actor")
    waiting = sum(queue.undelivered for queue in s.queues if queue.group == "actors")
    rest = f"{several(len(others), 'other actor')} take{'s' if len(others) == 1 else ''} over"
    if not others:
        rest = f"no other one is there to take over, and {several(waiting, 'more task')} wait"
    yield Finding(
        severity="problem",
        code="dead_actor",
        subject=names(missing),
        cause=f"{not_running(missing, 'actor')}; {lost if held else ''}{rest}{died(s, missing)}",
        do="`spark up` starts it again once its process has ended (kill one that hangs); without it: spark actor "
        f"RUN/config.toml --name {plain(missing[0], 40)}",
    )


# -- weights ------------------------------------------------------------------------------------------------


def _weights(s: Snapshot) -> Iterator[Finding]:
    living = s.living("actor")
    troubled = {name: beat for name, beat in living.items() if beat.get("trouble")}
    if troubled and len(troubled) == len(living):
        yield _corrupt(s, troubled)
        return
    for name, beat in living.items():
        if _is_stale(s, beat):
            yield _stale(s, name, beat)


def _is_stale(s: Snapshot, beat: Beat) -> bool:
    if s.weights is None or float(beat.get("behind_s", 0.0)) < BEHIND_S:
        return False
    other_line = int(beat.get("epoch", 0)) != s.weights.epoch
    behind = s.weights.version - int(beat.get("policy_version", -1))
    return other_line or behind > s.settings.staleness.max_staleness


def _version(beat: Beat) -> str:
    version = version_of(beat)
    return f"version {version}" if version != "none" else version


def _corrupt(s: Snapshot, troubled: dict[str, Beat]) -> Finding:
    beat = next(iter(troubled.values()))
    newest = s.weights.version if s.weights else "?"
    return Finding(
        severity="problem",
        code="corrupt_weights",
        subject="weights",
        cause=f"the weights of policy version {newest} do not load at {names(troubled)}, which {_keeps(troubled)} "
        f"{_version(beat)}: {plain(str(beat['trouble']), 200)}",
        do="the learner writes them again when it finds them altered; if this stays, look at the disk they lie on "
        "(weights.dir) and at weights.damaged in logs/learner.log, then restart the learner",
    )


def _keeps(troubled: dict[str, Beat]) -> str:
    return "keeps" if len(troubled) == 1 else "keep"


def _stale(s: Snapshot, name: str, beat: Beat) -> Finding:
    newest = s.weights.version if s.weights else 0
    why = f": {plain(str(beat['trouble']), 200)}" if beat.get("trouble") else ""
    return Finding(
        severity="problem",
        code="stale_actor",
        subject=name,
        cause=f"{plain(name, 40)} is stale and may not generate: its weights are {_version(beat)}, version {newest} is "
        f"out, the bound is {s.settings.staleness.max_staleness}; newer ones have been on offer for "
        f"{span(float(beat['behind_s']))}{why}",
        do="look at its way to the weights (disk, network, weights.cache_dir): policy.apply_failed in "
        f"logs/{plain(name, 40)}.log; then restart it",
    )


# -- verdicts -----------------------------------------------------------------------------------------------


def _slow_verifier(s: Snapshot) -> Iterator[Finding]:
    verifier, living = s.settings.verifier, s.living("actor")
    waited = {name: float(beat.get("unverified_s", 0.0)) for name, beat in living.items()}
    slow = {name: seconds for name, seconds in waited.items() if seconds > max(verifier.timeout_s, SLOW_VERDICT_S)}
    if not slow:
        return
    worst = max(slow, key=lambda name: slow[name])
    failed = sum(int(beat.get("verifier_errors", 0)) for beat in living.values())
    rollouts = sum(int(beat.get("rollouts", 0)) for beat in living.values())
    yield Finding(
        severity="warning",
        code="slow_verifier",
        subject="verifier",
        cause=f"the verifier is slow: {plain(worst, 40)} has waited {span(slow[worst])} for verdicts, "
        f"{several(int(living[worst]['unverified']), 'group')} are finished but for them "
        f"({several(verifier.workers, 'process', 'processes')} an actor, at most {verifier.timeout_s:g} s a verdict; "
        f"{failed} of {rollouts} rollouts could not be scored)",
        do="more verifier.workers, a quicker verifier, or a smaller verifier.timeout_s",
    )
