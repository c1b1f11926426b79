"""Builders of scored groups and samples for the learner's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_llama import VOCABULARY, tiny_llama, tiny_tokenizer

from common.messages import (
    ChatMessage,
    Completion,
    Objective,
    Rollout,
    RolloutGroup,
    Sampling,
    SourceRef,
    Task,
    Verdict,
    uid_of,
)
from learner.samples import Sample

MakeGroup = Callable[..., RolloutGroup]


def make_group(
    index: int = 0,
    rewards: Sequence[float | None] = (1.0, 0.0),
    *,
    objective: Objective = "solve",
    version: int = 0,
    content_version: int | None = None,
    positive: bool | None = None,
    tokens: int = 3,
) -> RolloutGroup:
    """A group of ``index``; a reward of None is a verifier error."""
    written = version if content_version is None else content_version
    source = SourceRef(
        uid="s", sample=0, answer_hash="h", policy_version=written, weights_epoch=1, correct=True, verifier="exact@1"
    )
    task = Task(
        uid=uid_of(objective, index),
        objective=objective,
        messages=(ChatMessage.user("q"),),
        question="q",
        answer="a",
        verifier="exact",
        sampling=Sampling(n=len(rewards), max_new_tokens=8),
        sources=() if objective == "solve" else (source,),
        positive=positive,
    )
    return RolloutGroup(
        task=task,
        prompt_token_ids=np.array([5, 6], dtype=np.int32),
        rollouts=tuple(_rollout(reward, version, tokens) for reward in rewards),
        actor="a0",
        weights_epoch=1,
        generated_at=0.0,
    )


def _rollout(reward: float | None, version: int, tokens: int) -> Rollout:
    status = "error" if reward is None else "ok"
    completion = Completion(
        token_ids=np.arange(7, 7 + tokens, dtype=np.int32),
        logprobs=np.full(tokens, -1.0, dtype=np.float32),
        spans=((version, 0),),
        finish_reason="stop",
        text="t",
    )
    return Rollout(completion=completion, verdict=Verdict(status=status, reward=reward or 0.0, verifier="exact@1"))


def make_sample(
    rng: np.random.Generator, *, prompt: int, tokens: int, objective: Objective = "solve", staleness: int = 0
) -> Sample:
    """Random tokens of the tiny model's vocabulary; every number is different from the others."""
    return Sample(
        objective=objective,
        prompt_token_ids=rng.integers(3, VOCABULARY, prompt).astype(np.int32),
        token_ids=rng.integers(3, VOCABULARY, tokens).astype(np.int32),
        behaviour_logprobs=(-3.0 * rng.random(tokens)).astype(np.float32),
        advantage=float(rng.normal()),
        staleness=staleness,
    )


@pytest.fixture(name="make_group", scope="session")
def make_group_fixture() -> MakeGroup:
    return make_group


@pytest.fixture(name="make_sample", scope="session")
def make_sample_fixture() -> Callable[..., Sample]:
    return make_sample


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a word-level tokenizer, as a Hugging Face directory."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_llama(0, initializer_range=0.3).save_pretrained(folder)
    tiny_tokenizer("{% for m in messages %}{{ m['content'] }} {% endfor %}").save_pretrained(folder)
    return folder
