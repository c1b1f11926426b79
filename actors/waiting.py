"""Whether an actor has enough to do."""

from __future__ import annotations

from collections import deque
from typing import Final

RECENT: Final = 15
"""Signs of life, one every 2 s, that the share is of."""


class WaitingShare:
    """Of the time between the last signs of life, the share spent waiting for tasks or weights."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=RECENT)

    def after(self, now: float, waited_s: float) -> float:
        """The share up to now. ``waited_s``: seconds waited since the start; 0 before any time has passed."""
        self._seen.append((now, waited_s))
        then, waited_then = self._seen[0]
        return round(min(1.0, (waited_s - waited_then) / (now - then)), 3) if now > then else 0.0
