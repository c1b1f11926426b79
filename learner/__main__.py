"""The learner: ``spark learner RUN.toml``. Settings, prompts and server first; torch only when they are right.

Of a job that a launcher starts on several hosts only rank 0 is the learner; the others help it (``learner.ranks``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import structlog

from common import heartbeat as members
from common.log import bind_epoch
from common.process import open_streams, until_told_to_stop
from common.settings import Settings
from common.telemetry.queues import Queues
from common.telemetry.quiet import Telemetry
from common.telemetry.start import started
from common.templates import load_templates
from common.watchdog import Stage, Watchdog
from learner.archive import open_archive
from learner.checkpoint import CheckpointStore
from learner.engines import follow_rank, open_engine, own_place
from learner.figures import WaitingShare, disk_figures
from learner.heartbeat import Heartbeat
from learner.judge_alarms import JudgeAlarms
from learner.metrics_file import MetricsFile
from learner.prompts import open_prompts
from learner.sinks import Sinks, open_sinks
from learner.spans import BatchSpans
from learner.start import assemble, load, take_over, take_the_helm

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
    with (
        started(settings, role="learner", member="learner") as telemetry,
        Watchdog(settings.run.no_progress_s).watching() as watchdog,
    ):
        _run(settings, watchdog, telemetry)


def _run(settings: Settings, watchdog: Watchdog, telemetry: Telemetry) -> None:
    prompts = open_prompts(settings.prompts, settings.run.python_path, settings.run.seed)
    templates = load_templates(settings.templates.path)
    with until_told_to_stop() as stopping:
        with stopping.at_once(STOPPED):
            streams = open_streams(settings, owner=True)
        members.Heartbeat(streams, "learner", "learner", watchdog)  # speaks for a start that hangs
        checkpoints = CheckpointStore(settings.run.directory / "checkpoints", settings.learner.checkpoints_kept)
        taken = take_over(streams, checkpoints, prompts, templates, settings)
        bind_epoch(taken.fence.epoch)

        helm = take_the_helm(taken, streams, checkpoints, settings)
        settings = helm.settings
        with open_engine(settings) as engine:
            from learner.loop import run as train

            load(engine, taken)
            figures = partial(disk_figures, settings.run.directory)
            heartbeat = Heartbeat(streams, taken.fence.epoch, watchdog, figures=figures)
            heartbeat.note(**telemetry.announced)
            telemetry.meters.follow(heartbeat.said)
            if telemetry.on:
                telemetry.meters.follow_server(Queues(streams).read)
            spans = BatchSpans(telemetry, taken.fence.epoch)
            archive = open_archive(settings, taken.fence.epoch, engine.policy_version)
            parts = assemble(
                taken,
                streams,
                checkpoints,
                prompts,
                templates,
                settings,
                stopping=stopping,
                beat=heartbeat.beat,
                consumed=both(archive.consumed, spans.consumed),
                watchdog=watchdog,
                helm=helm,
                telemetry=telemetry,
            )
            heartbeat.ask(parts.intake.figures)
            watchdog.progress()
            version = engine.policy_version
            log.info("learner.started", epoch=taken.fence.epoch, policy_version=version, cursor=taken.cursor)
            file = MetricsFile(settings.run.directory / "metrics.jsonl", version)
            with file as metrics, open_sinks(settings, version) as sinks, archive:
                alarms = JudgeAlarms(parts.intake.shelf.stats.judge, settings.metrics)
                record = recorder(metrics, sinks, watchdog, heartbeat, alarms, spans)
                train(engine, parts.intake, parts.publisher, parts.committer, settings, record, archive)
            heartbeat.stop()
            if stopping():
                log.info("learner.stopped", policy_version=engine.policy_version)
                sys.exit(STOPPED)
            watchdog.enter(EXPORT)
            engine.export(settings.run.directory / "export")
            if helm.draining:  # last: a learner that dies before goes on with the drain
                helm.drained(engine.policy_version)
            log.info("learner.done", policy_version=engine.policy_version)


def recorder(
    metrics: MetricsFile,
    sinks: Sinks,
    watchdog: Watchdog,
    heartbeat: Heartbeat,
    alarms: JudgeAlarms,
    spans: BatchSpans,
) -> Callable[[dict[str, Any]], None]:
    """Records a batch, what stood still meanwhile, and how the judge does.

    A batch that was trained and published is progress.
    """
    waiting = WaitingShare()

    def record(batch: dict[str, Any]) -> None:
        watchdog.progress()
        standing = alarms.look()
        heartbeat.note(waiting_share=waiting.after(batch), judge=alarms.panel.shown, alarms=standing)
        recorded = metrics.record({**batch, "judge/alarms": len(standing), **watchdog.take()})
        sinks.record(recorded)
        spans.batch(recorded)

    return record


def both(*listeners: Callable[..., None]) -> Callable[..., None]:
    """Tell each of them."""

    def tell(*what: Any) -> None:
        for listener in listeners:
            listener(*what)

    return tell
