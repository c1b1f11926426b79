"""Samples to padded microbatches under a token budget (pure).

Shape letters: R rows, L padded length. All [R, L] arrays are aligned to the token they predict:
column t holds what belongs to the prediction of token t, so column 0 is never a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.messages import OBJECTIVES
from learner.samples import Sample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Microbatch:
    token_ids_RL: NDArray[np.int64]
    attention_RL: NDArray[np.int64]
    is_target_RL: NDArray[np.bool_]
    """Completion tokens: what the loss is taken over."""
    behaviour_logprobs_RL: NDArray[np.float32]
    advantages_R: NDArray[np.float32]
    objectives_R: NDArray[np.int64]
    """Index into ``OBJECTIVES``."""
    staleness_R: NDArray[np.int64]


def pack(samples: Sequence[Sample], tokens_per_microbatch: int) -> list[Microbatch]:
    """Rows of similar length together, each microbatch at most the budget of padded tokens.

    A sample longer than the budget gets a microbatch of its own. Every sample appears exactly once.
    """
    rows: list[list[Sample]] = []
    for sample in sorted(samples, key=len, reverse=True):
        if rows and (len(rows[-1]) + 1) * len(rows[-1][0]) <= tokens_per_microbatch:
            rows[-1].append(sample)
        else:
            rows.append([sample])
    return [_microbatch(part) for part in rows]


def tokens_by_objective(microbatches: Sequence[Microbatch]) -> NDArray[np.int64]:
    """Completion tokens of each objective over all microbatches: the denominators of the loss."""
    counts = np.zeros(len(OBJECTIVES), dtype=np.int64)
    for batch in microbatches:
        np.add.at(counts, batch.objectives_R, batch.is_target_RL.sum(axis=1))
    return counts


def _microbatch(samples: Sequence[Sample]) -> Microbatch:
    shape = (len(samples), max(map(len, samples)))
    token_ids, attention = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    is_target, behaviour = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.float32)
    for row, sample in enumerate(samples):
        prompt, end = len(sample.prompt_token_ids), len(sample)
        token_ids[row, :prompt], token_ids[row, prompt:end] = sample.prompt_token_ids, sample.token_ids
        attention[row, :end] = 1
        is_target[row, prompt:end] = True
        behaviour[row, prompt:end] = sample.behaviour_logprobs
    return Microbatch(
        token_ids_RL=token_ids,
        attention_RL=attention,
        is_target_RL=is_target,
        behaviour_logprobs_RL=behaviour,
        advantages_R=np.array([sample.advantage for sample in samples], dtype=np.float32),
        objectives_R=np.array([OBJECTIVES.index(sample.objective) for sample in samples]),
        staleness_R=np.array([sample.staleness for sample in samples]),
    )
