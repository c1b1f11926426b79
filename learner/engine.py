"""What the learner's loop asks of a training engine. Framework-neutral: ``TorchEngine`` is the one that trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.settings import Settings
from learner.packing import Microbatch


class Engine(Protocol):
    """Owns the trained model. A policy version is one optimizer step."""

    policy_version: int

    @property
    def sample_losses(self) -> NDArray[np.float64] | None:
        """What each sample added to the ``loss`` of the last step, in the order in which they were packed; they sum
        to it. None before the first step, and where an engine cannot tell.
        """
        ...

    def use(self, settings: Settings) -> None:
        """Other settings from the next step on; they differ in what ``common.live.LIVE`` lists only."""
        ...

    def old_logprobs(self, microbatches: Sequence[Microbatch]) -> Sequence[Any]:
        """Log-probs [N] of every microbatch under the weights as they are now."""
        ...

    def step(self, microbatches: Sequence[Microbatch], old: Sequence[Any] | None = None) -> dict[str, float]:
        """One optimizer step on the joint batch; returns its metrics. ``old``: what ``ppo`` takes the ratio to.

        Raises SettingsError when it leaves weights that are not finite: nothing may be made of them.
        """
        ...

    def write_weights(self, folder: Path) -> None:
        """What actors load. Raises OSError, on a full disk among others."""
        ...

    def write_checkpoint(self, folder: Path) -> None:
        """Everything that a resumed engine needs. Raises OSError, on a full disk among others."""
        ...

    def read_checkpoint(self, folder: Path, policy_version: int) -> None:
        """Go on from what ``write_checkpoint`` wrote. Raises SettingsError when it is of another model."""
        ...

    def export(self, folder: Path) -> None:
        """A directory that users load."""
        ...
