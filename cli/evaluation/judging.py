"""How well does a model judge the answers of a pool: one at a time, and two against each other in both orders."""

from __future__ import annotations

from collections.abc import Sequence

from cli.evaluation.asking import Asking, outcome_of
from cli.evaluation.figures import Figure, Outcome, clustered_share, mean_of, share_of
from cli.evaluation.sampler import Sampler
from common.messages import RolloutGroup
from recycler.judge_tasks import Source

Pairs = Sequence[tuple[Source, Source]]
"""(right answer, wrong answer) to the same question."""


def measure_pointwise(sampler: Sampler, asking: Asking, pairs: Pairs) -> dict[str, Figure]:
    """``pointwise`` is the balanced accuracy, the mean of ``tpr`` (right answers) and ``tnr`` (wrong ones).

    A verdict that cannot be read counts as wrong in both; ``unparsed`` is the share of such verdicts.
    """
    sources = [source for pair in pairs for source in pair]
    tasks = [asking.pointwise(source, index // 2, "pointwise") for index, source in enumerate(sources)]
    groups = sampler(tasks, "pointwise")
    outcomes = [outcome_of(group) for group in groups]
    tpr, tnr = share_of(outcomes[0::2], "tpr"), share_of(outcomes[1::2], "tnr")
    unread = share_of((unreadable(group) for group in groups), "unparsed")
    return {"pointwise": mean_of(tpr, tnr), "tpr": tpr, "tnr": tnr, "unparsed": unread}


def measure_pairwise(sampler: Sampler, asking: Asking, pairs: Pairs) -> dict[str, Figure]:
    """Every pair in both orders. See ``pairwise_figures``."""
    tasks = [
        asking.pairwise(right, wrong, index, a_right=a_right)
        for index, (right, wrong) in enumerate(pairs)
        for a_right in (True, False)
    ]
    groups = sampler(tasks, "pairwise")
    orders = list(zip(groups[0::2], groups[1::2], strict=True))
    readings = [(_reading(right_first), _reading(wrong_first)) for right_first, wrong_first in orders]
    return pairwise_figures(readings)


Reading = tuple[Outcome, bool]
"""Of a pairwise verdict: does it name the right answer (None: the verifier failed), can it be read at all?"""


def pairwise_figures(readings: Sequence[tuple[Reading, Reading]]) -> dict[str, Figure]:
    """Of (right answer shown first, wrong answer shown first) per pair.

    ``pairwise``: share of verdicts that name the right answer. ``swap_consistency``: share of pairs of which both
    orders name the same answer. ``position_bias``: share of readable verdicts that name the answer shown first, less
    a half. ``pairwise_unparsed``: share of verdicts that cannot be read; they are wrong and not consistent.
    """
    accuracy = clustered_share(([first[0], second[0]] for first, second in readings), "pairwise")
    consistency = share_of((_consistent(first, second) for first, second in readings), "swap_consistency")
    unread = clustered_share(([_unread(first), _unread(second)] for first, second in readings), "pairwise_unparsed")
    named_first = [_named_first(first, second) for first, second in readings]
    figures = {"pairwise": accuracy, "swap_consistency": consistency, "pairwise_unparsed": unread}
    if any(answer is not None for pair in named_first for answer in pair):
        figures["position_bias"] = _less_a_half(clustered_share(named_first, "position_bias"))
    return figures


def unreadable(group: RolloutGroup | None) -> Outcome:
    """Does the verdict name none of its choices? A refused task has none; None when the verifier failed."""
    if group is None:
        return True
    verdict = group.rollouts[0].verdict
    return verdict.status == "no_answer" if verdict.scored else None


def _reading(group: RolloutGroup | None) -> Reading:
    return outcome_of(group), unreadable(group) is False


def _consistent(first: Reading, second: Reading) -> Outcome:
    if first[0] is None or second[0] is None:
        return None
    return first[1] and second[1] and first[0] == second[0]


def _unread(reading: Reading) -> Outcome:
    return None if reading[0] is None else not reading[1]


def _named_first(first: Reading, second: Reading) -> list[Outcome]:
    """In the first order the right answer is the one shown first; in the second order the wrong one is."""
    return [first[0] if first[1] else None, not second[0] if second[1] else None]


def _less_a_half(share: Figure) -> Figure:
    return Figure(value=share.value - 0.5, n=share.n, low=share.low - 0.5, high=share.high - 0.5)
