"""Keeps what the learner consumed (``common/archive.py``): one block for each batch, in segment files of bounded size.

A thread of its own packs and writes, while the learner publishes and waits for the next groups. Nothing of a run
depends on the archive: what a full disk refuses is lost, and said once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from common.archive import FOLDER, ArchivedGroup, pack
from common.codec import encode
from common.errors import InvalidMessage
from common.messages import Outcome, RolloutGroup
from common.settings import Learner, Settings
from learner.advantage import advantages, rewards
from learner.archive_files import Segments

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumed:
    """A group that ended at the learner, before the outcome of its step is known."""

    group: RolloutGroup
    outcome: Outcome
    policy_version: int
    staleness: int
    content_staleness: int | None
    at: float


Trained = tuple[int, tuple[float, ...] | None]
"""The policy version that a group's optimizer step made, and what every sibling added to the step's loss."""


class GroupArchive:
    """``consumed`` and ``trained`` collect what a batch did with which groups; ``write`` hands it to the writer."""

    def __init__(self, files: Segments | None, settings: Learner, clock: Callable[[], float] = time.time) -> None:
        """``files`` None: nothing is kept."""
        self._files = files
        self._settings = settings
        self._clock = clock
        self._consumed: list[Consumed] = []
        self._trained: dict[str, Trained] = {}
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="archive") if files else None
        self._pending: Future[None] | None = None

    def consumed(
        self, group: RolloutGroup, outcome: Outcome, policy_version: int, staleness: int, content_staleness: int
    ) -> None:
        """A group has ended. ``policy_version``: of the learner at that time."""
        if self._files is None:
            return
        self._consumed.append(
            Consumed(
                group=group,
                outcome=outcome,
                policy_version=policy_version,
                staleness=staleness,
                content_staleness=content_staleness if group.task.sources else None,
                at=self._clock(),
            )
        )

    def trained(self, groups: Sequence[RolloutGroup], policy_version: int, losses: NDArray[np.float64] | None) -> None:
        """One optimizer step made ``policy_version`` of these groups. ``losses``: of its samples, in their order."""
        if self._files is not None:
            for uid, loss in by_sibling(groups, losses).items():
                self._trained[uid] = (policy_version, loss)

    def write(self, policy_version: int) -> None:
        """Write what has ended since the last call, in the background; waits only for the call before."""
        if self._writer is None or self._files is None:
            return
        self.flush()
        consumed, trained = self._consumed, self._trained
        self._consumed, self._trained = [], {}
        self._pending = self._writer.submit(self._write, self._files, consumed, trained, policy_version)

    def flush(self) -> None:
        """Return when all that was handed over is written, or was refused by the disk."""
        if self._pending is not None:
            self._pending.result()

    def _write(
        self, files: Segments, consumed: Sequence[Consumed], trained: Mapping[str, Trained], policy_version: int
    ) -> None:
        records = (archived(one, trained.get(one.group.uid), self._settings) for one in consumed)
        for block in pack(_encoded(records), policy_version):
            files.append(block)

    def __enter__(self) -> GroupArchive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.shutdown(wait=True)
        if error is None:
            self.flush()  # anything but a full disk is a mistake in here, which must not pass unseen


def open_archive(settings: Settings, epoch: int, policy_version: int) -> GroupArchive:
    """The archive of a learner epoch that goes on from ``policy_version``."""
    if settings.archive.max_mb == 0:
        return NO_ARCHIVE
    directory = settings.run.directory / FOLDER
    return GroupArchive(Segments(directory, epoch, policy_version, settings.archive.max_mb), settings.learner)


def by_sibling(
    groups: Sequence[RolloutGroup], losses: NDArray[np.float64] | None
) -> dict[str, tuple[float, ...] | None]:
    """uid -> loss of every sibling, 0 where it was excluded. ``losses``: of the samples of ``to_samples``, in order.

    None where they are not known, or not finite: the step was skipped then.
    """
    if losses is None:
        return {group.uid: None for group in groups}
    places = iter(losses.tolist())
    shares = {
        group.uid: tuple(next(places) if rollout.verdict.scored else 0.0 for rollout in group.rollouts)
        for group in groups
    }
    return {uid: share if bool(np.isfinite(share).all()) else None for uid, share in shares.items()}


def archived(one: Consumed, trained: Trained | None, settings: Learner) -> ArchivedGroup:
    """The record of a group. ``trained``: what is known of its step."""
    version, loss = trained or (one.policy_version, None)
    spread = np.zeros(len(one.group.rollouts))
    if one.outcome == "trained":
        scored = [rollout.verdict.scored for rollout in one.group.rollouts]
        spread[scored] = advantages(rewards(one.group), settings.advantage, settings.advantage_eps)
    return ArchivedGroup(
        group=one.group,
        outcome=one.outcome,
        policy_version=version,
        staleness=one.staleness,
        content_staleness=one.content_staleness,
        advantages=tuple(spread.tolist()),
        loss=loss,
        at=one.at,
    )


def _encoded(records: Iterable[ArchivedGroup]) -> Iterator[tuple[ArchivedGroup, bytes]]:
    for record in records:
        try:
            yield record, encode(record)
        except InvalidMessage as error:  # a group that just fits a message may not fit one with its record
            log.warning("archive.group_left_out", uid=record.uid, reason=str(error))


NO_ARCHIVE: Final = GroupArchive(None, Learner())
"""Keeps nothing."""
