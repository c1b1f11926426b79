"""What a run's own folder tells of how it does: its disk, its newest checkpoint, and who died under `spark up`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from cli.rundir import RunDirectory

TAIL_BYTES: Final = 65536
"""Of a log, from its end: enough for the last hour of a supervisor that says something when a child dies."""
DEATHS_WITHIN_S: Final = 3600.0
DIED: Final = ("up.child_died", "up.child_not_started", "up.server_died")

Ending = Literal["", "finished", "drained", "stopped"]
"""How the last `spark up` of a run ended, if nothing went on after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """The newest checkpoint."""

    policy_version: int
    age_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A child that `spark up` saw die."""

    member: str
    exit_code: int
    ago_s: float
    last_words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFacts:
    ending: Ending
    disk: Disk | None
    saved: Saved | None
    deaths: tuple[Death, ...]
    """Of the last hour, oldest first."""
    report: bool
    """There is a report."""


def read_folder(run: RunDirectory, now: float) -> FolderFacts:
    """``now``: Unix seconds."""
    return FolderFacts(
        ending=_ending(run),
        disk=_disk(run.path),
        saved=_saved(run.path / "checkpoints", now),
        deaths=_deaths(run, now),
        report=(run.path / "report.html").is_file(),
    )


def _disk(folder: Path) -> Disk | None:
    try:
        usage = shutil.disk_usage(folder)
    except FileNotFoundError:
        return None
    return Disk(free_bytes=usage.free, total_bytes=usage.total)


def _saved(checkpoints: Path, now: float) -> Saved | None:
    folders = sorted(path for path in checkpoints.glob("e*-s*") if not path.name.endswith(".tmp"))
    try:
        newest = max(folders, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            return None
        return Saved(
            policy_version=int(newest.name.partition("-s")[2].partition(".")[0]),
            age_s=max(0.0, now - newest.stat().st_mtime),
            size_bytes=sum(path.stat().st_size for path in newest.iterdir()),
        )
    except (FileNotFoundError, ValueError):  # the learner removed it this moment, or it is no checkpoint of ours
        return None


def _ending(run: RunDirectory) -> Ending:
    """`spark up` writes a summary last; metrics that are newer belong to a run that went on."""
    try:
        summary = json.loads(run.summary.read_text(encoding="utf-8"))
        newer = run.metrics.is_file() and run.metrics.stat().st_mtime > run.summary.stat().st_mtime
        if newer:
            return ""
        return "finished" if summary["finished"] else "drained" if summary.get("drained") else "stopped"
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # not there yet, or cut off while it was written
        return ""


def _deaths(run: RunDirectory, now: float) -> tuple[Death, ...]:
    found = []
    for event in _events(run.logs / "up.log"):
        ago_s = now - datetime.fromisoformat(str(event["timestamp"])).timestamp()
        if event["event"] in DIED and ago_s <= DEATHS_WITHIN_S:
            member = "server" if event["event"] == "up.server_died" else str(event["member"])
            found.append((member, int(event.get("exit_code", 1)), max(0.0, ago_s)))
    last = {member: _last_words(run, member) for member, _, _ in found}
    return tuple(
        Death(member=member, exit_code=code, ago_s=ago_s, last_words=last[member]) for member, code, ago_s in found
    )


def _last_words(run: RunDirectory, member: str) -> str:
    lines = _tail(run.logs / ("server.log" if member == "server" else f"{member}.stderr")).strip().splitlines()
    return lines[-1].removeprefix("spark: ").strip() if lines else ""


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Whole events at the end of a log."""
    for line in _tail(path).splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # the first one is cut, the last one may be
            continue
        if isinstance(event, dict) and {"event", "timestamp"} <= event.keys():
            yield event


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
