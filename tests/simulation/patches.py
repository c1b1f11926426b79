"""What the code under test takes from the machine it runs on, replaced for as long as it runs in the simulation.

``fsync`` as a point where a process may end, no log, and longer blocking reads: here a read ends when something
arrives, so that its limit only makes empty rounds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest import mock

import structlog

import actors.actor
import common.folders
import learner.checkpoint
import learner.intake
import learner.journal
import recycler.loop

BLOCK_MS: Final = 2000


@dataclass
class Machine:
    """What the patched code asks for; set anew for every schedule."""

    fsync: Callable[[Path], None] = lambda _: None


MACHINE: Final = Machine()


def _fsync(path: Path) -> None:
    MACHINE.fsync(path)


@contextmanager
def on_a_virtual_machine(log: Callable[[Any, str, Any], Any] | None = None) -> Iterator[None]:
    """``log``: a structlog processor that gets every event and must drop it; None: nothing is logged at all."""
    before = structlog.get_config()
    with ExitStack() as stack:
        for module, name, value in _replacements():
            stack.enter_context(mock.patch.object(module, name, value))
        quiet: Any = structlog.make_filtering_bound_logger(logging.CRITICAL)
        structlog.configure(processors=[log] if log else [], wrapper_class=structlog.BoundLogger if log else quiet)
        try:
            yield
        finally:
            structlog.configure(**before)


def _replacements() -> Iterator[tuple[Any, str, Any]]:
    for module in (common.folders, learner.checkpoint, learner.journal):
        yield module, "fsync", _fsync
    for module, name in ((actors.actor, "IDLE_BLOCK_MS"), (learner.intake, "BLOCK_MS"), (recycler.loop, "BLOCK_MS")):
        yield module, name, BLOCK_MS
