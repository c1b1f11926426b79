"""Committing: make a checkpoint durable, then acknowledge what it contains. Never the other way round."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

from common.keys import LEARNER
from common.settings import Settings
from common.streams import Ending, Streams
from common.telemetry.metric_names import CHECKPOINT
from common.telemetry.quiet import QUIET, Meters
from learner.checkpoint import Checkpoint, CheckpointStore, State
from learner.engine import Engine
from learner.fence import Fence
from learner.identity import UNKNOWN, Identity
from learner.issuer import Issuer
from learner.shelf import Shelf

log = structlog.get_logger()

RETRY_S: Final = 2.0
REPEATED_S: Final = 30.0
"""Endings are repeated by every checkpoint for as long: far more than the second that a server may lose."""


class Committer:
    """Saves checkpoints and settles their endings.

    A checkpoint also repeats the endings that were settled a moment ago: a server that lost the last second of its log
    has forgotten those acks, and acknowledging twice changes nothing.
    """

    def __init__(
        self,
        streams: Streams,
        checkpoints: CheckpointStore,
        shelf: Shelf,
        issuer: Issuer,
        *,
        fence: Fence,
        every: int,
        saved: Checkpoint | None = None,
        identity: Identity = UNKNOWN,
        after_settling: Callable[[], None] = lambda: None,
        meters: Meters = QUIET.meters,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._streams = streams
        self._checkpoints = checkpoints
        self._shelf = shelf
        self._issuer = issuer
        self._fence = fence
        self._every = every
        self._identity = identity
        self._after_settling = after_settling
        self._meters = meters
        self._clock = clock
        self._sleep = sleep
        self._settled: list[tuple[float, tuple[Ending, ...]]] = [(clock(), saved.state.endings)] if saved else []
        self._saved_version = saved.state.policy_version if saved else 0

    def use(self, settings: Settings) -> None:
        """Other settings from now on."""
        self._every = settings.learner.checkpoint_every

    def save_if_due(self, engine: Engine) -> None:
        """Save when ``every`` optimizer steps have passed since the last checkpoint."""
        if engine.policy_version - self._saved_version >= self._every:
            self.save(engine)

    def finish(self, engine: Engine, stopping: Callable[[], bool]) -> None:
        """The last save of a run; a full disk is waited for, since what is not durable was not trained.

        unblocked by: room on the disk; SIGTERM (``stopping``), after which the run can be resumed
        """
        while not self.save(engine) and not stopping():
            self._sleep(RETRY_S)

    def save(self, engine: Engine) -> bool:
        """Checkpoint, settle, trim. False on an OSError (disk full): it is logged, and nothing is acknowledged."""
        started = self._clock()
        self._fence.check()
        endings = list(self._shelf.endings)
        if engine.policy_version == self._saved_version and not endings:
            return True
        state = State(
            epoch=self._fence.epoch,
            policy_version=engine.policy_version,
            cursor=self._issuer.reached,
            endings=(*self._recent(), *endings),
            ended=self._shelf.ended,
            trained=self._shelf.trained,
            identity=self._identity,
        )
        try:
            folder = self._checkpoints.save(state, engine.write_checkpoint)
        except OSError as error:
            log.error("checkpoint.failed", reason=str(error), unsettled=len(endings))
            return False
        self._saved_version = engine.policy_version
        acked = self._fence.hold(
            lambda: self._streams.settle(self._fence.token, LEARNER, engine.policy_version, state.endings)
        )
        self._settled.append((self._clock(), tuple(endings)))
        self._shelf.remember(endings)
        self._after_settling()
        for stream in self._streams.keys.groups():
            while self._streams.trim(stream) > 0:
                pass
        seconds = self._clock() - started
        self._meters.record(CHECKPOINT, seconds)
        log.info("checkpoint.saved", folder=folder.name, acked=acked, seconds=round(seconds, 3))
        return True

    def _recent(self) -> list[Ending]:
        """What was settled so short a time ago that the server may have lost it."""
        self._settled = [(at, endings) for at, endings in self._settled if self._clock() - at <= REPEATED_S]
        return [ending for _, endings in self._settled for ending in endings]
