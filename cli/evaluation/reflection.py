"""Does a model repair wrong answers (fix) and spoil right ones (break)? Beside it, answering afresh (resolve)."""

from __future__ import annotations

from collections.abc import Sequence

from cli.evaluation.asking import Asking, outcome_of
from cli.evaluation.figures import Figure, Outcome, clustered_share, share_of
from cli.evaluation.judging import Pairs
from cli.evaluation.sampler import Sampler
from learner.prompts import Prompt

FORMS = {"answer": False, "response": True}
"""What a neutral template shows of the earlier attempt: only its answer, or the whole response."""


def measure_reflection(sampler: Sampler, asking: Asking, pairs: Pairs, prompts: Sequence[Prompt]) -> dict[str, Figure]:
    """``fix``: reflection on a wrong answer ends right. ``break``: reflection on a right one ends wrong.

    Both are averaged over the forms that the template set has. ``resolve`` is the accuracy of plain answers to
    the same prompts: a fix rate that is no higher shows solving again, not repair.
    """
    figures = {"resolve": _resolve(sampler, asking, prompts)}
    forms = {name: shows for name, shows in FORMS.items() if asking.neutral(shows)}
    fixed, broken = {}, {}
    for name, shows_response in forms.items():
        broken[name], fixed[name] = _reflect(sampler, asking, pairs, name, shows_response)
        figures[f"fix_{name}"] = share_of(fixed[name], f"fix_{name}")
        figures[f"break_{name}"] = share_of(broken[name], f"break_{name}")
    figures["fix"] = clustered_share(zip(*fixed.values(), strict=True), "fix")
    figures["break"] = clustered_share(zip(*broken.values(), strict=True), "break")
    return figures


def _resolve(sampler: Sampler, asking: Asking, prompts: Sequence[Prompt]) -> Figure:
    groups = sampler([asking.solve(prompt, "resolve") for prompt in prompts], "resolve")
    return share_of(map(outcome_of, groups), "resolve")


def _reflect(
    sampler: Sampler, asking: Asking, pairs: Pairs, name: str, shows_response: bool
) -> tuple[list[Outcome], list[Outcome]]:
    """(is the right answer lost, is the wrong one repaired) per pair."""
    tasks = [
        asking.reflect(source, index, "reflect", shows_response=shows_response)
        for index, pair in enumerate(pairs)
        for source in pair
    ]
    ends_right = [outcome_of(group) for group in sampler(tasks, f"reflect on {name}")]
    return [None if right is None else not right for right in ends_right[0::2]], ends_right[1::2]
