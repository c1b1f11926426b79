"""The part of ``math`` that needs sympy. Import it inside functions: it is slow to load.

math-verify's own time-outs are off. They need SIGALRM, and a comparison they interrupt is reported as "not equal",
which would turn a slow verifier into a wrong answer. The pool's hard kill bounds the time instead.
"""

import logging
from dataclasses import dataclass
from typing import Any

import math_verify
import sympy  # type: ignore[import-untyped]

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would warn that its time-outs are off

# only a box as a whole: by default any fraction inside unreadable text is taken for the answer
_TARGET = math_verify.LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    value: Any
    """A sympy object in normal form."""
    printed: str | None
    letters: frozenset[str]
    """Letters of its variables; with a variable also e and i, which may have been read as constants."""


def parse(text: str) -> Parsed | None:
    """``None`` if ``text`` cannot be read, or is not a number (0/0, 1/0)."""
    found = math_verify.parse(
        f"\\boxed{{{text}}}",
        [_TARGET],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
        raise_on_error=True,
    )
    if not found:
        return None
    value = _normal_form(found[0])
    return (
        None if value in (sympy.nan, sympy.zoo) else Parsed(value=value, printed=_print(value), letters=_letters(value))
    )


def equal(gold: Any, answer: Any) -> bool:
    """Not symmetric: an equation is compared as the gold answer's form asks. Takes any time."""
    gold, answer = (sympy.Integer(side) if isinstance(side, int) else side for side in (gold, answer))
    return bool(math_verify.verify(gold, answer, timeout_seconds=None, raise_on_error=True))


def is_false_equation(value: Any) -> bool:
    """``7=8``: without a variable both sides must agree; math-verify reads only the last side."""
    return isinstance(value, sympy.Eq) and not value.free_symbols and not equal(value.lhs, value.rhs)


def _normal_form(value: Any) -> Any:
    """Arithmetic carried out; sets, relations and percentages as they are (``50%`` is both 50 and 1/2)."""
    if not isinstance(value, sympy.Expr) or value.has(sympy.UnevaluatedExpr):
        return value
    value = value.doit()
    if isinstance(value, sympy.Float) and (exact := sympy.Rational(value)).is_Integer:
        return exact
    return value


def _print(value: Any) -> str | None:
    try:
        return str(value)
    except ValueError:
        return None


def _letters(value: Any) -> frozenset[str]:
    names = "".join(str(symbol) for symbol in getattr(value, "free_symbols", ()))
    return frozenset(names.casefold() + ("ei" if names else ""))
