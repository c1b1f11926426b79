"""Figures of the learner's sign of life that say why it is slow, or is about to stop."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

RECENT: Final = 10
"""Batches of the waiting share."""


class WaitingShare:
    """Of the wall time of the last batches, pauses left out, the share spent waiting for groups."""

    def __init__(self) -> None:
        self._spent: deque[tuple[float, float]] = deque(maxlen=RECENT)

    def after(self, batch: Mapping[str, Any]) -> float:
        """The share with this batch's metrics counted in; 0 before any time was spent."""
        total = sum(float(value) for name, value in batch.items() if name.startswith("seconds/"))
        total -= float(batch.get("seconds/paused", 0.0))
        self._spent.append((float(batch.get("seconds/wait_for_groups", 0.0)), total))
        spent = sum(seconds for _, seconds in self._spent)
        return round(sum(waited for waited, _ in self._spent) / spent, 3) if spent else 0.0


def disk_figures(folder: Path) -> dict[str, int]:
    """MiB that are free where checkpoints and logs go; nothing while there is no such folder."""
    try:
        return {"disk_free_mb": shutil.disk_usage(folder).free >> 20}
    except FileNotFoundError:
        return {}
