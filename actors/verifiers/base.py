"""What a verifier is, and what the boxed ones share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from pydantic import JsonValue

from actors.verifiers.extract import boxed

Args = Mapping[str, JsonValue]
"""``Task.verifier_args``: JSON only."""

MAX_ANSWER_CHARS: Final = 4000
"""A longer boxed text is no final answer: it counts as missing (wrong), and a longer gold answer is refused."""


class NoAnswer(Exception):
    """The completion holds no answer that can be scored: wrong, and never shown to a judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """``answer`` is the very text that was scored; ``reward`` is a function of ``canonical`` and the gold answer.

    A ``python:`` function scores the whole completion, so there the reward may vary within one canonical form.
    """

    reward: float
    answer: str | None
    canonical: str | None


class Verifier(Protocol):
    """Pure: the same text, gold answer and arguments always give the same score."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Changes whenever any verdict may: verdicts of two versions are not comparable."""

    def warm_up(self) -> None:
        """Do the slow imports now. Raises SettingsError if something is not installed."""

    def score(self, text: str, answer: str, args: Args) -> Scored:
        """Score the completion ``text`` against the gold ``answer``.

        Raises NoAnswer if there is nothing to score. Any other exception is the verifier's own
        failure: the caller reports it as such, never as a wrong answer.
        """

    def problem(self, answer: str, args: Args) -> str | None:
        """Why this gold answer and these arguments can never be scored, or ``None``."""


def final_answer(text: str) -> str:
    r"""The last ``\boxed{}`` of a completion. Raises NoAnswer if it is missing, empty or over-long."""
    answer = boxed(text)
    if answer is None:
        raise NoAnswer("no complete \\boxed{...}")
    if not answer:
        raise NoAnswer("the \\boxed{} is empty")
    if len(answer) > MAX_ANSWER_CHARS:
        raise NoAnswer(f"the boxed text has {len(answer)} characters; at most {MAX_ANSWER_CHARS} are an answer")
    return answer


def gold_problem(answer: str) -> str | None:
    if not answer.strip():
        return "the gold answer is empty"
    if len(answer) > MAX_ANSWER_CHARS:
        return f"the gold answer has {len(answer)} characters; at most {MAX_ANSWER_CHARS} can be scored"
    return None


def fold(text: str) -> str:
    """Case and white space folded; nothing else, so different words stay different."""
    return " ".join(text.casefold().split())
