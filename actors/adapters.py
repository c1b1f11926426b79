"""Low-rank adapters (LoRA, arXiv 2106.09685) as actors take them: merged into the base weights, W + B A.

The learner publishes ``NAME.lora_A`` [rank, in] and ``NAME.lora_B`` [out, rank], scaled, for every weight
NAME [out, in] that it adapts. Engines are given whole weights, so a swap is the same with an adapter and without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from common.errors import WeightsError

A: Final = ".lora_A"
B: Final = ".lora_B"


def is_adapter(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are an adapter's matrices and not whole weights."""
    return any(name.endswith((A, B)) for name in tensors)


def merged(base: Mapping[str, Tensor], adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights: every tensor of ``base``, adapted ones as W + B A, computed in float32 and kept in W's dtype.

    Raises WeightsError when the adapter names no weight of the base, lacks a half, or has another shape.
    """
    adapted = sorted({name[: -len(A)] for name in adapter})
    if unknown := [name for name in adapted if name not in base]:
        raise WeightsError(f"the adapter is for {unknown[0]!r}, which the base model does not have")
    return {**base, **{name: _merged(name, base[name], adapter) for name in adapted}}


@torch.no_grad()
def _merged(name: str, weight: Tensor, adapter: Mapping[str, Tensor]) -> Tensor:
    if missing := [half for half in (A, B) if name + half not in adapter]:
        raise WeightsError(f"the adapter has no {name}{missing[0]}")
    down, up = adapter[name + A].float(), adapter[name + B].float()
    if (up.shape[0], down.shape[1]) != tuple(weight.shape) or up.shape[1] != down.shape[0]:
        raise WeightsError(
            f"the adapter of {name} is {list(up.shape)} times {list(down.shape)}, the weight is {list(weight.shape)}"
        )
    return torch.addmm(weight.float(), up, down).to(weight.dtype)
