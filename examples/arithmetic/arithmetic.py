"""The task: follow four additions and subtractions, such as ``7 +8 -6 +2 -2``, and give the last total.

Every number and every operation is one word, and all totals stay in 0..19.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

NUMBERS: Final = 20
LARGEST_OPERAND: Final = 9
STEPS: Final = 4
OPERATIONS: Final = tuple(f"{sign}{operand}" for sign in "+-" for operand in range(1, LARGEST_OPERAND + 1))
HELD_OUT_SHARE: Final = 8
"""One question in eight is held out: the warm-up and the training run never see it."""
MOST_PROMPTS: Final = 20_000
"""The smaller split has about 50,000 questions; drawing many more than this without repeats gets slow."""


@dataclass(frozen=True, slots=True)
class Problem:
    start: int
    operations: tuple[str, ...]

    @property
    def question(self) -> str:
        return " ".join((str(self.start), *self.operations))

    @property
    def totals(self) -> tuple[int, ...]:
        """The running total after each operation."""
        total, totals = self.start, []
        for operation in self.operations:
            total += int(operation)
            totals.append(total)
        return tuple(totals)

    @property
    def answer(self) -> int:
        return self.totals[-1]


def prompts(size: int, seed: int, held_out: bool = False) -> list[dict[str, Any]]:
    """``size`` different problems of one split, in the form of prompt records. Equal arguments, equal problems."""
    if not 1 <= size <= MOST_PROMPTS:
        raise ValueError(f"size={size}: choose 1 to {MOST_PROMPTS}")
    rng = random.Random(seed)
    problems: dict[str, Problem] = {}
    while len(problems) < size:
        problem = draw(rng, held_out=held_out)
        problems[problem.question] = problem
    return [
        {"prompt": problem.question, "answer": str(problem.answer), "verifier": "exact"}
        for problem in problems.values()
    ]


def draw(rng: random.Random, *, held_out: bool) -> Problem:
    """One problem of the wanted split."""
    while True:
        problem = _any_problem(rng)
        if is_held_out(problem.question) == held_out:
            return problem


def _any_problem(rng: random.Random) -> Problem:
    start = total = rng.randrange(NUMBERS)
    operations = []
    for _ in range(STEPS):
        operation = rng.choice([op for op in OPERATIONS if 0 <= total + int(op) < NUMBERS])
        operations.append(operation)
        total += int(operation)
    return Problem(start, tuple(operations))


def is_held_out(question: str) -> bool:
    """The split. It depends on the question alone, so it is the same in every process and for every seed."""
    return stable_hash(question) % HELD_OUT_SHARE == 0


def stable_hash(text: str) -> int:
    """FNV-1a without its weak low bits. Python's own ``hash`` differs between processes."""
    value = 2166136261
    for character in text:
        value = ((value ^ ord(character)) * 16777619) & 0xFFFFFFFF
    return value >> 3
