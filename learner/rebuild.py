"""Rebuilding a run on a server that lost it: from what the newest checkpoint knows."""

from __future__ import annotations

from collections.abc import Iterator

import structlog

from common.settings import Settings
from common.streams import Product, Streams
from common.templates import TemplateSet
from learner.checkpoint import State
from learner.issuer import task_at
from learner.prompts import PromptSource

log = structlog.get_logger()


def rebuild(
    streams: Streams,
    token: str,
    state: State,
    prompts: PromptSource,
    templates: TemplateSet,
    settings: Settings,
) -> int:
    """Start the run's data on the server anew, without a name yet: one that is cut short is begun again.

    What the checkpoint trained stays trained. Every other prompt below its cursor is issued again, as the same uid.
    Judge tasks that were in flight are forgotten: new ones come of the new rollouts. Returns how many are issued again.
    Raises Fenced, ServerFull, WipedServer.
    """
    ended = state.ended.counts()
    counts = {f"{outcome}:{kind}": number for (outcome, kind), number in ended.items()}
    counts["issued:policy"] = state.cursor
    counts["issued:judge"] = sum(number for (_, kind), number in ended.items() if kind == "judge")
    streams.rebuild(token, state.cursor, counts)
    parked = streams.park(token, _unended(state, prompts, templates, settings))
    log.warning("learner.rebuilt", cursor=state.cursor, **counts)
    return parked


def _unended(state: State, prompts: PromptSource, templates: TemplateSet, settings: Settings) -> Iterator[Product]:
    for position in range(state.cursor):
        task = task_at(position, prompts, templates, settings, policy_version=state.policy_version)
        if task is not None and task.uid not in state.ended:
            yield Product.of(task.uid, task)
