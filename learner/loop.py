"""The learner's loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import structlog

from common.messages import RolloutGroup
from common.settings import Settings
from learner.archive import NO_ARCHIVE, GroupArchive
from learner.commit import Committer
from learner.engine import Engine
from learner.intake import Intake
from learner.packing import Microbatch, pack
from learner.publisher import Publisher
from learner.quota import quota_of
from learner.samples import split, to_samples
from learner.steering import Helm

log = structlog.get_logger()


class Timers:
    """Seconds spent per stage since the last ``take``: where the learner's time goes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = self._clock()
        try:
            yield
        finally:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + self._clock() - started

    def take(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, {}
        return {f"seconds/{stage}": round(value, 4) for stage, value in seconds.items()}


def run(
    engine: Engine,
    intake: Intake,
    publisher: Publisher,
    committer: Committer,
    settings: Settings,
    record: Callable[[dict[str, Any]], None],
    archive: GroupArchive = NO_ARCHIVE,
) -> None:
    """One pass takes one batch and makes its optimizer steps; returns at max_steps or when the intake is closed.

    consumes: scored groups no staler than settings.staleness.max_staleness
        waits for:    settings.learner.groups_per_step of them
        unblocked by: actors shipping groups; a user's command (``intake.helm``); SIGTERM closing the intake
    produces: policy versions; publishing one gives actors room for new groups
    """
    timers, started = Timers(), time.monotonic()
    publisher.publish(engine)  # actors wait for a first policy
    helm, turn = intake.helm, 0

    def save() -> None:
        """A checkpoint between batches: what it acknowledges is archived before."""
        archive.write(engine.policy_version)
        archive.flush()
        committer.save(engine)

    while True:
        if helm.obey(engine.policy_version):
            settings = steer(helm, engine, intake, committer, save)
        if engine.policy_version >= settings.learner.max_steps:
            break
        quota = quota_of(settings.learner, turn)
        with timers.timed("paused" if helm.paused else "wait_for_groups"):
            groups = intake.take(quota, engine.policy_version, save, partial(publisher.tend, engine))
        if groups is None:  # closed, or no prompts left
            break
        if helm.is_called:  # a user wants something else: look again
            continue
        turn += 1
        if not groups:  # a judge batch with nothing to judge
            continue

        with timers.timed("step"):
            report = update(engine, groups, settings, intake.shelf.staleness, archive)
        archive.write(engine.policy_version)
        with timers.timed("publish"):
            publisher.publish(engine)
        with timers.timed("checkpoint"):
            archive.flush()  # what a checkpoint acknowledges is archived already
            committer.save_if_due(engine)

        progress = {"policy_version": engine.policy_version, "elapsed_s": round(time.monotonic() - started, 3)}
        metrics = {**progress, **report, **intake.shelf.stats.take(), **timers.take()}
        record(metrics)
        log.info("learner.step_done", policy_version=engine.policy_version, groups=len(groups))
    archive.write(engine.policy_version)
    archive.flush()
    committer.finish(engine, intake.stopping)


def steer(helm: Helm, engine: Engine, intake: Intake, committer: Committer, save: Callable[[], None]) -> Settings:
    """Follow what a user said; returns the settings from now on. What was trained before a pause is made durable."""
    engine.use(helm.settings)
    intake.use(helm.settings)
    committer.use(helm.settings)
    if helm.paused:
        save()
    return helm.settings


def update(
    engine: Engine,
    groups: list[RolloutGroup],
    settings: Settings,
    staleness: Callable[[RolloutGroup], int],
    archive: GroupArchive = NO_ARCHIVE,
) -> dict[str, float]:
    """The optimizer steps of one batch; returns the metrics of the last."""
    shares = split(groups, settings.learner.updates_per_batch)
    parts = [_pack(share, staleness, settings) for share in shares]
    recompute = settings.loss.old_logprobs == "recomputed" or settings.loss.kind == "tis"
    old = [engine.old_logprobs(part) if recompute else None for part in parts]
    report: dict[str, float] = {}
    for share, microbatches, old_logprobs in zip(shares, parts, old, strict=True):
        report = engine.step(microbatches, old_logprobs)
        archive.trained(share, engine.policy_version, engine.sample_losses)
    report["staleness_before"] = float(max(map(staleness, groups)))
    return report


def _pack(groups: list[RolloutGroup], staleness: Callable[[RolloutGroup], int], settings: Settings) -> list[Microbatch]:
    learner = settings.learner
    samples = [
        s for group in groups for s in to_samples(group, staleness(group), learner.advantage, learner.advantage_eps)
    ]
    return pack(samples, learner.tokens_per_microbatch)
