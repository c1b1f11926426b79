"""The prompts of a chaos run: sums, which a toy engine can solve. Few, since every epoch gives them new uids."""

from __future__ import annotations

import random

BOMB = "boom"
"""A question with this word gets an answer that never lets its verifier end."""


def sums(size: int = 512, seed: int = 0, bombs: int = 0) -> list[dict[str, str]]:
    """Records of ``a+b`` with their sums; every ``bombs``-th one is a verifier bomb (0: none)."""
    draw = random.Random(seed)
    records = []
    for index in range(size):
        a, b = draw.randrange(1000), draw.randrange(1000)
        bomb = f" {BOMB}" if bombs and index % bombs == 0 else ""
        records.append({"prompt": f"{a}+{b}{bomb}", "answer": str(a + b)})
    return records
