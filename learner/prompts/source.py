"""Prompts by position: which prompt is issued when is a pure function of (seed, position)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import SettingsError
from common.settings import Prompts
from learner.prompts import readers
from learner.prompts.records import Prompt

FINGERPRINT_PROMPTS: Final = 256


class PromptSource:
    """All prompts of a run. Keeps no cursor: a checkpoint stores the position, and that is enough to go on."""

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, shuffle: bool = True, epochs: int | None = None):
        self._prompts = prompts
        self._seed = seed
        self._shuffle = shuffle
        self._epochs = epochs

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self._prompts[index]

    def fingerprint(self) -> str:
        """Changes when the order changes, or the prompts do (looked at in up to ``FINGERPRINT_PROMPTS`` places)."""
        step = max(1, len(self) // FINGERPRINT_PROMPTS)
        looked_at = [self[index] for index in range(0, len(self), step)]
        shown = [(one.question, one.answer, one.verifier, one.verifier_args) for one in looked_at]
        identity = repr((self._seed, self._shuffle, len(self), shown))
        return hashlib.blake2b(identity.encode(errors="backslashreplace"), digest_size=16).hexdigest()

    def order(self, position: int) -> tuple[int, int] | None:
        """``(epoch, index)`` of the prompt issued at this position, from 0; None once all epochs are issued."""
        if position < 0:
            raise IndexError(f"position={position}: positions count issued prompts, from 0")
        epoch, place = divmod(position, len(self))
        if self._epochs is not None and epoch >= self._epochs:
            return None
        return epoch, int(_permutation(self._seed, epoch, len(self))[place]) if self._shuffle else place


@lru_cache(maxsize=4)  # one epoch is read position by position; the run and its evaluation may interleave
def _permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    # a seed sequence takes no negative number
    return np.random.default_rng((seed % 2**64, epoch)).permutation(size)


def open_prompts(prompts: Prompts, python_path: Sequence[Path], seed: int) -> PromptSource:
    """Read and check the prompts that ``prompts.source`` names.

    ``python_path`` holds the folders searched for ``python:`` modules and for relative dataset folders.
    Raises SettingsError with one sentence; nothing was started then.
    """
    found = _read(prompts, python_path, seed)
    if not found:
        raise SettingsError(f"prompts.source={prompts.source!r} has no prompts")
    return PromptSource(found, seed=seed, shuffle=prompts.shuffle, epochs=prompts.epochs)


def _read(prompts: Prompts, python_path: Sequence[Path], seed: int) -> Sequence[Prompt]:
    form, _, rest = prompts.source.partition(":")
    match form:
        case "dataset" if rest:
            return readers.read_dataset(prompts, python_path)
        case "reasoning-gym" if rest:
            return readers.read_reasoning_gym(prompts, seed)
        case "python" if rest.count(":") == 1:
            return readers.read_python(prompts, python_path)
        case _ if prompts.source.endswith(".jsonl"):
            return readers.read_jsonl(prompts)
    raise SettingsError(
        f"prompts.source={prompts.source!r} is not a known form; use FILE.jsonl, dataset:NAME_OR_DIR[:SPLIT], "
        "reasoning-gym:TASK or python:MODULE:FUNCTION"
    )
