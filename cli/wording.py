"""How groups, tasks and times are put into few words, for `spark tail` and `spark why`. Pure; all text is harmless."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cli.plain import plain
from common.messages import Rollout, RolloutGroup, Task, Verdict

UID_SHOWN: Final = 8
"""Hex digits of a uid that tell it from others of the run, nearly always; a prefix is enough for `spark why`."""
MARKS: Final = {"no_answer": "-", "error": "e", "timeout": "t"}


def short(uid: str) -> str:
    return plain(uid[:UID_SHOWN])


def clock(at: float | None, now: float) -> str:
    """Local time of Unix seconds; with the date unless it is of the last twelve hours."""
    if at is None:
        return ""
    try:
        when = datetime.fromtimestamp(at)
    except (ValueError, OverflowError, OSError):  # a stream id may be any number
        return "?"
    return when.strftime("%H:%M:%S" if abs(now - at) < 12 * 3600 else "%Y-%m-%d %H:%M:%S")


def quoted(text: str, most: int) -> str:
    return f'"{plain(text, most)}"'


def number(value: float) -> str:
    """Four digits that matter."""
    return f"{value:.4g}"


def rewards(rollouts: Sequence[Rollout]) -> str:
    """One mark each: 1 or 0, ``-`` no answer, ``e`` verifier error, ``t`` timeout; other rewards as numbers."""
    marks = [mark(rollout.verdict) for rollout in rollouts]
    return ("" if all(len(one) == 1 for one in marks) else " ").join(marks)


def mark(verdict: Verdict) -> str:
    return MARKS.get(verdict.status) or number(verdict.reward)


def versions(rollouts: Sequence[Rollout]) -> str:
    """Of the weights that wrote them: ``v12``, or ``v12-14`` where they changed meanwhile."""
    seen = [version for rollout in rollouts for version, _ in rollout.completion.spans]
    return span(min(seen), max(seen))


def span(oldest: int, newest: int) -> str:
    return f"v{oldest}" if oldest == newest else f"v{oldest}-{newest}"


def origin(task: Task) -> str:
    """Where a task comes from: its place in the prompts, or the answers that it shows."""
    if not task.sources:
        return f"prompt {task.dataset_index}"
    shown = [f"{short(source.uid)}#{source.sample}" for source in task.sources]
    return f"of {' '.join(shown)}"


def label(task: Task) -> str:
    """The class of a judge task, as it is known from the verdicts of its sources."""
    if task.positive is None:
        return ""
    if task.objective == "pairwise":
        return "A right" if task.positive else "B right"
    return "right" if task.positive else "wrong"


def tokens(group: RolloutGroup) -> int:
    return sum(len(rollout.completion.token_ids) for rollout in group.rollouts)


def fields(values: dict[str, object], most: int = 200) -> str:
    """``name=value`` of every field, values that are no plain words as JSON."""
    return "  ".join(f"{plain(name)}={_value(value, most)}" for name, value in values.items())


def _value(value: object, most: int) -> str:
    return plain(value if isinstance(value, str) else json.dumps(value, default=str), most)
