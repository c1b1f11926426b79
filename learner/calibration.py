"""How well a judge's votes tell right answers from wrong ones, and whether they are as sure as they are right. Pure.

A judge is asked n times about one answer. P(Yes) is estimated by the share of Yes among its readable verdicts. That is
an unbiased estimate of what the judge says after reasoning, at the temperature of the samples, in steps of 1/n. The
log-prob of the verdict's own token would be finer but something else: it is conditional on one chain of reasoning,
after which it is nearly always 0 or 1, and to find that token in a completion needs the model's tokenizer.

A share of n votes scatters around P(Yes), so a calibrated judge looks over-confident in its shares: those at 1 hold
the lucky ones. Hence the calibration error is taken crosswise (``calibration``).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

BINS: Final = 10
"""Of equal width, as in Guo et al. 2017 (arXiv 1706.04599)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """What the siblings of one pointwise task said."""

    positive: bool
    """The judged answer is right."""
    yes: tuple[bool, ...]
    """Does each readable verdict accept the answer?"""

    @property
    def share(self) -> float:
        """P(Yes). Needs a readable verdict."""
        return sum(self.yes) / len(self.yes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    error: float
    """Expected calibration error in [0, 1]."""
    floor: float
    """What a perfectly calibrated judge would be expected to show with as many tasks: chance alone."""


def auroc(tasks: Sequence[Votes]) -> float | None:
    """Chance that a right answer has a higher P(Yes) than a wrong one; ties count half (Mann and Whitney).

    0.5 for a judge that cannot tell, 1 for one that always can. Vote shares are coarser than P(Yes), so it is
    slightly too close to 0.5. None without a readable verdict in both classes.
    """
    shares = {right: np.sort([t.share for t in tasks if t.positive is right and t.yes]) for right in (True, False)}
    right, wrong = shares[True], shares[False]
    if not len(right) or not len(wrong):
        return None
    below = np.searchsorted(wrong, right, side="left") + np.searchsorted(wrong, right, side="right")
    return float(below.sum() / (2 * len(right) * len(wrong)))


def calibration(tasks: Sequence[Votes]) -> Calibration | None:
    """Expected calibration error, sum over bins of |mean P(Yes) - share of right answers|, weighted by tasks.

    Half of a task's votes choose its bin, and the other half estimate its P(Yes), then the other way round; the result
    is the mean of the two. Within a bin the estimate then errs around the true mean and not away from it, so the error
    of a calibrated judge tends to 0 with more tasks. Like any binned error it is a lower bound (Kumar et al. 2019,
    arXiv 1909.10155). Tasks with fewer than two readable verdicts are left out; None when no other is left.
    """
    split = [(task.yes[0::2], task.yes[1::2], task.positive) for task in tasks if len(task.yes) > 1]
    if not split:
        return None
    ways = (split, [(other, one, positive) for one, other, positive in split])
    errors, floors = zip(*(_one_way(way) for way in ways), strict=True)
    return Calibration(error=sum(errors) / 2, floor=sum(floors) / 2)


def agreement(tasks: Sequence[Votes]) -> float | None:
    """Chance that two verdicts on one answer say the same: 1 when the judge is sure, 0.5 when it tosses a coin.

    Unbiased for P(Yes)^2 + P(No)^2 at any number of votes. None when no task has two readable verdicts.
    """
    found = []
    for task in tasks:
        n, yes = len(task.yes), sum(task.yes)
        if n > 1:
            found.append((yes * (yes - 1) + (n - yes) * (n - yes - 1)) / (n * (n - 1)))
    return sum(found) / len(found) if found else None


def _one_way(split: Sequence[tuple[tuple[bool, ...], tuple[bool, ...], bool]]) -> tuple[float, float]:
    """(calibration error, its floor), binned by the first votes and measured by the second."""
    gaps: defaultdict[int, list[float]] = defaultdict(list)
    for chooses, measures, positive in split:
        place = min(sum(chooses) * BINS // len(chooses), BINS - 1)
        gaps[place].append(sum(measures) / len(measures) - positive)
    error = sum(abs(sum(gap)) for gap in gaps.values())
    return error / len(split), sum(len(gap) * _by_chance(gap) for gap in gaps.values()) / len(split)


def _by_chance(gap: Sequence[float]) -> float:
    """Expected |mean| of as many gaps around 0, if they are normal: sqrt(2 / pi) standard errors. One says nothing."""
    spread = float(np.std(gap, ddof=1)) if len(gap) > 1 else abs(gap[0])
    return math.sqrt(2 / (math.pi * len(gap))) * spread
