"""What an actor asks of an inference engine. The actor owns the step loop, so weights change only between steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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
    """Version of the applied weights; -1 before the first."""

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
        """Sample one more token of every running completion; returns the groups that are now complete."""
        ...

    def forget(self) -> None:
        """Drop every group in flight: none of them is returned by ``step`` any more."""
        ...

    def apply(self, files: Sequence[Path], policy_version: int) -> None:
        """Replace the weights, all or nothing. Tokens from now on carry ``policy_version`` in their spans.

        Raises WeightsError and keeps the old weights when the files do not fit the model.
        """
        ...
