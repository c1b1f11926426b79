"""Which rank computes which microbatch (pure)."""

from __future__ import annotations

from collections.abc import Sequence


def deal(tokens: Sequence[int], world_size: int) -> list[list[int]]:
    """Indices of microbatches for every rank, evenly by their ``tokens``: the largest first, to who has the least.

    No rank gets a second one while another has none. The same on every rank, for the same arguments.
    """
    hands: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for index in sorted(range(len(tokens)), key=lambda index: -tokens[index]):
        rank = min(range(world_size), key=lambda rank: (loads[rank], len(hands[rank])))
        hands[rank].append(index)
        loads[rank] += tokens[index]
    return hands


def passes(hands: Sequence[Sequence[int]]) -> int:
    """Forward passes that every rank makes: as many as the rank with the most. ZeRO counts on it."""
    return max(map(len, hands), default=0)
