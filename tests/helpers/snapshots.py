"""A healthy snapshot of a run, and how to make it ill: for tests of diagnosis and of the dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cli.folder_facts import Disk, FolderFacts, Saved
from cli.report.history import Row
from cli.snapshot import Snapshot
from common.observer import Announced, Dead, Lease, Queue, ServerState
from common.records import DeadLetter, Ledger
from common.settings import Settings
from common.steering import Steering

NOW = 1_800_000_000.0
SETTINGS = Settings.model_validate(
    {"run": {"name": "demo"}, "staleness": {"max_staleness": 1}, "learner": {"max_steps": 120, "checkpoint_every": 20}}
)


def row(step: int, **more: float) -> Row:
    """Metrics of one batch: 2 s, of which a quarter is waiting."""
    seconds = {"seconds/wait_for_groups": 0.5, "seconds/step": 1.5, "elapsed_s": 2.0 * step}
    trained = {"trained/policy": 16.0, "trained/judge": 14.0, "tokens": 2000.0}
    return {
        "policy_version": float(step),
        **seconds,
        **trained,
        "judge/tpr": 0.8,
        "tokens/staleness_0": 500.0,
        "tokens/staleness_1": 1500.0,
        **more,
    }


def actor(version: int = 37, **more: Any) -> dict[str, Any]:
    counts = {"groups": 400, "rollouts": 3200, "tokens": 25_000, "verifier_errors": 0, "waited_s": 10.0}
    state = {"state": "generating", "epoch": 1, "unverified": 1, "unverified_s": 0.1, "behind_s": 0.0, "trouble": ""}
    return {"role": "actor", "policy_version": version, **state, **counts, **more}


def learner(**more: Any) -> dict[str, Any]:
    state = {"state": "updating", "state_s": 0.4, "waiting_share": 0.25, "disk_free_mb": 32_000, "alarms": []}
    return {"role": "learner", "policy_version": 37, "epoch": 1, **state, "judge": {"tpr": 0.8, "tnr": 0.7}, **more}


MEMBERS: Mapping[str, Any] = {
    "actor-0": actor(),
    "actor-1": actor(36),
    "learner": learner(),
    "recycler": {"role": "recycler", "state": "waiting for room", "policy_version": 37},
}


def queue(stream: str, group: str, pending: int = 4, undelivered: int = 0, oldest_s: float | None = None) -> Queue:
    return Queue(
        stream=stream,
        group=group,
        pending=pending,
        undelivered=undelivered,
        oldest_pending_s=1.5 if pending else None,
        oldest_undelivered_s=oldest_s,
    )


QUEUES = (
    queue("tasks:policy", "actors"),
    queue("tasks:judge", "actors", pending=2),
    queue("rollouts:policy", "learner", pending=150),
    queue("rollouts:policy", "recycler", pending=20),
    queue("rollouts:judge", "learner", pending=120),
)


def lease(owner: str, number: int = 0, deliveries: int = 1) -> Lease:
    return Lease(stream="tasks:policy", id=f"{number + 1}-0", owner=owner, idle_s=1.0, deliveries=deliveries)


def ledger(**more: int) -> Ledger:
    counts = {"issued": 100, "trained": 60, "filtered": 20, "dropped_stale": 0, "dead": 0, "in_flight": 20, **more}
    return Ledger(kinds={"policy": counts, "judge": dict(counts)})


def letter(reason: str = "poison") -> DeadLetter:
    stream, group = "spark:{demo}:tasks:policy", "actors"
    return DeadLetter(
        id="7-0", stream=stream, group=group, uid="u", kind="policy", reason=reason, deliveries=5, payload=b""
    )


HEALTHY = Snapshot(
    at=NOW,
    settings=SETTINGS,
    steering=Steering(),
    up=True,
    server=ServerState(version="9", used_bytes=4 << 20, most_bytes=0, disk_trouble="", up_s=75, now_ms=int(NOW * 1000)),
    ledger=ledger(),
    progress={"policy_version": "37", "epoch": "1"},
    members=MEMBERS,
    heard_s=dict.fromkeys(MEMBERS, 1.0),
    queues=QUEUES,
    leases=(lease("actor-0"), lease("actor-1", 1)),
    weights=Announced(epoch=1, version=37, age_s=0.5),
    dead=Dead(count=0, newest=None),
    rows=tuple(row(step) for step in range(28, 38)),
    folder=FolderFacts(
        ending="",
        disk=Disk(free_bytes=32 << 30, total_bytes=64 << 30),
        saved=Saved(policy_version=20, age_s=12.0, size_bytes=2 << 20),
        deaths=(),
        report=True,
    ),
)


def with_members(snapshot: Snapshot = HEALTHY, **members: Any) -> Snapshot:
    """``actor_0=None``: that one no longer lives."""
    named = {name.replace("_", "-"): beat for name, beat in members.items()}
    return replace(snapshot, members={**snapshot.members, **named})
