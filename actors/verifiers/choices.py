"""``choice`` (multiple choice) and ``verdict`` (judge tasks): which of a few choices does the box name?

Formatting must never decide: ``A``, ``(A)``, ``a)``, ``A. 97`` and ``\\text{(A)}`` name the same choice. A
box that names none of the choices, or more than one, names nothing: status ``no_answer``, hence wrong.
"""

import re
import unicodedata
from collections.abc import Sequence

from actors.verifiers.base import Args, NoAnswer, Scored, final_answer, fold, gold_problem

LETTERS = tuple("ABCDEFGHIJ")

_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|bf|rm|emph|mbox)\s*\{([^{}]*)\}")
_DECORATION = re.compile(r"\\left|\\right|\\[,;:!() ]|~|\$|\*\*|[`\"']")
_LEAD = re.compile(
    r"(?:(?:the|my|final|correct|better|best|right) )*"
    r"(?:(?:answer|option|choice|verdict|response|solution|candidate)(?: is)?(?: ?[:=])? ?)?"
)
_BARE_REST = r"(?:[\s,;/&|]|and\b|or\b)*\(?({letters})[).:,]?"


def plain(text: str) -> str:
    """Folded text without LaTeX wrappers, dollar signs, emphasis, quotes and full-width forms."""
    text = unicodedata.normalize("NFKC", text)
    while (unwrapped := _WRAPPER.sub(r"\1", text)) != text:
        text = unwrapped
    return fold(_DECORATION.sub(" ", text))


def named_choice(text: str, choices: Sequence[str], *, rest_is_free: bool) -> str | None:
    """The one of ``choices`` that ``text`` names, as spelt there; ``None`` if none or if it is ambiguous.

    The choice comes first, alone or in parentheses or before a delimiter; then any text may follow.
    That rest makes the answer ambiguous if it names another choice: as its only content if
    ``rest_is_free`` (option texts contain letters: ``B. a dog``), else anywhere.
    """
    folded = {plain(choice): choice for choice in choices}
    alternatives = "|".join(re.escape(key) for key in sorted(folded, key=len, reverse=True))
    shape = rf"\(\s*({alternatives})\s*\)(.*)|({alternatives})(?:\s*[).:,;]+(.*)|\s+-\s+(.*))?"
    body = plain(text)
    body = body[len(lead[0]) :] if (lead := _LEAD.match(body)) else body
    match = re.fullmatch(shape, body)
    if match is None:
        return None
    picked = match[1] or match[3]
    rest = (match[2] or match[4] or match[5] or "").strip()
    return None if _others(rest, folded, picked, alternatives, rest_is_free) else folded[picked]


def _others(rest: str, folded: dict[str, str], picked: str, alternatives: str, rest_is_free: bool) -> bool:
    if rest_is_free:
        bare = re.fullmatch(_BARE_REST.format(letters=alternatives), rest)
        return bare is not None and bare[1] != picked
    return any(re.search(rf"(?<!\w){re.escape(key)}(?!\w)", rest) for key in folded if key != picked)


class Choice:
    """Gold answer: a letter. ``verifier_args["choices"]``: the option letters, default A to J."""

    name = "choice"
    version = "1"

    def warm_up(self) -> None:
        """Nothing to import."""

    def score(self, text: str, answer: str, args: Args) -> Scored:
        choices = choices_of(args, LETTERS)
        return score_choice(text, named_choice(answer, choices, rest_is_free=True), choices, rest_is_free=True)

    def problem(self, answer: str, args: Args) -> str | None:
        return choice_problem(answer, args, LETTERS, rest_is_free=True)


class JudgeVerdict:
    """Gold answer: the verdict that is right. ``verifier_args["choices"]``: the allowed ones, e.g. Yes and No."""

    name = "verdict"
    version = "1"

    def warm_up(self) -> None:
        """Nothing to import."""

    def score(self, text: str, answer: str, args: Args) -> Scored:
        choices = choices_of(args, ())
        return score_choice(text, named_choice(answer, choices, rest_is_free=False), choices, rest_is_free=False)

    def problem(self, answer: str, args: Args) -> str | None:
        return choice_problem(answer, args, (), rest_is_free=False)


def score_choice(text: str, gold: str | None, choices: Sequence[str], *, rest_is_free: bool) -> Scored:
    if gold is None:
        raise ValueError(f"the gold answer names none of {', '.join(choices)}")
    found = final_answer(text)
    picked = named_choice(found, choices, rest_is_free=rest_is_free)
    if picked is None:
        raise NoAnswer(f"{found[:80]!r} does not name exactly one of {', '.join(choices)}")
    return Scored(reward=float(picked == gold), answer=found, canonical=picked)


def choices_of(args: Args, default: Sequence[str]) -> tuple[str, ...]:
    """Raises ValueError unless there are at least two distinct choices."""
    listed = args.get("choices", list(default))
    if not isinstance(listed, list | tuple):
        raise ValueError(f"verifier_args.choices={listed!r} must be a list of strings")
    choices = tuple(choice for choice in listed if isinstance(choice, str) and plain(choice))
    if len(choices) != len(listed) or len({plain(choice) for choice in choices}) != len(choices) or len(choices) < 2:
        raise ValueError(f"verifier_args.choices={listed!r} must hold two or more strings that differ beyond case")
    return choices


def choice_problem(answer: str, args: Args, default: Sequence[str], *, rest_is_free: bool) -> str | None:
    try:
        choices = choices_of(args, default)
    except ValueError as error:
        return str(error)
    if (reason := gold_problem(answer)) is not None:
        return reason
    if named_choice(answer, choices, rest_is_free=rest_is_free) is None:
        return f"the gold answer {answer[:80]!r} does not name exactly one of {', '.join(choices)}"
    return None
