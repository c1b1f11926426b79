"""What really happened in a stopped run: the newest checkpoint's list of trained uids against everything issued.

This knows what `spark audit` cannot: the toy's weights are the list of all that they were trained on, with repeats. The
product's audit has its say too, so that the two check each other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chaos.engines import trained_uids
from cli.audit import audit
from common.keys import ACTORS, LEARNER
from common.settings import Settings
from common.streams import Streams, position
from common.templates import load_templates
from learner.checkpoint import CheckpointStore
from learner.issuer import task_at
from learner.prompts import open_prompts

KINDS = ("policy", "judge")


@dataclass(slots=True, kw_only=True)
class Truth:
    """``lost``: issued uids that are nowhere. ``twice``: uids that count, or were trained, more than once."""

    items: int
    trained: int
    lost: set[str] = field(default_factory=set)
    twice: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    """Anything else that does not add up."""
    chain: str = ""
    """Hash over everything that was trained, in its order."""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.twice or self.wrong)

    def __str__(self) -> str:
        return (
            f"{self.items} items, {self.trained} trained, {len(self.lost)} lost {sorted(self.lost)[:3]}, "
            f"{len(self.twice)} twice {sorted(self.twice)[:3]}, {self.wrong}"
        )


def truth_of(streams: Streams, settings: Settings, checkpoints: CheckpointStore) -> Truth:
    """Judge a run whose members have all stopped."""
    ledger = streams.conservation()
    issued = {kind: ledger.kinds[kind]["issued"] for kind in ledger.kinds}
    saved = checkpoints.newest()
    weights = trained_uids(saved.folder) if saved else []
    truth = Truth(items=sum(issued.values()), trained=len(weights))
    if saved is None:
        truth.wrong.append("there is no checkpoint")
        return truth
    truth.chain = json.loads((saved.folder / "weights.json").read_text(encoding="utf-8"))["chain"]
    history = History.read(_events(streams, settings.run.directory / "events"))
    known = saved.state.ended
    in_weights = {uid for uid in known.uids() if known.end_of(uid) == "trained"}

    truth.twice |= {uid for uid, times in Counter(weights).items() if times > 1}
    truth.twice |= {uid for uid, times in history.ended.items() if times > 1}
    truth.twice |= set(weights) - in_weights  # the next learner would not know that it has trained them
    truth.lost |= in_weights - set(weights)
    truth.lost |= history.trained - set(weights)
    policy = _policy_uids(streams.cursor() or 0, settings)
    somewhere = known.uids() | set(history.ended) | _in_flight(streams)
    truth.lost |= (policy | history.issued) - somewhere

    truth.wrong += [
        f"the {kind} ledger does not balance: {ledger.kinds[kind]}"
        for kind in ledger.kinds
        if not ledger.balances(kind)
    ]
    if len(policy) != issued["policy"]:
        truth.wrong.append(f"the cursor is at {len(policy)}, but {issued['policy']} prompts were counted as issued")
    found = audit(streams, settings.run.directory / "events", checkpoints)
    truth.lost |= found.lost
    truth.twice |= found.twice
    truth.wrong += [f"audit: {one}" for one in found.violations if one.uid not in truth.lost | truth.twice]
    if saved.state.trained != len(weights):
        truth.wrong.append(f"the checkpoint counts {saved.state.trained} trained groups, its weights {len(weights)}")
    return truth


@dataclass(slots=True)
class History:
    """The event log, added up."""

    issued: set[str] = field(default_factory=set)
    ended: Counter[str] = field(default_factory=Counter)
    trained: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, events: Iterable[dict[str, str]]) -> History:
        history = cls()
        for event in events:
            uids = event.get("uids", "").split()
            match event["event"]:
                case "issued":
                    history.issued |= set(uids)
                case "ended":
                    history.ended.update(uids)
                    history.trained |= set(uids) if event["outcome"].startswith("trained") else set()
                case "revived":
                    history.ended.subtract(uids)
                case "rebuilt":  # counted anew, from a checkpoint
                    history = cls()
        return history


def _events(streams: Streams, folder: Path) -> Iterator[dict[str, str]]:
    """Every event once, in order: the files first, then what the server still has."""
    seen: set[tuple[int, int]] = set()
    lines = [json.loads(line) for path in sorted(folder.glob("e*.jsonl")) for line in path.open(encoding="utf-8")]
    after = "0-0"
    while rows := streams.events(after):
        lines += [{"id": row.id, **row.fields} for row in rows]
        after = rows[-1].id
    for line in lines:
        if position(line["id"]) not in seen:
            seen.add(position(line["id"]))
            yield line


def _policy_uids(cursor: int, settings: Settings) -> set[str]:
    prompts = open_prompts(settings.prompts, settings.run.python_path, settings.run.seed)
    templates = load_templates(settings.templates.path)
    tasks = (task_at(place, prompts, templates, settings, policy_version=0) for place in range(cursor))
    return {task.uid for task in tasks if task is not None}


def _in_flight(streams: Streams) -> set[str]:
    keys = streams.keys
    found = set(streams.unacked(keys.returned, LEARNER))
    for kind in KINDS:
        found |= set(streams.unacked(keys.tasks(kind), ACTORS)) | set(streams.unacked(keys.rollouts(kind), LEARNER))
    return found
