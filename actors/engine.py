"""What an actor asks of an inference engine. The actor owns the step loop, so weights change only between steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.errors import TaskError
from common.messages import ChatMessage, Completion, Sampling


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One group to generate: ``sampling.n`` completions of one prompt. ``key`` comes back with the result."""

    key: str
    prompt_token_ids: NDArray[np.int32]
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generated:
    request: Request
    completions: tuple[Completion, ...]


class Engine(Protocol):
    """Batched generation under one set of weights that may be replaced between two steps."""

    policy_version: int
    """Version of the applied weights; -1 before the first, and while an update that failed half-way left them mixed."""

    @property
    def groups_in_flight(self) -> int:
        """Groups added and not yet returned by ``step``."""
        ...

    def tokenize(self, messages: Sequence[ChatMessage]) -> NDArray[np.int32]:
        """Prompt token ids of a chat. Raises TaskError for a prompt this engine can never generate from."""
        ...

    def add(self, request: Request) -> None:
        """Queue a group. Raises TaskError when it can never be generated (too long)."""
        ...

    def step(self) -> list[Generated]:
        """Sample one more token of every running completion; returns the groups that are now complete.

        Nothing is sampled while ``policy_version`` is -1.
        """
        ...

    def forget(self) -> None:
        """Drop every group in flight: none of them is returned by ``step`` any more."""
        ...

    def apply(self, files: Sequence[Path], policy_version: int) -> None:
        """Replace the weights, all or nothing. Tokens from now on carry ``policy_version`` in their spans.

        Raises WeightsError: the old weights are kept when the files do not fit the model, and ``policy_version`` is -1
        when they were half replaced, until another ``apply`` succeeds.
        """
        ...


def check_request(request: Request, *, max_prompt_tokens: int, positions: int | None) -> None:
    """Raise TaskError for what can never be generated. ``positions``: the model's limit in tokens, if it has one."""
    prompt, new = len(request.prompt_token_ids), request.sampling.max_new_tokens
    if min(prompt, new, request.sampling.n) < 1 or request.sampling.seed < 0:
        raise TaskError(f"prompt of {prompt} tokens with {request.sampling} asks for nothing that can be sampled")
    if prompt > max_prompt_tokens:
        raise TaskError(f"prompt of {prompt} tokens is over sampling.max_prompt_tokens={max_prompt_tokens}")
    if positions is not None and prompt + new > positions:
        raise TaskError(f"prompt of {prompt} tokens + max_new_tokens={new} is over the model's {positions} positions")
