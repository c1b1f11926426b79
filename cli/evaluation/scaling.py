"""Test-time scaling: answer, judge the own answer, and answer again only where the judge says no.

A round takes every prompt that is still open. Its answer is judged (pointwise, greedy: a verdict is a decision):

- *yes* settles the answer for good.
- A verdict that cannot be read settles it too: an answer is given up only for a readable *no*.
- *no* asks for a reflection, sampled at the run's temperature; its answer replaces the old one and stays open. A
  reflection without an answer replaces nothing.
- Where there is no answer to judge, the prompt is simply answered again.

What the last round wrote is not judged. A prompt whose verifier fails anywhere is left out of every round's figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cli.evaluation.asking import Asking, outcome_of, source_of
from cli.evaluation.figures import Outcome
from cli.evaluation.sampler import Cost, Sampler, cost_of
from common.messages import RolloutGroup
from learner.prompts import Prompt
from recycler.judge_tasks import Source


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """Where one prompt stands."""

    position: int
    prompt: Prompt
    source: Source | None
    """The current answer, with its verdict; None while there is none."""
    settled: bool = False
    failed: bool = False
    """The verifier failed on an answer, so nobody knows whether it is right."""

    @property
    def open(self) -> bool:
        return not self.settled and not self.failed

    @property
    def outcome(self) -> Outcome:
        if self.failed:
            return None
        return self.source is not None and self.source.correct

    def judged(self, group: RolloutGroup | None) -> Attempt:
        """After the verdict on the current answer: still open only if it clearly says no."""
        return replace(self, settled=not self._says_no(group))

    def answered(self, group: RolloutGroup | None) -> Attempt:
        """After a new answer: it replaces the current one, if there is one to be read."""
        if outcome_of(group) is None:
            return replace(self, failed=True)
        return replace(self, source=source_of(group) or self.source)

    def _says_no(self, group: RolloutGroup | None) -> bool:
        if group is None or self.source is None or group.rollouts[0].verdict.status != "ok":
            return False
        # the task's label is the truth about the answer, so a verdict that misses it says the opposite
        return group.rollouts[0].verdict.correct != self.source.correct


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    rounds: tuple[tuple[Outcome, ...], ...]
    """Is each prompt's answer right: first, then after each round."""
    cost: Cost
    """Of the first answers and everything after them."""

    @property
    def fixed(self) -> int:
        """Answers that a round turned from wrong or missing to right; an answer may count in several rounds."""
        return sum(
            _changed(before, after, to=True) for before, after in zip(self.rounds, self.rounds[1:], strict=False)
        )

    @property
    def broken(self) -> int:
        """Answers that a round turned from right to wrong."""
        return sum(
            _changed(before, after, to=False) for before, after in zip(self.rounds, self.rounds[1:], strict=False)
        )


def scale(
    sampler: Sampler,
    asking: Asking,
    prompts: Sequence[Prompt],
    first: Sequence[RolloutGroup | None],
    rounds: int,
) -> Scaling:
    """``first`` holds the first answer of every prompt: groups of one (None: refused)."""
    spent_before = sampler.cost
    attempts = [
        Attempt(position=i, prompt=prompt, source=source_of(group), failed=outcome_of(group) is None)
        for i, (prompt, group) in enumerate(zip(prompts, first, strict=True))
    ]
    history = [attempts]
    for number in range(1, rounds + 1):
        attempts = _answer_again(sampler, asking, _judge(sampler, asking, attempts, number), number)
        history.append(attempts)
    failed = {attempt.position for attempt in attempts if attempt.failed}
    return Scaling(
        rounds=tuple(tuple(None if a.position in failed else a.outcome for a in standing) for standing in history),
        cost=cost_of(first) + sampler.cost - spent_before,
    )


def _judge(sampler: Sampler, asking: Asking, attempts: Sequence[Attempt], number: int) -> list[Attempt]:
    stage = f"judge, round {number}"
    to_judge = {a.position: a.source for a in attempts if a.open and a.source is not None}
    # the round is part of the position: an answer that is judged again is judged by the next template
    tasks = [asking.pointwise(source, i + number - 1, stage, greedy=True) for i, source in to_judge.items()]
    verdicts = dict(zip(to_judge, sampler(tasks, stage), strict=True))
    return [a.judged(verdicts[a.position]) if a.position in verdicts else a for a in attempts]


def _answer_again(sampler: Sampler, asking: Asking, attempts: Sequence[Attempt], number: int) -> list[Attempt]:
    stage = f"answer again, round {number}"
    again = [attempt for attempt in attempts if attempt.open]
    tasks = [
        asking.reflect(attempt.source, attempt.position + number - 1, stage)
        if attempt.source
        else asking.solve(attempt.prompt, stage)
        for attempt in again
    ]
    answers = dict(zip((attempt.position for attempt in again), sampler(tasks, stage), strict=True))
    return [a.answered(answers[a.position]) if a.position in answers else a for a in attempts]


def _changed(before: Sequence[Outcome], after: Sequence[Outcome], *, to: bool) -> int:
    return sum(a is to and b is (not to) for b, a in zip(before, after, strict=True))
