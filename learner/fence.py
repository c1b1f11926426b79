"""The fence: which learner may issue and settle. One epoch holds it; every older one has to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

import structlog

from common.errors import Fenced, WipedServer
from common.streams import Streams
from learner.checkpoint import CheckpointStore

log = structlog.get_logger()

LOOK_S: Final = 1.0

T = TypeVar("T")


class Fence:
    """The fence of this learner's epoch, and the name of the data set it works on."""

    def __init__(
        self,
        streams: Streams,
        checkpoints: CheckpointStore,
        epoch: int,
        token: str,
        generation: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.epoch = epoch
        self.token = token
        self._streams = streams
        self._checkpoints = checkpoints
        self.generation = generation
        self._clock = clock
        self._looked = float("-inf")

    def check(self) -> None:
        """Raises Fenced as soon as a newer learner has started, WipedServer when the server lost the run's data."""
        if (highest := self._checkpoints.highest_epoch()) > self.epoch:
            raise Fenced(f"a learner of epoch {highest} has taken over from epoch {self.epoch}; this one stops")
        if self._clock() - self._looked > LOOK_S:
            self._looked = self._clock()
            self._check_data()

    def hold(self, call: Callable[[], T]) -> T:
        """Make a call that the fence guards. A server that lost its last second may have forgotten who holds it.

        It may then know this learner's token again although a newer one has started: hence the look at the files first.
        """
        self.check()
        try:
            return call()
        except Fenced:
            self.check()
            self._check_data()
            if not self._streams.take_fence(self.epoch, self.token):
                raise
            log.warning("learner.fence_restored", epoch=self.epoch)
            return call()

    def _check_data(self) -> None:
        if (found := self._streams.generation()) != self.generation:
            raise wiped(found, self.generation)


def wiped(found: str | None, known: str) -> WipedServer:
    if found is not None:
        return WipedServer(
            f"the server holds another data set ({found}) of this run's name than the run's own ({known}); connect to "
            "the right server, or start under a new run.name"
        )
    return WipedServer(
        f"the server has lost the data of this run ({known}); connect to the right one, restore it, or run again with "
        "--rebuild: what the newest checkpoint has trained stays trained, and all other prompts are issued again"
    )
