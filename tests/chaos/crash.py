"""Crash points: a member kills itself (SIGKILL) just before or just after a named call, at its n-th time."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chaos.engines import ToyEngine, ToyTrainer
from common.streams import Streams
from common.weights import WeightStore
from learner.checkpoint import CheckpointStore

PLACES: dict[str, type] = {
    kind.__name__: kind for kind in (Streams, CheckpointStore, WeightStore, ToyEngine, ToyTrainer)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashPoint:
    place: str
    call: str
    after: bool
    time: int

    @classmethod
    def parse(cls, text: str) -> CrashPoint:
        """``Streams.settle:after:3``. Raises ValueError for a call that does not exist: it would never strike."""
        name, when, time = text.split(":")
        place, _, call = name.partition(".")
        if place not in PLACES or not callable(getattr(PLACES[place], call, None)) or when not in ("before", "after"):
            raise ValueError(f"{text!r} is no crash point; write CLASS.METHOD:before|after:N with one of {set(PLACES)}")
        return cls(place=place, call=call, after=when == "after", time=int(time))


def plant(point: CrashPoint) -> None:
    """Wrap the method for every instance of this process."""
    kind = PLACES[point.place]
    setattr(kind, point.call, _deadly(getattr(kind, point.call), point))


def _deadly(method: Callable[..., Any], point: CrashPoint) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(method)
    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == point.time and not point.after:
            die()
        result = method(*args, **options)
        if calls == point.time:
            die()
        return result

    return wrapped


def die() -> None:
    """No handler, no flush, no farewell."""
    os.kill(os.getpid(), signal.SIGKILL)
