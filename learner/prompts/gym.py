"""Problems of reasoning-gym, generated when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, overload

from common.errors import SettingsError
from common.messages import ChatMessage
from learner.prompts.records import Prompt

VERIFIER = "reasoning-gym"


class GymPrompts(Sequence[Prompt]):
    """One task of reasoning-gym with fixed parameters: the same index always gives the same problem."""

    def __init__(self, task: str, parameters: dict[str, Any]) -> None:
        self._task = task
        self._problems = _create(task, parameters)
        _reject_lossy(self._task, self._problems)

    def __len__(self) -> int:
        return len(self._problems)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"index={index} is outside 0..{len(self) - 1}")
        entry = _as_json(self._problems[index])
        return Prompt(
            index=index,
            question=entry["question"],
            messages=(ChatMessage.user(entry["question"]),),
            answer=entry["answer"] or "",  # tasks with many right answers have no gold one
            verifier=VERIFIER,
            verifier_args={"task": self._task, "entry": entry},
        )


def _create(task: str, parameters: dict[str, Any]) -> Any:
    try:
        import reasoning_gym
    except ImportError:
        raise SettingsError(
            f"reasoning-gym:{task} needs the package reasoning-gym; install spark-rl[reasoning-gym]"
        ) from None
    try:
        return reasoning_gym.create_dataset(task, **parameters)
    except (AssertionError, TypeError, ValueError) as error:  # how its configs refuse values
        raise SettingsError(f"reasoning-gym:{task} with {parameters!r}: {error}") from None


def _reject_lossy(task: str, problems: Any) -> None:
    """Entries travel as JSON. A few tasks tell tuples from lists, and would score their own gold answer as wrong."""
    if not len(problems):
        return
    entry = problems[0]
    kept, sent = (problems.score_answer(entry["answer"], form) for form in (entry, _as_json(entry)))
    if kept != sent:
        raise SettingsError(
            f"reasoning-gym:{task}: its entries change when sent as JSON (the gold answer scores {sent}, not {kept}); "
            "choose another task, or write a python: source with its own verifier"
        )


def _as_json(entry: dict[str, Any]) -> dict[str, Any]:
    converted: dict[str, Any] = json.loads(json.dumps(entry))
    return converted
