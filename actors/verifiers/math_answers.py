"""``math``: symbolic and numeric equality by math-verify, with guards for what it drops.

tests/unit/actors/verifier_math_corpus.json records what is accepted, also where that is doubtful.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from actors.verifiers.base import Args, Scored, final_answer, fold, gold_problem
from actors.verifiers.units import is_prose, units, without_unit

MAX_DEPTH: Final = 24
"""Nested deeper, no answer is meant seriously, and math-verify needs two seconds to read it."""
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What an answer says. ``value`` is an int or a sympy object; ``None``: only its words count."""

    value: Any
    units: tuple[str, ...]
    canonical: str


class Math:
    name = "math"
    version = "1"

    def warm_up(self) -> None:
        equivalent(read("x+1"), read("1+x"))  # import sympy, build the parser: half a second

    def score(self, text: str, answer: str, args: Args) -> Scored:
        found = final_answer(text)
        reading = read(found)
        return Scored(reward=float(equivalent(read(answer), reading)), answer=found, canonical=reading.canonical)

    def problem(self, answer: str, args: Args) -> str | None:
        if (reason := gold_problem(answer)) is not None:
            return reason
        if not _INTEGER.fullmatch(answer.strip()) and _parse(_clean(answer)) is None:
            return f"the gold answer {answer[:80]!r} cannot be read as mathematics; use the verifier `exact`"
        return None


@lru_cache(maxsize=256)  # the gold answer is read once per group, not once per completion
def read(text: str) -> Reading:
    cleaned = _clean(text)
    if _INTEGER.fullmatch(cleaned):
        return Reading(value=int(cleaned), units=(), canonical=str(int(cleaned)))
    parsed = _parse(cleaned)
    if parsed is None or is_prose(cleaned, parsed.letters):
        return Reading(value=None, units=(), canonical=_words(cleaned))
    found = units(cleaned, parsed.letters)
    # a number of more digits than Python prints has no printed form
    canonical = _words(cleaned) if parsed.printed is None else " ".join((parsed.printed, *found))
    return Reading(value=parsed.value, units=found, canonical=canonical)


def equivalent(gold: Reading, answer: Reading) -> bool:
    if gold.canonical == answer.canonical:
        return True
    if gold.value is None or answer.value is None or (isinstance(gold.value, int) and isinstance(answer.value, int)):
        return False
    if gold.units and answer.units and gold.units != answer.units:
        return False  # one side may leave its unit out, but two units must agree
    from actors.verifiers import math_engine

    return not math_engine.is_false_equation(answer.value) and math_engine.equal(gold.value, answer.value)


def _parse(cleaned: str) -> Any:
    """A ``math_engine.Parsed``, or ``None`` if the text as a whole cannot be read as mathematics."""
    if not without_unit(cleaned) or _depth(cleaned) > MAX_DEPTH:
        return None
    from actors.verifiers import math_engine  # 0.3 s and 50 MB that other verifiers and plain integers need not pay

    return math_engine.parse(without_unit(cleaned))


def _clean(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text.strip("$").strip()
    return text.rstrip(".").rstrip()


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _words(cleaned: str) -> str:
    """Canonical form of text that is no value. The quotes keep it apart from every printed value."""
    return '"' + fold(_TEXT.sub(r"\1", cleaned)) + '"'
