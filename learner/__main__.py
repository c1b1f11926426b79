"""The learner: ``spark learner RUN.toml``. Settings, prompts and server first; torch only when they are right.

Of a job that a launcher starts on several hosts only rank 0 is the learner; the others help it (``learner.ranks``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Final

import structlog

from common import heartbeat as members
from common.process import open_streams, until_told_to_stop
from common.settings import Settings
from common.templates import load_templates
from common.watchdog import Stage, Watchdog
from learner.checkpoint import CheckpointStore
from learner.engines import follow_rank, open_engine, own_place
from learner.heartbeat import Heartbeat
from learner.metrics_file import MetricsFile
from learner.prompts import open_prompts
from learner.start import assemble, load, take_over

log = structlog.get_logger()

STOPPED: Final = 143
"""Exit code after SIGTERM, as shells count it: the run is not finished, and a supervisor may start it again."""

EXPORT: Final = Stage(
    name="export", waits_for="the model as a Hugging Face directory", unblocked_by="the disk of the run directory"
)


def run(settings: Settings) -> None:
    """Train until max_steps or the end of the prompts; SIGTERM saves and exits with STOPPED. Raises SparkError."""
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.learner.torch_threads))  # read when torch is imported
    place = own_place(settings)
    if not place.is_first:
        structlog.contextvars.bind_contextvars(rank=place.rank)
        sys.exit(follow_rank(settings, place))
    with Watchdog(settings.run.no_progress_s).watching() as watchdog:
        _run(settings, watchdog)


def _run(settings: Settings, watchdog: Watchdog) -> None:
    prompts = open_prompts(settings.prompts, settings.run.python_path, settings.run.seed)
    templates = load_templates(settings.templates.path)
    with until_told_to_stop() as stopping:
        streams = open_streams(settings, owner=True)
        members.Heartbeat(streams, "learner", "learner", watchdog)  # speaks for a start that hangs
        checkpoints = CheckpointStore(settings.run.directory / "checkpoints", settings.learner.checkpoints_kept)
        taken = take_over(streams, checkpoints, prompts, templates, settings)

        with open_engine(settings) as engine:
            from learner.loop import run as train

            load(engine, taken)
            heartbeat = Heartbeat(streams, taken.fence.epoch, watchdog)
            parts = assemble(
                taken,
                streams,
                checkpoints,
                prompts,
                templates,
                settings,
                stopping=stopping,
                beat=heartbeat.beat,
                watchdog=watchdog,
            )
            watchdog.progress()
            version = engine.policy_version
            log.info("learner.started", epoch=taken.fence.epoch, policy_version=version, cursor=taken.cursor)
            with MetricsFile(settings.run.directory / "metrics.jsonl", version) as metrics:
                train(engine, parts.intake, parts.publisher, parts.committer, settings, recorder(metrics, watchdog))
            heartbeat.stop()
            if stopping():
                log.info("learner.stopped", policy_version=engine.policy_version)
                sys.exit(STOPPED)
            watchdog.enter(EXPORT)
            engine.export(settings.run.directory / "export")
            log.info("learner.done", policy_version=engine.policy_version)


def recorder(metrics: MetricsFile, watchdog: Watchdog) -> Callable[[dict[str, Any]], None]:
    """Records a batch, and what stood still meanwhile. A batch that was trained and published is progress."""

    def record(batch: dict[str, Any]) -> None:
        watchdog.progress()
        metrics.record({**batch, **watchdog.take()})

    return record
