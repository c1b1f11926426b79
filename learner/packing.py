"""Samples to packed microbatches under a token budget (pure). packing.md says how they are run, and why so.

Shape letters: T tokens of a microbatch, S samples (segments of it), N completion tokens. All [T] arrays are aligned to
the token they predict: place t holds what belongs to the prediction of token t, so the first token of a segment is
never a target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.messages import OBJECTIVES
from learner.samples import Sample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Microbatch:
    """Samples one after another, without padding. Only arrays: ``arrays`` and ``from_arrays`` are the whole of it."""

    token_ids_T: NDArray[np.int64]
    is_target_T: NDArray[np.bool_]
    """Completion tokens: what the loss is taken over."""
    behaviour_logprobs_T: NDArray[np.float32]
    starts_S1: NDArray[np.int64]
    """Where each segment starts, and T at the end: [S + 1]."""
    advantages_S: NDArray[np.float32]
    objectives_S: NDArray[np.int64]
    """Index into ``OBJECTIVES``."""
    staleness_S: NDArray[np.int64]
    samples_S: NDArray[np.int64]
    """Place of each sample among those that were packed; -1 for one that is none of them."""

    @property
    def lengths_S(self) -> NDArray[np.int64]:
        return np.diff(self.starts_S1)

    @property
    def targets_N(self) -> NDArray[np.int64]:
        """Places of the completion tokens, ascending."""
        return np.flatnonzero(self.is_target_T)

    @property
    def segment_of_N(self) -> NDArray[np.int64]:
        """The segment that each completion token is in."""
        return np.searchsorted(self.starts_S1, self.targets_N, side="right") - 1

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Name -> array, C-contiguous: what one rank sends to another."""
        return {field.name: np.ascontiguousarray(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Microbatch:
        """The inverse of ``arrays``. Raises KeyError when one is missing."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def pack(samples: Sequence[Sample], tokens_per_microbatch: int) -> list[Microbatch]:
    """First fit, the longest first: each microbatch holds at most the budget of tokens.

    A sample longer than the budget gets a microbatch of its own. Every sample appears exactly once.
    """
    bins = _first_fit([len(sample) for sample in samples], tokens_per_microbatch)
    return [_microbatch([samples[index] for index in members], members) for members in bins]


def rows_for_padding(microbatches: Sequence[Microbatch], tokens_per_microbatch: int) -> list[Microbatch]:
    """The same samples for a model that cannot run them packed: samples of similar length together.

    As rows padded to its longest, a microbatch has at most the budget of tokens, unless it is one sample.
    """
    places = [(batch, segment) for batch in microbatches for segment in range(len(batch.advantages_S))]
    places.sort(key=lambda place: -int(place[0].lengths_S[place[1]]))
    groups: list[list[tuple[Microbatch, int]]] = []
    for batch, segment in places:
        longest = int(groups[-1][0][0].lengths_S[groups[-1][0][1]]) if groups else 0
        if groups and (len(groups[-1]) + 1) * longest <= tokens_per_microbatch:
            groups[-1].append((batch, segment))
        else:
            groups.append([(batch, segment)])
    return [_join(group) for group in groups]


def empty_microbatch() -> Microbatch:
    """A microbatch without a completion token: its loss and its gradient are zero, its forward pass is a real one.

    Ranks that have fewer microbatches than others fill up with it, so that all make the same collective calls.
    """
    return Microbatch(
        token_ids_T=np.zeros(2, dtype=np.int64),
        is_target_T=np.zeros(2, dtype=np.bool_),
        behaviour_logprobs_T=np.zeros(2, dtype=np.float32),
        starts_S1=np.array([0, 2]),
        advantages_S=np.zeros(1, dtype=np.float32),
        objectives_S=np.zeros(1, dtype=np.int64),
        staleness_S=np.zeros(1, dtype=np.int64),
        samples_S=np.full(1, -1),
    )


def tokens_by_objective(microbatches: Sequence[Microbatch]) -> NDArray[np.int64]:
    """Completion tokens of each objective over all microbatches: the denominators of the loss."""
    counts = np.zeros(len(OBJECTIVES), dtype=np.int64)
    for batch in microbatches:
        np.add.at(counts, batch.objectives_S[batch.segment_of_N], 1)
    return counts


def count_samples(microbatches: Sequence[Microbatch]) -> int:
    return sum(len(batch.samples_S) for batch in microbatches)


def _first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Indices per bin; first-fit-decreasing needs at most 11/9 of the fewest bins, and one more (Johnson 1973)."""
    bins: list[list[int]] = []
    left: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        found = next((place for place, free in enumerate(left) if lengths[index] <= free), None)
        if found is None:
            bins.append([index])
            left.append(room - lengths[index])
        else:
            bins[found].append(index)
            left[found] -= lengths[index]
    return bins


def _microbatch(samples: Sequence[Sample], places: Sequence[int]) -> Microbatch:
    """``places``: of the samples in the batch."""
    starts = np.cumsum([0, *map(len, samples)])
    is_target, behaviour = np.zeros(starts[-1], dtype=np.bool_), np.zeros(starts[-1], dtype=np.float32)
    for start, sample in zip(starts, samples, strict=False):
        first, end = start + max(len(sample.prompt_token_ids), 1), start + len(sample)
        is_target[first:end] = True
        behaviour[first:end] = sample.behaviour_logprobs[len(sample.token_ids) - (end - first) :]
    return Microbatch(
        token_ids_T=np.concatenate([ids for s in samples for ids in (s.prompt_token_ids, s.token_ids)], dtype=np.int64),
        is_target_T=is_target,
        behaviour_logprobs_T=behaviour,
        starts_S1=starts,
        advantages_S=np.array([sample.advantage for sample in samples], dtype=np.float32),
        objectives_S=np.array([OBJECTIVES.index(sample.objective) for sample in samples]),
        staleness_S=np.array([sample.staleness for sample in samples]),
        samples_S=np.array(places),
    )


def _join(places: Sequence[tuple[Microbatch, int]]) -> Microbatch:
    """One microbatch of some segments of others."""
    spans = [(batch, slice(*batch.starts_S1[segment : segment + 2])) for batch, segment in places]
    return Microbatch(
        token_ids_T=np.concatenate([batch.token_ids_T[span] for batch, span in spans]),
        is_target_T=np.concatenate([batch.is_target_T[span] for batch, span in spans]),
        behaviour_logprobs_T=np.concatenate([batch.behaviour_logprobs_T[span] for batch, span in spans]),
        starts_S1=np.cumsum([0, *(batch.lengths_S[segment] for batch, segment in places)]),
        advantages_S=np.array([batch.advantages_S[segment] for batch, segment in places]),
        objectives_S=np.array([batch.objectives_S[segment] for batch, segment in places]),
        staleness_S=np.array([batch.staleness_S[segment] for batch, segment in places]),
        samples_S=np.array([batch.samples_S[segment] for batch, segment in places]),
    )
