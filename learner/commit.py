"""Committing: make a checkpoint durable, then acknowledge what it contains. Never the other way round."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from common.keys import LEARNER
from common.streams import Ending, Streams
from learner.checkpoint import Checkpoint, CheckpointStore, State
from learner.engine import TorchEngine
from learner.intake import Intake
from learner.issuer import Issuer

log = structlog.get_logger()


class Committer:
    """Saves checkpoints and settles their endings.

    A checkpoint also repeats the endings of the one before: a server that lost the last second of its log
    has forgotten those acks, and acknowledging twice changes nothing.
    """

    def __init__(
        self,
        streams: Streams,
        checkpoints: CheckpointStore,
        intake: Intake,
        issuer: Issuer,
        *,
        epoch: int,
        token: str,
        every: int,
        guard: Callable[[], None],
        saved: Checkpoint | None = None,
        prompts: str = "",
    ) -> None:
        self._streams = streams
        self._checkpoints = checkpoints
        self._intake = intake
        self._issuer = issuer
        self._epoch = epoch
        self._token = token
        self._every = every
        self._guard = guard
        self._prompts = prompts
        self._previous: list[Ending] = list(saved.state.endings) if saved else []
        self._saved_version = saved.state.policy_version if saved else 0

    def save_if_due(self, engine: TorchEngine) -> None:
        """Save when ``every`` optimizer steps have passed since the last checkpoint."""
        if engine.policy_version - self._saved_version >= self._every:
            self.save(engine)

    def save(self, engine: TorchEngine) -> None:
        """Checkpoint, settle, trim. An OSError (disk full) is logged: the run goes on, nothing is acknowledged."""
        self._guard()
        endings = list(self._intake.endings)
        if engine.policy_version == self._saved_version and not endings:
            return
        state = State(
            epoch=self._epoch,
            policy_version=engine.policy_version,
            cursor=self._issuer.cursor,
            endings=(*self._previous, *endings),
            ended_uids=frozenset(self._intake.ended_uids),
            prompts=self._prompts,
        )
        try:
            folder = self._checkpoints.save(state, engine.write_checkpoint)
        except OSError as error:
            log.error("checkpoint.failed", reason=str(error), unsettled=len(endings))
            return
        self._saved_version = engine.policy_version
        acked = self._streams.settle(self._token, LEARNER, engine.policy_version, state.endings)
        self._previous = endings
        self._intake.remember(endings)
        for stream in self._streams.keys.groups():
            while self._streams.trim(stream) > 0:
                pass
        log.info("checkpoint.saved", folder=folder.name, acked=acked)
