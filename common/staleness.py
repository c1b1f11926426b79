"""Bounded staleness: the pure rules behind the three gates. staleness.md holds the argument.

All versions count optimizer steps. B is ``groups_per_step``, u is ``updates_per_batch``.
"""

from __future__ import annotations

from common.messages import RolloutGroup


def groups_in_flight_allowed(groups_per_step: int, updates_per_batch: int, max_staleness: int) -> int:
    """Admission gate: how many groups of one stream may be issued and not yet ended.

    AReaL admits while floor((issued - 1) / B) * u <= version + eta. Trained groups number
    (version / u) * B, so the same rule reads: in flight < (floor(eta / u) + 1) * B.
    """
    return (max_staleness // updates_per_batch + 1) * groups_per_step


def may_generate(applied_version: int, published_version: int, max_staleness: int) -> bool:
    """Generation gate: an actor further behind than this waits for weights before it samples."""
    return published_version - applied_version <= max_staleness


def token_staleness(group: RolloutGroup, policy_version: int) -> int:
    """Learner's version minus the oldest version that sampled a token of the group."""
    return policy_version - group.oldest_version


def content_staleness(group: RolloutGroup, policy_version: int) -> int:
    """Learner's version minus the oldest version that wrote what is judged; 0 for a dataset prompt."""
    written = group.task.content_version
    return 0 if written is None else policy_version - written


def fresh(group: RolloutGroup, policy_version: int, max_staleness: int, max_content_staleness: int) -> bool:
    """Learner gate: may this group be trained on now? The guarantee; the other gates only prevent waste."""
    return (
        token_staleness(group, policy_version) <= max_staleness
        and content_staleness(group, policy_version) <= max_content_staleness
    )
