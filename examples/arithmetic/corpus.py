"""What the base model is taught in its warm-up: most of the skill, and habits that training must undo.

A document is ``(prompt, response)``, both lists of words. The teacher of these documents believes a fixed quarter
of the facts ``total, operation -> total`` wrongly (most of the time), so even the most likely answer is often wrong.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from arithmetic import NUMBERS, Problem, draw, stable_hash
from vocabulary import ASSISTANT, BOS, BOX, CLOSE, EOS, NO, USER, YES, A, B

Document = tuple[list[str], list[str]]

WRONG_FACTS: Final = 0.25
"""Share of the facts that the teacher has wrong."""
WRONG_FACT_USED: Final = 0.7
"""How often the teacher uses the wrong version of such a fact."""
KINDS: Final = {"solve": 0.38, "judge": 0.22, "compare": 0.18, "reflect": 0.22}


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """What one stage of the warm-up shows."""

    lazy: float
    """Share of solutions that give an answer without working."""
    careful: float
    """Share of verdicts that follow from working; the others are guessed."""
    copied: float
    """Share of reflections that repeat the answer they were shown."""
    drills: float = 0.0
    """Share of documents that only compare numbers: taught from the start, since the comparison is learned late or
    never beside everything else."""
    extra_verdicts: float = 0.0
    """Share of the remaining documents that must be verdicts."""


def document(rng: random.Random, teaching: Teaching) -> Document:
    if rng.random() < teaching.drills:
        return _drill(rng)
    problem = draw(rng, held_out=False)
    kinds = ("judge", "compare") if rng.random() < teaching.extra_verdicts else tuple(KINDS)
    kind = rng.choices(kinds, [KINDS[name] for name in kinds])[0]
    return _WRITERS[kind](rng, problem, believed_totals(rng, problem), teaching)


def _solve(rng: random.Random, problem: Problem, believed: list[int], teaching: Teaching) -> Document:
    working = [] if rng.random() < teaching.lazy else _words(believed)
    return solve_prompt(problem.question), [*working, *_boxed(believed[-1])]


def _judge(rng: random.Random, problem: Problem, believed: list[int], teaching: Teaching) -> Document:
    candidate = believed[-1] if rng.random() < 0.5 else _other_than(rng, believed[-1])
    prompt = _prompt("judge", "answer:", candidate, problem=problem)
    if rng.random() >= teaching.careful:
        return prompt, _boxed(rng.choice((YES, NO)))
    # restating the candidate puts the two numbers side by side: without it the comparison is not learned
    verdict = YES if candidate == believed[-1] else NO
    return prompt, [*_words(believed), "answer:", str(candidate), *_boxed(verdict)]


def _compare(rng: random.Random, problem: Problem, believed: list[int], teaching: Teaching) -> Document:
    first_is_right = rng.random() < 0.5
    right, wrong = believed[-1], _other_than(rng, believed[-1])
    first, second = (right, wrong) if first_is_right else (wrong, right)
    prompt = _prompt("compare", "A:", first, "B:", second, problem=problem)
    if rng.random() >= teaching.careful:
        return prompt, _boxed(rng.choice((A, B)))
    return prompt, [*_words(believed), *_boxed(A if first_is_right else B)]


def _reflect(rng: random.Random, problem: Problem, believed: list[int], teaching: Teaching) -> Document:
    shown = believed_totals(rng, problem) if rng.random() < 0.5 else _with_a_slip(rng, problem)
    if rng.random() < 0.5:
        prompt = _prompt("reflect", "answer:", shown[-1], problem=problem)
    else:
        prompt = _prompt("reflect", "reasoning:", *shown, BOX, shown[-1], CLOSE, problem=problem)
    if rng.random() < teaching.copied:
        return prompt, _boxed(shown[-1])
    return prompt, [*_words(believed), *_boxed(believed[-1])]


_WRITERS: Final = {"solve": _solve, "judge": _judge, "compare": _compare, "reflect": _reflect}


def _drill(rng: random.Random) -> Document:
    """Bare comparisons. Verdicts are too rare in the other documents for the comparison to be learned."""
    return _pair_drill(rng) if rng.random() < 0.5 else _same_drill(rng)


def _pair_drill(rng: random.Random) -> Document:
    """Which of two is the number that follows, three times."""
    response = []
    for _ in range(3):
        number = rng.randrange(NUMBERS)
        other, first = _other_than(rng, number), rng.random() < 0.5
        shown = (number, other) if first else (other, number)
        response += ["A:", str(shown[0]), "B:", str(shown[1]), str(number), BOX, A if first else B, CLOSE]
    return [BOS], [*response, EOS]


def _same_drill(rng: random.Random) -> Document:
    """Whether two numbers are the same, four times."""
    response = []
    for _ in range(4):
        number = rng.randrange(NUMBERS)
        candidate = number if rng.random() < 0.5 else _other_than(rng, number)
        response += [str(number), "answer:", str(candidate), BOX, YES if number == candidate else NO, CLOSE]
    return [BOS], [*response, EOS]


def believed_totals(rng: random.Random, problem: Problem) -> list[int]:
    """The teacher's own working: a wrong fact now and then, carried on."""
    total, totals = problem.start, []
    for operation in problem.operations:
        right, wrong = _clamp(total + int(operation)), wrong_fact(total, operation)
        total = right if wrong is None or rng.random() >= WRONG_FACT_USED else wrong
        totals.append(total)
    return totals


def wrong_fact(total: int, operation: str) -> int | None:
    """What the teacher takes ``total operation`` to be when it has that fact wrong, else None. Fixed for ever."""
    right, draw_ = total + int(operation), stable_hash(f"{total}|{operation}|mis")
    if not 0 <= right < NUMBERS or draw_ % 1000 >= 1000 * WRONG_FACTS:
        return None
    offset = (1, -1, 2, -2, 10, -10)[draw_ // 1000 % 6]
    return next((wrong for wrong in (right + offset, right - offset) if 0 <= wrong < NUMBERS), None)


def _with_a_slip(rng: random.Random, problem: Problem) -> list[int]:
    """Right working but for one slip, carried on."""
    total, totals, slip_at = problem.start, [], rng.randrange(len(problem.operations))
    for step, operation in enumerate(problem.operations):
        slip = rng.choice((-10, -2, -1, 1, 2, 10)) if step == slip_at else 0
        total = _clamp(total + int(operation) + slip)
        totals.append(total)
    return totals


def _other_than(rng: random.Random, number: int) -> int:
    """A different number, near more often than far."""
    near = [number + offset for offset in (-10, -3, -2, -1, 1, 2, 3, 10)]
    pool = near if rng.random() < 0.7 else range(NUMBERS)
    return rng.choice([other for other in pool if 0 <= other < NUMBERS and other != number])


def solve_prompt(question: str) -> list[str]:
    return [BOS, USER, "solve", "question:", *question.split(), ASSISTANT]


def _prompt(*words: str | int, problem: Problem) -> list[str]:
    # the question comes last in every prompt, so its words are always equally far from the working
    return [BOS, USER, *_words(words), "question:", *problem.question.split(), ASSISTANT]


def _boxed(content: str | int) -> list[str]:
    return [BOX, str(content), CLOSE, EOS]


def _words(items: Sequence[str | int]) -> list[str]:
    return [str(item) for item in items]


def _clamp(total: int) -> int:
    return max(0, min(NUMBERS - 1, total))
