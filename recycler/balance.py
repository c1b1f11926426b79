"""Running balance of classes and shares, by error diffusion: exact over every window, not on average.

For one key, with a share s and p positives among n, the error s * n - p always stays within half a task,
because only the class that is due is emitted. Any window therefore holds s * w positives within 1.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping

from common.messages import uid_of


class Balance:
    """Which class must come next, by key. Deterministic: the phase of a key comes from the seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._errors: dict[Hashable, float] = {}

    def due(self, key: Hashable, share: float) -> bool:
        """Must the next task of ``key`` be positive, for P(positive) = ``share``?"""
        return self._error(key) + share >= 0.5

    def record(self, key: Hashable, positive: bool, share: float) -> None:
        """Count an emitted task.

        Where the class that was due could not be had and the other one was taken, at most half a task is
        owed: a share is never made up for later, so a long drought is not followed by a flood.
        """
        self._errors[key] = max(-0.5, min(0.5, self._error(key) + share - positive))

    def _error(self, key: Hashable) -> float:
        if key not in self._errors:  # in [-0.5, 0.5), in steps that floats add exactly
            self._errors[key] = int(uid_of(self._seed, "phase", repr(key))[:4], 16) / 65536 - 0.5
        return self._errors[key]


class Shares:
    """Splits room among names in proportion to their weights, by running deficits.

    Only the names that could be served take part in a count: a name without supply neither blocks the
    others nor builds up a claim.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = {name: weight for name, weight in weights.items() if weight > 0}
        self._credit: defaultdict[str, float] = defaultdict(float)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._weights)

    def order(self, names: Collection[str]) -> list[str]:
        """``names``, the one with the largest deficit first."""
        return _order(self._credit, self._weights, names)

    def record(self, name: str, among: Collection[str]) -> None:
        _charge(self._credit, self._weights, name, among)

    def split(self, room: int, names: Collection[str]) -> Counter[str]:
        """How many of each name fill ``room``; changes nothing."""
        credit, wanted = self._credit.copy(), Counter[str]()
        for _ in range(room if names else 0):
            name = _order(credit, self._weights, names)[0]
            _charge(credit, self._weights, name, names)
            wanted[name] += 1
        return wanted


def _order(credit: Mapping[str, float], weights: Mapping[str, float], names: Collection[str]) -> list[str]:
    total = sum(weights[name] for name in names)
    return sorted(names, key=lambda name: -round(credit[name] + weights[name] / total, 9))


def _charge(credit: dict[str, float], weights: Mapping[str, float], name: str, among: Collection[str]) -> None:
    total = sum(weights[other] for other in among)
    for other in among:
        credit[other] += weights[other] / total
    credit[name] -= 1.0
