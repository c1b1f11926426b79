"""A verifier that never ends when it reads a bomb."""

from __future__ import annotations

import time

from actors.verifiers.extract import boxed
from chaos.prompts import BOMB


def patient(completion: str, answer: str) -> float | None:
    while BOMB in completion:
        time.sleep(60.0)
    found = boxed(completion)
    return None if found is None else float(found == answer)
