"""How a microbatch is handed to a model: as one packed row, or as padded rows.

Shape letters: T tokens, S segments, R rows, L padded length, N completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.attention import Segments
from learner.packing import Microbatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelInput:
    arguments: dict[str, Any]
    """Keyword arguments of the model."""
    source_N: Tensor
    """Where the hidden state lies that predicts each completion token, among the places of all rows."""
    target_ids_N: Tensor
    """The completion tokens."""


Layout = Callable[[Microbatch, torch.device], ModelInput]


def packed(batch: Microbatch, device: torch.device) -> ModelInput:
    """One row [1, T] for ``learner.attention``; positions start again in every segment, and no cache is made."""
    places = np.arange(len(batch.token_ids_T)) - np.repeat(batch.starts_S1[:-1], batch.lengths_S)
    return ModelInput(
        arguments={
            "input_ids": to_device(batch.token_ids_T[None], device),
            "position_ids": to_device(places[None], device),
            "segments": Segments.of(batch.starts_S1, device),
            "use_cache": False,
        },
        source_N=to_device(batch.targets_N - 1, device),
        target_ids_N=to_device(batch.token_ids_T[batch.targets_N], device),
    )


def padded(batch: Microbatch, device: torch.device) -> ModelInput:
    """Rows [R, L] padded behind their end, for any model. A lone row needs no mask."""
    lengths = batch.lengths_S
    inside_RL = np.arange(lengths.max()) < lengths[:, None]
    ids_RL = np.zeros(inside_RL.shape, dtype=np.int64)
    ids_RL[inside_RL] = batch.token_ids_T
    arguments: dict[str, Any] = {"input_ids": to_device(ids_RL, device), "use_cache": False}
    if len(lengths) > 1:
        arguments["attention_mask"] = to_device(inside_RL.astype(np.int64), device)
    return ModelInput(
        arguments=arguments,
        source_N=to_device(np.flatnonzero(inside_RL)[batch.targets_N] - 1, device),
        target_ids_N=to_device(batch.token_ids_T[batch.targets_N], device),
    )


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device. A GPU takes it from pinned memory, so that the host does not wait for its queue."""
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
