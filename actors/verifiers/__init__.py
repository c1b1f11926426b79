"""Verifiers: pure functions from a task and a completion to a verdict. The pool runs them in killable processes."""

import difflib
from functools import lru_cache
from typing import Final

from actors.verifiers.base import Args, NoAnswer, Verifier
from actors.verifiers.choices import Choice, JudgeVerdict
from actors.verifiers.exact import Exact
from actors.verifiers.math_answers import Math
from actors.verifiers.reasoning import ReasoningGym
from actors.verifiers.user_function import FORM, UserFunction
from common.errors import SettingsError
from common.messages import Completion, Task, Verdict

BUILT_IN: Final[dict[str, Verifier]] = {
    verifier.name: verifier for verifier in (Exact(), Choice(), Math(), JudgeVerdict(), ReasoningGym())
}
MAX_DETAIL: Final = 500


@lru_cache(maxsize=64)
def resolve(name: str) -> Verifier:
    """The verifier called ``name``. Raises SettingsError that names the nearest known one."""
    if name.startswith("python:"):
        return UserFunction(name)
    if name not in BUILT_IN:
        near = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(BUILT_IN)}, {FORM}"
        raise SettingsError(f"verifier {name!r} is unknown; {hint}")
    return BUILT_IN[name]


def verify(task: Task, completion: Completion) -> Verdict:
    """Verdict of one completion, computed here and now. Use the pool for text of an unknown origin."""
    return verdict_of(task.verifier, completion.text, task.answer, task.verifier_args)


def verdict_of(name: str, text: str, answer: str, args: Args) -> Verdict:
    """Never raises: a failure of the verifier itself is a verdict of status ``error``, with its reason."""
    identity = identity_of(name)
    try:
        verifier = resolve(name)
        identity = f"{name}@{verifier.version}"
        scored = verifier.score(text, answer, args)
        return Verdict(
            status="ok",
            reward=scored.reward,
            verifier=identity,
            answer=scored.answer,
            canonical=scored.canonical,
        )
    except NoAnswer as reason:
        return Verdict(status="no_answer", reward=0.0, verifier=identity, detail=str(reason)[:MAX_DETAIL])
    except Exception as error:  # noqa: BLE001 - reported in the verdict; such a rollout is excluded and counted
        return failed(identity, f"{type(error).__name__}: {error}")


def failed(identity: str, detail: str) -> Verdict:
    return Verdict(status="error", reward=0.0, verifier=identity, detail=detail[:MAX_DETAIL])


def identity_of(name: str) -> str:
    """``name@version`` without importing a user's module."""
    return f"{name}@{BUILT_IN[name].version}" if name in BUILT_IN else f"{name}@unknown"


def check_scorable(prompt_answer: str, verifier: str, verifier_args: Args) -> str | None:
    """Why this prompt can never be scored, in one phrase, or ``None``. Run it on prompts before a run starts.

    Modules of ``python:`` verifiers are imported here, so ``run.python_path`` must be on ``sys.path``.
    """
    try:
        return resolve(verifier).problem(prompt_answer, verifier_args)
    except SettingsError as error:
        return str(error)
