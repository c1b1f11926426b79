"""What may be wrong with the places: the server's memory and disk, the run's disk, the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cli.causes.finding import Finding, size, span
from cli.snapshot import Snapshot

LEAST_FREE: Final = 32 << 20
"""Bytes free in the run's folder below which its disk counts as full, however small a checkpoint is."""
LOW_FREE: Final = 1 << 30
MISSED_CHECKPOINTS: Final = 3


def places(s: Snapshot) -> Iterator[Finding]:
    yield from _memory(s)
    yield from _server_disk(s)
    yield from _run_disk(s)
    yield from _checkpoint(s)


def ledger(s: Snapshot) -> Iterator[Finding]:
    wrong = [kind for kind in s.ledger.kinds if not s.ledger.balances(kind)]
    if wrong:
        yield Finding(
            severity="problem",
            code="ledger",
            subject="ledger",
            cause=f"the ledger of {' and '.join(wrong)} tasks does not balance: tasks were lost, or ended twice",
            do="`spark audit RUN` names them",
        )


def _memory(s: Snapshot) -> Iterator[Finding]:
    used, most, limit = s.server.used_bytes, s.server.most_bytes, s.settings.redis.memory_share
    if most and used >= most:
        yield Finding(
            severity="problem",
            code="redis_full",
            subject="server",
            cause=f"Redis is full: {size(used)} in use, its maxmemory is {size(most)}, so it takes no new tasks or "
            "results; producers wait, consumers drain it",
            do="raise its limit (redis-cli config set maxmemory BYTES); what a checkpoint has acknowledged is deleted",
        )
    elif most and used / most > limit:
        yield Finding(
            severity="warning",
            code="redis_nearly_full",
            subject="server",
            cause=f"Redis is nearly full: {size(used)} of {size(most)} in use, above redis.memory_share = {limit:g}, "
            "so the learner issues no new prompts",
            do="raise its maxmemory, or lower learner.checkpoint_every: only what is acknowledged can be deleted",
        )


def _server_disk(s: Snapshot) -> Iterator[Finding]:
    if s.server.disk_trouble:
        yield Finding(
            severity="problem",
            code="server_disk",
            subject="server",
            cause=f"the disk of the server is full or fails: {s.server.disk_trouble}, so it refuses to write",
            do="make room where the server keeps its data; it and all members go on by themselves",
        )


def free_bytes(s: Snapshot) -> int | None:
    """Free in the run's folder, as the learner sees it if it says so."""
    for beat in s.living("learner").values():
        if "disk_free_mb" in beat:
            return int(beat["disk_free_mb"]) << 20
    return s.folder.disk.free_bytes if s.folder.disk else None


def _run_disk(s: Snapshot) -> Iterator[Finding]:
    free, saved = free_bytes(s), s.folder.saved
    one = saved.size_bytes if saved else 0
    if free is None:
        return
    if free < max(2 * one, LEAST_FREE):  # the old one stays until the new one is complete; weights are as large
        yield Finding(
            severity="problem",
            code="disk_full",
            subject="disk",
            cause=f"the disk of the run is full: {size(free)} free in its folder, so checkpoints and weights cannot be "
            "written and nothing is acknowledged",
            do="make room on that disk; the run goes on by itself and has lost nothing",
        )
    elif free < max(6 * one, LOW_FREE):
        yield Finding(
            severity="warning",
            code="disk_low",
            subject="disk",
            cause=f"the disk of the run is filling up: {size(free)} free in its folder, a checkpoint takes {size(one)}",
            do="make room on that disk before it is full: checkpoints and weights would wait",
        )


def _checkpoint(s: Snapshot) -> Iterator[Finding]:
    saved, every = s.folder.saved, s.settings.learner.checkpoint_every
    if saved and s.living("learner") and s.policy_version - saved.policy_version > MISSED_CHECKPOINTS * every:
        yield Finding(
            severity="problem",
            code="no_checkpoint",
            subject="learner",
            cause=f"no checkpoint since policy version {saved.policy_version}, {span(saved.age_s)} ago; version "
            f"{s.policy_version} is out, and one is due every {every}: a crash would lose the steps between",
            do="look for checkpoint.failed in logs/learner.log of the run",
            symptom=True,
        )
