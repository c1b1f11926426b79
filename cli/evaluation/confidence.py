"""How sure is the judge, and is it as right as it is sure? Asked several times about each answer of a pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from cli.evaluation.asking import Asking
from cli.evaluation.figures import Figure
from cli.evaluation.judging import Pairs
from cli.evaluation.sampler import Sampler
from common.messages import RolloutGroup, Task
from learner.calibration import Votes, agreement, auroc, calibration
from learner.judge_panel import pointwise_of

VOTES: Final = 8
"""Verdicts on each answer: P(Yes) is known in eighths."""
MOST_PAIRS: Final = 256
"""Pairs of the pool that are judged so often: enough for an AUROC within 0.05."""
RESAMPLES: Final = 200
Judged = Sequence[tuple[Votes, Votes]]
"""Votes on the right and on the wrong answer to one question."""
Measure = Callable[[Sequence[Votes]], float | None]


def measure_confidence(sampler: Sampler, asking: Asking, pairs: Pairs) -> dict[str, Figure]:
    """``auroc``: does P(Yes), the share of yes among the verdicts, rank right answers above wrong ones?

    ``ece``: expected calibration error; ``ece_floor``: what a perfectly calibrated judge would show with as many
    answers. ``confidence``: chance that two verdicts on one answer agree. Exactly as in training
    (``learner/calibration.py``); half of the answers are right. A figure without a readable verdict is left out.
    """
    sources = [source for pair in pairs[:MOST_PAIRS] for source in pair]
    tasks = [_asked(asking.pointwise(source, index // 2, "confidence")) for index, source in enumerate(sources)]
    votes = [_votes(group, index) for index, group in enumerate(sampler(tasks, "confidence"))]
    return confidence_figures(list(zip(votes[0::2], votes[1::2], strict=True)), asking.seed)


def confidence_figures(judged: Judged, seed: int) -> dict[str, Figure]:
    """``seed``: of the resampling that gives the intervals."""
    measures: dict[str, Measure] = {"auroc": auroc, "ece": _error, "ece_floor": _floor, "confidence": agreement}
    figures = {name: _bootstrapped(judged, measure, seed) for name, measure in measures.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


def _asked(task: Task) -> Task:
    return replace(task, sampling=replace(task.sampling, n=VOTES))


def _votes(group: RolloutGroup | None, index: int) -> Votes:
    """A refused task has no votes. Of each pair the right answer comes first."""
    return Votes(positive=index % 2 == 0, yes=()) if group is None else pointwise_of(group, 0).votes


def _bootstrapped(judged: Judged, measure: Measure, seed: int) -> Figure | None:
    """The measure with the basic bootstrap interval, resampling questions (both of its answers together)."""
    value = measure([votes for pair in judged for votes in pair])
    if value is None:
        return None
    rng = np.random.default_rng(seed)
    drawn = (
        measure([votes for place in rng.integers(0, len(judged), len(judged)) for votes in judged[place]])
        for _ in range(RESAMPLES)
    )
    low, high = np.quantile([again for again in drawn if again is not None], (0.025, 0.975))
    # mirrored: what resampling adds to a value, the sample has added to the truth
    return Figure(
        value=value,
        n=2 * len(judged),
        low=min(value, max(0.0, 2 * value - float(high))),
        high=max(value, min(1.0, 2 * value - float(low))),
    )


def _error(votes: Sequence[Votes]) -> float | None:
    found = calibration(votes)
    return None if found is None else found.error


def _floor(votes: Sequence[Votes]) -> float | None:
    found = calibration(votes)
    return None if found is None else found.floor
