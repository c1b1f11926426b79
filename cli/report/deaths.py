"""Why tasks died, as the event log on disk tells it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

from cli.audit_events import of_the_disk

MOST_REASONS: Final = 12
DEAD: Final = "dead:"


def deaths(folder: Path) -> list[tuple[str, str, int]]:
    """Kind, reason and number of tasks, the most frequent first. The newest half minute is still on the server."""
    found: Counter[tuple[str, str]] = Counter()
    seen: set[tuple[str, str]] = set()
    for logged in of_the_disk(folder):
        outcome, place = logged.event.fields.get("outcome", ""), (logged.generation, logged.event.id)
        if outcome.startswith(DEAD) and place not in seen:  # a line may come twice
            seen.add(place)
            uids = len(logged.event.fields.get("uids", "").split())
            found[outcome.removeprefix(DEAD), logged.event.fields.get("reason", "")] += uids
    return [(kind, reason, number) for (kind, reason), number in found.most_common(MOST_REASONS)]
