"""Builders of scored groups. Sample codes: r right, w wrong, u wrong in another way, n no answer, e verifier error."""

from collections.abc import Callable

import numpy as np
import pytest

from common.messages import (
    ChatMessage,
    Completion,
    ImagePart,
    Rollout,
    RolloutGroup,
    Sampling,
    Task,
    TextPart,
    Verdict,
    uid_of,
)
from common.settings import Recycler
from common.settings import Sampling as SamplingSettings
from common.templates import TemplateSet, load_templates
from recycler.reservoir import Reservoir

MakeGroup = Callable[..., RolloutGroup]
_IDS = np.array([5, 6, 7], dtype=np.int32)
_LOGPROBS = np.array([-0.5, -0.25, -1.0], dtype=np.float32)
_ANSWERS = {"r": ("42", "42"), "w": ("41", "41"), "u": ("7", "7")}


def _rollout(code: str, sample: int, version: int) -> Rollout:
    if code in _ANSWERS:
        answer, canonical = _ANSWERS[code]
        verdict = Verdict(
            status="ok", reward=float(code == "r"), verifier="exact@1", answer=answer, canonical=canonical
        )
    else:
        verdict = Verdict(status="error" if code == "e" else "no_answer", reward=0.0, verifier="exact@1")
    completion = Completion(
        token_ids=_IDS,
        logprobs=_LOGPROBS,
        spans=((version, 0),),
        finish_reason="stop",
        text=f"attempt {sample}: \\boxed{{{verdict.answer}}}",
    )
    return Rollout(completion=completion, verdict=verdict)


def _group(codes: str, index: int = 0, version: int = 0, image: str | None = None) -> RolloutGroup:
    question = f"What is the answer to question {index}?"
    parts = (TextPart(text=f"{question} Think, then answer."),)
    task = Task(
        uid=uid_of("run", index),
        objective="solve",
        messages=(ChatMessage(role="user", content=parts if image is None else (*parts, ImagePart(sha256=image))),),
        question=question,
        answer="42",
        verifier="exact",
        verifier_args={"strict": True},
        sampling=Sampling(n=len(codes), max_new_tokens=64),
        dataset_index=index,
    )
    return RolloutGroup(
        task=task,
        prompt_token_ids=_IDS,
        rollouts=tuple(_rollout(code, sample, version) for sample, code in enumerate(codes)),
        actor="a0",
        weights_epoch=1,
        generated_at=0.0,
    )


def _reservoir(templates: TemplateSet | None = None, seed: int = 0, **recycler: object) -> Reservoir:
    return Reservoir(
        Recycler.model_validate(recycler),
        SamplingSettings(group_size=8, max_new_tokens=64, judge_max_new_tokens=16),
        templates or load_templates("default"),
        run="run",
        seed=seed,
    )


@pytest.fixture(scope="session")
def make_group() -> MakeGroup:
    return _group


@pytest.fixture(scope="session")
def make_reservoir() -> Callable[..., Reservoir]:
    return _reservoir
