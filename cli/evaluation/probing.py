"""Does the judge accept answers that say nothing? Empty ones and "master keys" are shown to it (learner/probes.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from cli.evaluation.answer_pool import Item, Shown, sources_of
from cli.evaluation.asking import Asking, outcome_of
from cli.evaluation.figures import Figure, Outcome, clustered_share
from cli.evaluation.judging import unreadable
from cli.evaluation.sampler import Sampler
from common.messages import RolloutGroup
from learner.probes import PROBES
from recycler.judge_tasks import Source

MOST_PROMPTS: Final = 128
"""Questions under which every probe is shown."""


def measure_probes(sampler: Sampler, asking: Asking, items: Sequence[Item]) -> dict[str, Figure]:
    """``false_positive_empty`` and ``false_positive_master_key``: share of the verdicts that accept one.

    A verdict that cannot be read accepts nothing. Probes of one question depend on each other.
    """
    items, figures = items[:MOST_PROMPTS], {}
    for kind, texts in PROBES.items():
        shown = [(place, text) for place, item in enumerate(items) for text in texts if text != item.prompt.answer]
        tasks = [
            asking.pointwise(_source(items[place], text, asking), index, f"probe {kind}")
            for index, (place, text) in enumerate(shown)
        ]
        accepted: list[list[Outcome]] = [[] for _ in items]
        for (place, _), group in zip(shown, sampler(tasks, f"probe {kind}"), strict=True):
            accepted[place].append(_accepts(group))
        figures[f"false_positive_{kind}"] = clustered_share(accepted, f"false_positive_{kind}")
    return figures


def _source(item: Item, text: str, asking: Asking) -> Source:
    """The probe as a wrong answer to the item's question."""
    probe = Shown(answer=text, canonical=text, response=text, verifier=item.wrong.verifier)
    return sources_of(replace(item, wrong=probe), asking)[1]


def _accepts(group: RolloutGroup | None) -> Outcome:
    """The answer is wrong, so a readable verdict that is not right accepts it."""
    right, unread = outcome_of(group), unreadable(group)
    return None if right is None else not right and not unread
