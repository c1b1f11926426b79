"""Builders of archived groups for the tests of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.archive import ArchivedGroup, pack
from common.codec import encode
from common.messages import (
    ChatMessage,
    Completion,
    Objective,
    Outcome,
    Rollout,
    RolloutGroup,
    Sampling,
    SourceRef,
    Task,
    Verdict,
)


def rollout(reward: float, text: str, *, answer: str = "7", status: str = "ok", version: int = 3) -> Rollout:
    completion = Completion(
        token_ids=np.array([5, 6, 7], dtype=np.int32),
        logprobs=np.array([-0.5, -0.25, -1.0], dtype=np.float32),
        spans=((version, 0), (version + 1, 2)),
        finish_reason="stop",
        text=text,
    )
    read = answer if status == "ok" else None
    return Rollout(
        completion=completion,
        verdict=Verdict(status=status, reward=reward, verifier="exact@1", answer=read),  # type: ignore[arg-type]
    )


def archived(
    uid: str,
    rewards: Sequence[float] = (1.0, 0.0),
    *,
    objective: Objective = "solve",
    positive: bool | None = None,
    sources: Sequence[tuple[str, int]] = (),
    version: int = 5,
    outcome: Outcome = "trained",
    prompt: str = "What is 3 + 4?",
    text: str = "the answer",
    actor: str = "actor-0",
    statuses: Sequence[str] = (),
) -> ArchivedGroup:
    """Advantages are rewards less their mean; sibling k wrote ``TEXT k``."""
    mean = sum(rewards) / len(rewards)
    task = Task(
        uid=uid,
        objective=objective,
        messages=(ChatMessage.user(prompt),),
        question=prompt,
        answer="7",
        verifier="exact",
        sampling=Sampling(n=len(rewards), max_new_tokens=8),
        template="plain",
        dataset_index=-1 if sources else 11,
        sources=tuple(
            SourceRef(
                uid=source,
                sample=sample,
                answer_hash="0" * 16,
                policy_version=2,
                weights_epoch=1,
                correct=bool(positive),
                verifier="exact@1",
            )
            for source, sample in sources
        ),
        positive=positive,
        issued_version=2,
    )
    group = RolloutGroup(
        task=task,
        prompt_token_ids=np.array([1], dtype=np.int32),
        rollouts=tuple(
            rollout(reward, f"{text} {place}", status=statuses[place] if statuses else "ok")
            for place, reward in enumerate(rewards)
        ),
        actor=actor,
        weights_epoch=1,
        generated_at=1_700_000_000.0,
    )
    return ArchivedGroup(
        group=group,
        outcome=outcome,
        policy_version=version,
        staleness=1,
        content_staleness=3 if sources else None,
        advantages=tuple(reward - mean for reward in rewards),
        loss=tuple(0.25 for _ in rewards) if outcome == "trained" else None,
        at=1_700_000_000.0 + version,
    )


def write_archive(folder: Path, *steps: Sequence[ArchivedGroup]) -> None:
    """One block per step, in one segment."""
    folder.mkdir()
    blocks = [block for step in steps for block in pack(_encoded(step), step[0].policy_version)]
    (folder / "e000001-s00000001.groups").write_bytes(b"".join(blocks))


def _encoded(step: Sequence[ArchivedGroup]) -> list[tuple[ArchivedGroup, bytes]]:
    return [(record, encode(record)) for record in step]
