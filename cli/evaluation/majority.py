"""Majority voting, the plain alternative to test-time scaling: the same tokens spent on more answers. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cli.evaluation.figures import Outcome
from common.messages import Verdict


def majority_outcome(verdicts: Sequence[Verdict]) -> Outcome:
    """Is the most frequent answer right? Equivalent answers (one canonical form) vote together.

    Of equally frequent ones the one given first wins, so the result depends on nothing but the order of the
    samples. A sample without an answer does not vote; without any vote the prompt is answered wrongly. None when
    the verifier failed on any sample.
    """
    if not all(verdict.scored for verdict in verdicts):
        return None
    voters = [verdict for verdict in verdicts if verdict.status == "ok"]
    if not voters:
        return False
    votes = Counter(map(_form, voters))  # keeps the order of first votes, and max takes the first of the largest
    winner = max(votes, key=lambda form: votes[form])
    return next(verdict.correct for verdict in voters if _form(verdict) == winner)


def votes_for(tokens: float, tokens_per_vote: float) -> int:
    """How many votes cost nearest to ``tokens``; at least one."""
    return max(1, round(tokens / tokens_per_vote))


def _form(verdict: Verdict) -> str | None:
    return verdict.answer if verdict.canonical is None else verdict.canonical
