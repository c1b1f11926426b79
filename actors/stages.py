"""Where an actor is, what it waits for, and who should end the wait: for its watchdog."""

from __future__ import annotations

from typing import Final

from actors.policy import PolicyFollower
from common.keys import LEARNER
from common.watchdog import Stage

WAIT_FOR_TASKS: Final = Stage(
    name="wait_for_tasks",
    waits_for="a task",
    unblocked_by="the learner, which issues prompts when it publishes, or the recycler",
    owner=LEARNER,
    idle=True,
)


def stage_of(policy: PolicyFollower, *, running: int, unverified: int, paused: bool) -> Stage:
    """``running`` and ``unverified``: groups. ``paused``: the server takes no results at the moment."""
    if policy.trouble:
        return Stage(
            name="load_weights",
            waits_for=f"weights of version {policy.published_version} that load: {policy.trouble}",
            unblocked_by="the learner's next version, or whole files where the weights lie",
            owner=LEARNER,
        )
    if not policy.may_generate:
        return Stage(
            name="wait_for_weights", waits_for=policy.wanted, unblocked_by="the learner publishing", owner=LEARNER
        )
    if paused:
        return Stage(
            name="ship",
            waits_for=f"room on the server for {unverified} groups",
            unblocked_by="the learner's checkpoints, or more memory or disk for the server",
            owner=LEARNER,
        )
    if running:
        return Stage(
            name="generate", waits_for=f"the completions of {running} groups", unblocked_by="the engine of this actor"
        )
    if unverified:
        return Stage(
            name="verify",
            waits_for=f"the verdicts of {unverified} groups",
            unblocked_by="the verifier processes, or verifier.timeout_s",
        )
    return WAIT_FOR_TASKS
