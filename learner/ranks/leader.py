"""Rank 0: an ``Engine`` that makes every call on all ranks, and how a job of ranks begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from common.errors import SparkError
from common.settings import Settings
from learner.engine import Engine
from learner.packing import Microbatch
from learner.ranks.channel import Channel
from learner.ranks.children import Job
from learner.ranks.commands import (
    Command,
    Export,
    OldLogprobs,
    ReadCheckpoint,
    Step,
    Stop,
    Use,
    WriteCheckpoint,
    WriteWeights,
)
from learner.ranks.group import Backend, another, join, open_store
from learner.ranks.place import Place
from learner.ranks.vigil import GRACE_S, UNKNOWN, Vigil

T = TypeVar("T")


class RankFailed(SparkError):
    """Another rank died or failed. The learner ends; started again, it goes on from the newest checkpoint."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class Leader:
    """The engine that the learner's loop sees: what is asked of it is sent to all ranks, and then done here as well.

    The engine of every rank finishes what it does with the others before it raises OSError for rank 0's disk, so a
    full disk leaves the ranks in step. After any other error they are not, and the job ends.
    """

    def __init__(self, engine: Engine, channel: Channel, vigil: Vigil) -> None:
        self.policy_version = engine.policy_version
        self._engine = engine
        self._channel = channel
        self._vigil = vigil

    @property
    def sample_losses(self) -> NDArray[np.float64] | None:
        return self._engine.sample_losses

    def use(self, settings: Settings) -> None:
        self._on_all(Use.of(settings), lambda: self._engine.use(settings))

    def old_logprobs(self, microbatches: Sequence[Microbatch]) -> Sequence[Any]:
        command = OldLogprobs(microbatches=tuple(microbatches))
        return self._on_all(command, lambda: self._engine.old_logprobs(microbatches))

    def step(self, microbatches: Sequence[Microbatch], old: Sequence[Any] | None = None) -> dict[str, float]:
        arrays = None if old is None else tuple(np.asarray(logprobs, dtype=np.float32) for logprobs in old)
        command = Step(microbatches=tuple(microbatches), old=arrays)
        return self._on_all(command, lambda: self._engine.step(microbatches, old))

    def write_weights(self, folder: Path) -> None:
        self._on_all(WriteWeights(), lambda: self._engine.write_weights(folder))

    def write_checkpoint(self, folder: Path) -> None:
        self._on_all(WriteCheckpoint(), lambda: self._engine.write_checkpoint(folder))

    def read_checkpoint(self, folder: Path, policy_version: int) -> None:
        command = ReadCheckpoint(policy_version=policy_version)
        self._on_all(command, lambda: self._engine.read_checkpoint(folder, policy_version))

    def export(self, folder: Path) -> None:
        self._on_all(Export(), lambda: self._engine.export(folder))

    def stop(self, exit_code: int) -> None:
        """All ranks end, with this exit code."""
        self._on_all(Stop(exit_code=exit_code), self._channel.meet)
        self._vigil.stop()

    def _on_all(self, command: Command, call: Callable[[], T]) -> T:
        with blamed(self._vigil):
            self._channel.send(command)
            result = call()
        self.policy_version = self._engine.policy_version
        return result


@contextmanager
def blamed(vigil: Vigil) -> Iterator[None]:
    """A broken connection does not tell the reason; the vigil does. Raises RankFailed in place of such an error."""
    try:
        yield
    except RuntimeError as error:
        if (failure := vigil.failure(GRACE_S)) is None:
            raise
        raise RankFailed(failure.in_words(), failure.exit_code) from error


@contextmanager
def leading(
    settings: Settings, job: Job, backend: Backend, open_engine: Callable[[Settings, Place], Engine]
) -> Iterator[Engine]:
    """The engine of a whole job, whose ranks end with the block.

    ``open_engine`` is called on every rank. SystemExit leaves the block in order, with its code; after any other
    exception the ranks are ended at once. Raises RankFailed when one of them dies.
    """
    children = job.children
    store = open_store(job)
    vigil = Vigil(another(job.place), job.place, died=children.died if children else lambda: None)
    vigil.start()
    try:
        with blamed(vigil):
            channel = Channel(join(store, job.place, backend))
            leader = Leader(open_engine(settings, job.place), channel, vigil)
        try:
            yield leader
        except SystemExit as ending:
            leader.stop(ending.code if isinstance(ending.code, int) else UNKNOWN)
            raise
        leader.stop(0)
    except SystemExit:
        raise
    except BaseException as error:
        vigil.fail(getattr(error, "exit_code", UNKNOWN), f"failed: {error!r}")
        if children:
            children.kill()
        raise
    finally:
        vigil.stop()
        if children:
            children.wait()
    dist.destroy_process_group()
