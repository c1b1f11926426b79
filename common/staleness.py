"""Bounded staleness: the pure rules behind the three gates. staleness.md holds the argument.

All versions count optimizer steps. B is ``groups_per_step``, u is ``updates_per_batch``.
"""

from __future__ import annotations

from common.lineage import ONE_LINE, Lineage
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


def token_staleness(group: RolloutGroup, policy_version: int, lineage: Lineage = ONE_LINE) -> int:
    """Optimizer steps between the learner's weights and the furthest ones that sampled a token of the group."""
    sampled_by = {version for rollout in group.rollouts for version, _ in rollout.completion.spans}
    return max(lineage.distance(group.weights_epoch, version, policy_version) for version in sampled_by)


def content_staleness(group: RolloutGroup, policy_version: int, lineage: Lineage = ONE_LINE) -> int:
    """Optimizer steps between the learner's weights and the furthest that wrote what is judged; 0 without sources."""
    return max(
        (lineage.distance(s.weights_epoch, s.policy_version, policy_version) for s in group.task.sources), default=0
    )


def fresh(
    group: RolloutGroup,
    policy_version: int,
    max_staleness: int,
    max_content_staleness: int,
    lineage: Lineage = ONE_LINE,
) -> bool:
    """Learner gate: may this group be trained on now? The guarantee; the other gates only prevent waste."""
    return (
        token_staleness(group, policy_version, lineage) <= max_staleness
        and content_staleness(group, policy_version, lineage) <= max_content_staleness
    )


def of_lost_weights(group: RolloutGroup, lineage: Lineage) -> bool:
    """Some token was sampled by weights that a resumed learner no longer has."""
    return any(lineage.is_orphan(group.weights_epoch, rollout.completion.spans[-1][0]) for rollout in group.rollouts)
