"""What ranks tell each other about a batch that was dealt out to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def collect(mine: Sequence[Tensor], hands: Sequence[Sequence[int]], sizes: Sequence[int]) -> list[Tensor]:
    """Tensors [C, N_i] of all microbatches, on the host, in their order; the same on every rank.

    ``mine``: of this rank's, in the order of its hand. ``sizes``: N_i of every microbatch, which all ranks know, so
    that only numbers travel. At least one tensor must be there.
    """
    rows, device = mine[0].shape[0], mine[0].device
    width = max(sum(sizes[index] for index in hand) for hand in hands)
    sent = torch.zeros((rows, width), device=device)
    joint = torch.cat([*mine], dim=1)
    sent[:, : joint.shape[1]] = joint
    received = [torch.empty_like(sent) for _ in hands]
    dist.all_gather(received, sent)
    found: dict[int, Tensor] = {}
    for hand, columns in zip(hands, received, strict=True):
        end = 0
        for index in hand:
            begin, end = end, end + sizes[index]
            found[index] = columns[:, begin:end].cpu()
    return [found[index] for index in range(len(sizes))]


def total(value: float, device: torch.device) -> float:
    """The sum over all ranks, in float64."""
    tensor = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return float(tensor)
