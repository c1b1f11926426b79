"""Lineage: which versions of which learner epoch are ancestors of the present weights (pure). See staleness.md.

A learner that goes on from a checkpoint leaves behind the versions that its predecessor made after it. Actors may hold
such *orphans*, and groups sampled by them may arrive at any time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from common.errors import InvalidMessage

FOREVER: Final = 2**62
Start = tuple[int, int]
"""(epoch, policy version) of the checkpoint that an epoch went on from; (0, 0) is the base model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """``kept[e]``: the last version of epoch e's line that the present line shares with it."""

    epoch: int = 0
    kept: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, epoch: int, starts: Mapping[int, Start]) -> Lineage:
        """The lineage of ``epoch``. An epoch without a known start never published anything."""
        kept = {epoch: FOREVER}
        ancestor, until = epoch, FOREVER
        while ancestor in starts:
            ancestor, version = starts[ancestor]
            until = min(until, version)
            kept[ancestor] = until
        for other in sorted(starts):  # a start is always of an older epoch
            if other not in kept:
                parent, version = starts[other]
                kept[other] = min(version, kept.get(parent, 0))
        return cls(epoch=epoch, kept=kept)

    def is_orphan(self, epoch: int, version: int) -> bool:
        """These weights are no ancestor of the present ones."""
        return version > self._until(epoch)

    def distance(self, epoch: int, version: int, policy_version: int) -> int:
        """Optimizer steps between two weights: back to where the lines part, and from there to the orphan."""
        fork = self._until(epoch)
        return policy_version - version if version <= fork else (policy_version - fork) + (version - fork)

    def _until(self, epoch: int) -> int:
        """Nothing is known of an epoch newer than this one: its reader is about to be fenced."""
        return self.kept.get(epoch, FOREVER if epoch > self.epoch else 0)

    def to_json(self) -> str:
        return json.dumps({"epoch": self.epoch, "kept": {str(e): v for e, v in self.kept.items()}})

    @classmethod
    def from_json(cls, text: str) -> Lineage:
        """Raises InvalidMessage."""
        try:
            raw = json.loads(text)
            return cls(epoch=int(raw["epoch"]), kept={int(e): int(v) for e, v in raw["kept"].items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidMessage(f"{text[:80]!r} is no lineage: {error!r}") from error


ONE_LINE: Final = Lineage()
"""Of a run whose learner was never restarted: every version is an ancestor of the later ones."""
