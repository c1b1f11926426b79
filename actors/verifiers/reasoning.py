"""``reasoning-gym``: a procedural task scored by its own data set."""

from typing import Any

from actors.verifiers.base import Args, Scored, final_answer
from common.errors import SettingsError


class ReasoningGym:
    """``verifier_args``: ``{"task": name, "entry": {"question": ..., "answer": ..., "metadata": {...}}}``.

    ``entry`` is what the data set generated. If it has no ``answer``, the task's gold answer is put there.
    """

    name = "reasoning-gym"
    version = "1"

    def warm_up(self) -> None:
        _library()

    def score(self, text: str, answer: str, args: Args) -> Scored:
        score_answer, entry = _scorer(answer, args)
        found = final_answer(text)
        # equality of the text is the only equivalence that holds for every data set
        return Scored(reward=float(score_answer(answer=found, entry=entry)), answer=found, canonical=found)

    def problem(self, answer: str, args: Args) -> str | None:
        try:
            score_answer, entry = _scorer(answer, args)
        except ValueError as error:
            return str(error)
        try:
            score_answer(answer=answer, entry=entry)
        except Exception as error:  # noqa: BLE001 - reported as the reason
            return f"the data set cannot score its own answer: {type(error).__name__}: {error}"
        return None


def _library() -> Any:
    try:
        import reasoning_gym.factory as factory
    except ImportError as error:
        raise SettingsError(
            f"the verifier reasoning-gym needs a package that is missing ({error}); "
            "install it with: pip install -e '.[reasoning-gym]'"
        ) from error
    return factory


def _scorer(answer: str, args: Args) -> tuple[Any, dict[str, Any]]:
    """Raises ValueError if ``args`` name no data set."""
    factory = _library()
    name, entry = args.get("task"), args.get("entry", {})
    if not isinstance(name, str) or name not in factory.DATASETS:
        raise ValueError(f"verifier_args.task={name!r} is no reasoning-gym data set")
    if not isinstance(entry, dict):
        raise ValueError(f"verifier_args.entry={entry!r} must be the table that the data set generated")
    return factory.get_score_answer_fn(name), {"answer": answer, "metadata": {}, **entry}
