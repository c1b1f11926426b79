"""Causal attention within each segment of a packed row, as an attention implementation of transformers.

Segments lie one after another in one row of T tokens. Position ids alone do not tell the model so: transformers only
derives a mask from them where no cache is made, and a mask is dense. Here no mask is built at all.

Shape letters: T tokens, H heads, D their width, B segments run together, L their longest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from inspect import signature
from itertools import groupby
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PACKED: Final = "spark_packed"
"""Name of the implementation. No mask function is registered by it, so transformers makes no mask."""


KERNEL_COMPLETE: Final = {"scale", "window_size", "enable_gqa"} <= set(signature(varlen_attn).parameters)
"""Whether torch's kernel of variable lengths takes all that models ask for: from torch 2.12 on."""


class PackingRefusedError(RuntimeError):
    """The model wants an attention that packed segments cannot be given."""


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """Where the segments of a packed row are: for a kernel of variable lengths, and for one call per length."""

    offsets_S1: Tensor
    """Where each segment starts, and T at the end; int32, on the device of the model."""
    longest: int
    rows: tuple[tuple[int, int], ...]
    """(B, L): that many neighbours have the same length, so that one call serves them; ``pack`` sorts by length."""
    windows: set[int | None] = field(default_factory=set)
    """Sliding windows that layers asked for; the self-check compares them with the model's config."""

    @classmethod
    def of(cls, starts_S1: NDArray[np.int64], device: torch.device) -> Segments:
        lengths = np.diff(starts_S1).tolist()
        return cls(
            offsets_S1=torch.from_numpy(starts_S1.astype(np.int32)).to(device, non_blocking=True),
            longest=max(lengths),
            rows=tuple((len(list(same)), length) for length, same in groupby(lengths)),
        )


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    segments: Segments | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention [1, T, H, D] of ``query`` [1, H, T, D]; ``key`` and ``value`` may have fewer heads.

    ``segments`` is what the model was called with. Raises PackingRefusedError for what it cannot honour: masks,
    soft caps, attention sinks, position biases, dropout, and attention that is not causal.
    """
    unmet = [name for name in ("softcap", "s_aux", "position_bias", "cache") if others.get(name) is not None]
    unmet += ["attention_mask"] * (attention_mask is not None) + ["dropout"] * (dropout > 0)
    if unmet or not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise PackingRefusedError(f"its attention asks for {', '.join(unmet) or 'non-causal attention'}")
    if segments is None:
        raise PackingRefusedError("it does not hand its keyword arguments on to the attention")
    if torch.is_autocast_enabled(query.device.type):  # custom operators are not on autocast's list
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    segments.windows.add(sliding_window)
    run = _by_kernel if _kernel_takes(query, value) else _by_rows
    return run(query, key, value, segments, scaling, sliding_window), None


def _kernel_takes(query: Tensor, value: Tensor) -> bool:
    """torch's flash attention: Ampere GPUs and later, 16 bit, heads of a multiple of 8 up to 256."""
    width = query.shape[-1]
    fits = KERNEL_COMPLETE and width % 8 == 0 and width <= 256 and value.shape[-1] == width
    return (
        query.is_cuda
        and query.element_size() == 2
        and fits
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, window: int | None
) -> Tensor:
    offsets, longest = segments.offsets_S1, segments.longest
    query_THD, key_THD, value_THD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    out_THD = varlen_attn(
        query_THD,
        key_THD,
        value_THD,
        offsets,
        offsets,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0) if window is None else (window - 1, 0),  # transformers counts the token itself
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(Tensor, out_THD)[None]


def _by_rows(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, window: int | None
) -> Tensor:
    grouped, parts = query.shape[1] != key.shape[1], []
    sizes = [count * length for count, length in segments.rows]
    # split, and no slices: the backward pass of every slice would fill a whole row of T tokens
    splits = (torch.split(tensor[0], sizes, dim=1) for tensor in (query, key, value))
    for (count, length), *parts_HTD in zip(segments.rows, *splits, strict=True):
        query_BHLD, key_BHLD, value_BHLD = (part.unflatten(1, (count, length)).transpose(0, 1) for part in parts_HTD)
        mask = None if window is None or window >= length else _band(length, window, query.device)
        out_BHLD = scaled_dot_product_attention(
            query_BHLD,
            key_BHLD,
            value_BHLD,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=grouped,
        )
        parts.append(out_BHLD.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[None]


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """[L, L]: a token sees itself and the ``window - 1`` before it."""
    places = torch.arange(length, device=device)
    distance = places[:, None] - places
    return (distance >= 0) & (distance < window)


AttentionInterface.register(PACKED, packed_attention)
