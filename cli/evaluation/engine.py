"""The engine and the verifiers of an evaluation. torch is imported here, when it is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from actors.engine import Engine
from actors.verifiers.pool import InlineVerifier, VerifierPool
from actors.verifying import PendingVerdicts
from cli.evaluation.sampler import Sampler
from common.messages import Completion, Task
from common.settings import Settings

TOKENS_PER_BATCH: Final = 32_768
"""Prompt and new tokens of the completions generated together, at most: bounds the memory of the KV cache."""
COMPARES_STRINGS: Final = frozenset({"exact", "choice", "verdict"})
"""Verifiers that can neither hang nor crash: they run here. All others run in processes that can be killed."""


@contextmanager
def open_sampler(settings: Settings) -> Iterator[Sampler]:
    """The model of the settings, loaded once, ready to be asked. Raises SettingsError."""
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.actor.torch_threads))  # read when torch is imported
    import torch

    threads_before = torch.get_num_threads()
    verifiers = _Verifiers(settings)
    torch.set_num_threads(settings.actor.torch_threads)
    try:
        yield Sampler(_engine(settings), verifiers, tokens_per_batch=TOKENS_PER_BATCH)
    finally:
        torch.set_num_threads(threads_before)
        verifiers.close()


def _engine(settings: Settings) -> Engine:
    from actors.transformers_engine import TransformersEngine, load_model

    model, tokenizer = load_model(settings.model)
    engine = TransformersEngine(
        model,
        tokenizer,
        groups_per_batch=TOKENS_PER_BATCH,  # the sampler adds one batch at a time
        max_prompt_tokens=settings.sampling.max_prompt_tokens,
    )
    engine.policy_version = 0  # the weights are there: nothing is published to an evaluation
    return engine


class _Verifiers:
    """The pool is started by the first task that needs it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._inline = InlineVerifier()
        self._pool: VerifierPool | None = None

    def submit(self, task: Task, completions: Sequence[Completion]) -> PendingVerdicts:
        if task.verifier in COMPARES_STRINGS:
            return self._inline.submit(task, completions)
        if self._pool is None:
            self._pool = VerifierPool(
                workers=self._settings.verifier.workers,
                timeout_s=self._settings.verifier.timeout_s,
                memory_mb=self._settings.verifier.memory_mb,
                python_path=self._settings.run.python_path,
            )
        return self._pool.submit(task, completions)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
