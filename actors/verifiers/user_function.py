"""``python:MODULE:FUNCTION``: the user's own verifier.

The function is ``def verify(completion: str, answer: str, **args) -> float | bool | None``. It gets the full text
of the completion, the task's gold answer and ``verifier_args`` as keyword arguments, and returns a reward
in [0, 1], or ``None`` for "no answer". ``from actors.verifiers.extract import boxed`` finds the final answer
exactly as the built-in verifiers do. An exception excludes the rollout from training; it is never a 0.
"""

import difflib
import hashlib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from actors.verifiers.base import MAX_ANSWER_CHARS, Args, NoAnswer, Scored
from actors.verifiers.extract import boxed
from common.errors import SettingsError

FORM = "python:MODULE:FUNCTION"


class UserFunction:
    """Raises SettingsError at construction if the reference names no function."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._function = _load(name)
        self.version = _source_hash(self._function)

    def warm_up(self) -> None:
        """Constructing it has imported the module."""

    def score(self, text: str, answer: str, args: Args) -> Scored:
        reward = self._function(text, answer, **args)
        if reward is None:
            raise NoAnswer(f"{self.name} returned None")
        if not isinstance(reward, int | float):
            raise TypeError(f"{self.name} returned {reward!r}; return a number in [0, 1], a bool or None")
        found = boxed(text)
        found = found if found and len(found) <= MAX_ANSWER_CHARS else None
        return Scored(reward=float(reward), answer=found, canonical=found)

    def problem(self, answer: str, args: Args) -> str | None:
        try:
            inspect.signature(self._function).bind("completion", answer, **args)
        except ValueError:
            return f"{self.name} does not say what it takes; wrap it in a function (completion, answer, **args)"
        except TypeError as error:
            return f"{self.name} cannot be called as (completion, answer, **verifier_args): {error}"
        return None


def _load(name: str) -> Callable[..., Any]:
    _, _, reference = name.partition(":")
    module_name, _, function_name = reference.partition(":")
    if not module_name or not function_name:
        raise SettingsError(f"verifier {name!r}: write {FORM}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise SettingsError(
            f"verifier {name!r}: importing {module_name} failed with {type(error).__name__}: {error}; "
            "folders listed in run.python_path are searched"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        near = difflib.get_close_matches(function_name, vars(module), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingsError(f"verifier {name!r}: {module_name} has no function {function_name}{hint}")
    return function  # type: ignore[no-any-return]


def _source_hash(function: Callable[..., Any]) -> str:
    """Version of a function: its own source. What it calls elsewhere is not covered."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return "unknown"  # compiled, or made at run time
    return hashlib.blake2b(source.encode(), digest_size=4).hexdigest()
