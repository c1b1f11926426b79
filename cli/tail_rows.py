"""One line of `spark tail` for each kind of thing that it shows; pure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cli.as_json import as_json
from cli.dead_letters import decoded, summary
from cli.plain import plain
from cli.wording import fields, label, number, origin, quoted, rewards, short, tokens, versions
from common.archive import ArchivedGroup
from common.codec import decode
from common.entries import Entry
from common.errors import InvalidMessage
from common.messages import OBJECTIVES, RolloutGroup, Task, WeightManifest
from common.records import letter_of

EXCERPT: Final = 160
"""Characters of a text that are shown; ``--json`` has it whole."""
GAP: Final = "  "
"""Between two cells."""
READABLE: Final = 32
"""Columns of a text that are worth reading."""
DIM: Final = "dim"
LEVELS: Final = {"warning": "yellow", "error": "bold red", "critical": "bold red"}
OUTCOME_STYLES: Final = {"trained": "green", "filtered": "", "dropped_stale": "yellow"}
FIGURES: Final = (
    ("loss", "loss"),
    *((f"reward/{objective}", objective) for objective in OBJECTIVES),
    ("judge/tpr", "tpr"),
    ("judge/tnr", "tnr"),
    ("kl", "kl"),
    ("entropy", "entropy"),
    ("staleness", "staleness"),
    ("seconds/step", "step s"),
    ("seconds/wait_for_groups", "waited s"),
)
"""Metrics on a line of `spark tail RUN metrics`, and what they are called there."""

Cell = tuple[str, str]
"""Text, which is harmless, and its style."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    at: float | None
    """Unix seconds; None where nobody wrote them down."""
    cells: tuple[Cell, ...]
    full: Callable[[], dict[str, Any]]
    """All that is known, as JSON."""
    extra: tuple[Cell, ...] = ()
    """Of lesser use: before the last cell, as far as a narrow terminal has room beside it."""
    uids: tuple[str, ...] = ()
    objective: str = ""
    actor: str = ""

    def matches(self, objective: str | None, actor: str | None, uid: str | None) -> bool:
        """``uid``: its beginning is enough."""
        return (
            (objective is None or self.objective == objective)
            and (actor is None or self.actor == actor)
            and (uid is None or any(one.startswith(uid) for one in self.uids))
        )

    def fitting(self, width: int | None) -> list[Cell]:
        """Its cells in ``width`` columns, whose last one has at least ``READABLE`` of them or is whole; None: all."""
        *first, last = [cell for cell in self.cells if cell[0]]
        extra = [cell for cell in self.extra if cell[0]]
        if width is not None:
            room = width - sum(len(words) + len(GAP) for words, _ in first) - min(READABLE, len(last[0]))
            ends = itertools.accumulate(len(words) + len(GAP) for words, _ in extra)
            extra = [cell for cell, end in zip(extra, ends, strict=True) if end <= room]
        return [*first, *extra, last]


# -- entries of streams -----------------------------------------------------------------------------------------


def task_row(entry: Entry) -> Row:
    try:
        task = decode(Task, entry.payload)
    except InvalidMessage as error:
        return unreadable(entry, error)
    cells = [*_whose(task), (label(task), ""), (quoted(task.question, EXCERPT), "")]
    extra = [(f"issued at v{task.issued_version}", ""), (plain(origin(task), EXCERPT), DIM)]
    return _row(entry, cells, task, task, extra=extra)


def group_row(entry: Entry) -> Row:
    try:
        group = decode(RolloutGroup, entry.payload)
    except InvalidMessage as error:
        return unreadable(entry, error)
    return _row(entry, _of_group(group), group, group.task, actor=group.actor, extra=_beside(group))


def weights_row(entry: Entry) -> Row:
    try:
        manifest = decode(WeightManifest, entry.payload)
    except InvalidMessage as error:
        return unreadable(entry, error)
    size = sum(file.size for file in manifest.files)
    how = f"difference over {len(manifest.chain)} links" if manifest.chain else "whole"
    cells = [
        (f"v{manifest.version}", "bold"),
        (f"epoch {manifest.epoch}", ""),
        (f"after v{manifest.parent}" if manifest.parent >= 0 else "first", DIM),
        (f"{how}, {size / 2**20:.1f} MiB in {len(manifest.files)} files", ""),
        (plain(manifest.uri, EXCERPT), DIM),
    ]
    return _row(entry, cells, manifest)


def dead_row(entry: Entry) -> Row:
    letter = letter_of(entry.id, entry.fields)
    told = summary(letter)
    cells = [
        (short(letter.uid), "bold"),
        (f"{told.objective or 'unreadable':9}", ""),
        (f"{letter.deliveries} deliveries at {plain(letter.group)}", DIM),
        (plain(letter.reason, EXCERPT), "red"),
    ]

    def full() -> dict[str, Any]:
        try:
            return {**told.as_dict(), "message": as_json(decoded(letter))}
        except InvalidMessage as error:
            return {**told.as_dict(), "unreadable": str(error)}

    return Row(at=entry.at, cells=tuple(cells), full=full, uids=(letter.uid,), objective=told.objective)


def unreadable(entry: Entry, error: InvalidMessage) -> Row:
    """What is on the stream all the same; whoever has to work on it will bury it."""
    uid = entry.text("uid")
    cells = ((short(uid), "bold"), ("unreadable", "red"), (plain(str(error), EXCERPT), "red"))
    said = {**_place(entry), "uid": uid, "unreadable": str(error), "bytes": len(entry.payload)}
    return Row(at=entry.at, cells=cells, full=lambda: said, uids=(uid,))


def _row(
    entry: Entry,
    cells: list[Cell],
    message: object,
    task: Task | None = None,
    actor: str = "",
    extra: Sequence[Cell] = (),
) -> Row:
    return Row(
        at=entry.at,
        cells=tuple(cells),
        extra=tuple(extra),
        full=lambda: {**_place(entry), "message": as_json(message)},
        uids=(task.uid, *(source.uid for source in task.sources)) if task else (),
        objective=task.objective if task else "",
        actor=actor,
    )


def _place(entry: Entry) -> dict[str, Any]:
    return {"stream": entry.stream, "id": entry.id, "at": entry.at}


def _whose(task: Task) -> list[Cell]:
    return [(short(task.uid), "bold"), (f"{task.objective:9}", "cyan" if task.kind == "judge" else "blue")]


def _of_group(group: RolloutGroup) -> list[Cell]:
    """What came of it."""
    marks = rewards(group.rollouts)
    return [
        *_whose(group.task),
        (marks, "green" if "1" in marks else "red"),
        (quoted(group.rollouts[0].completion.text, EXCERPT), ""),
    ]


def _beside(group: RolloutGroup) -> list[Cell]:
    """Who made it, and of what."""
    return [
        *([(f"{plain(origin(group.task), EXCERPT)} {label(group.task)}", DIM)] if group.task.sources else []),
        (f"{plain(group.actor):8}", ""),
        (f"{versions(group.rollouts):7}", ""),
        (f"{tokens(group)} tokens", DIM),
    ]


# -- the archive, the event log, files ---------------------------------------------------------------------------


def archived_row(record: ArchivedGroup) -> Row:
    step = f"in step {record.policy_version}" if record.outcome == "trained" else f"at v{record.policy_version}"
    loss = f"loss {number(sum(record.loss))}" if record.loss is not None else ""
    cells = [
        (f"{record.outcome} {step}".ljust(20), OUTCOME_STYLES.get(record.outcome, "")),
        *_of_group(record.group),
    ]
    extra = [(f"staleness {record.staleness}", DIM), (loss, DIM), *_beside(record.group)]
    task = record.group.task
    return Row(
        at=record.at,
        cells=tuple(cells),
        extra=tuple(extra),
        full=lambda: as_json(record),
        uids=(task.uid, *(source.uid for source in task.sources)),
        objective=task.objective,
        actor=record.group.actor,
    )


def event_row(event_id: str, said: Mapping[str, str]) -> Row:
    """A line of the event log: what was issued, how it ended, what a user told the run."""
    others = {name: value for name, value in said.items() if name not in ("event", "uids") and value}
    uids = tuple(said.get("uids", "").split())
    shown = " ".join(short(uid) for uid in uids[:3]) + (f" and {len(uids) - 3} more" if len(uids) > 3 else "")
    cells = ((plain(said.get("event", "?"), 20), "bold"), (fields(dict(others)), ""), (shown, DIM))
    milliseconds, _, _ = event_id.partition("-")
    at = int(milliseconds) / 1000 if milliseconds.isdecimal() else None
    return Row(at=at, cells=cells, full=lambda: {"id": event_id, "at": at, **said}, uids=uids)


def metrics_row(line: bytes) -> Row | None:
    """A batch; None for a line that is not whole."""
    batch = _object(line)
    if batch is None or "policy_version" not in batch:
        return None
    shown = [f"{called} {number(batch[name])}" for name, called in FIGURES if isinstance(batch.get(name), int | float)]
    elapsed = batch.get("elapsed_s")
    after = f"{elapsed:.0f} s" if isinstance(elapsed, int | float) else ""
    cells = ((f"step {plain(str(batch['policy_version']))}", "bold"), (after, DIM), ("  ".join(shown), ""))
    return Row(at=None, cells=cells, full=lambda: batch)


def log_row(line: bytes) -> Row | None:
    """An event of a process; None for a line that is none: a server's own words, or half a line."""
    said = _object(line)
    if said is None or "event" not in said:
        return None
    level, member, at = str(said.get("level", "")), str(said.get("member", "")), _unix(said.get("timestamp"))
    others = {k: v for k, v in said.items() if k not in ("event", "level", "timestamp", "run", "role", "member")}
    cells = (
        (f"{plain(level):7}", LEVELS.get(level, DIM)),
        (f"{plain(member):8}", "cyan"),
        (plain(str(said["event"]), EXCERPT), "bold"),
        (fields(others), ""),
    )
    uid = said.get("uid")
    return Row(at=at, cells=cells, full=lambda: said, uids=(uid,) if isinstance(uid, str) else (), actor=member)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _unix(timestamp: object) -> float | None:
    try:
        return datetime.fromisoformat(str(timestamp)).timestamp()
    except (ValueError, OverflowError):
        return None
