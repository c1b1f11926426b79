"""The recycler: ``spark recycler RUN.toml``."""

from __future__ import annotations

import structlog

from common.heartbeat import Heartbeat
from common.process import open_streams, until_told_to_stop
from common.settings import Settings
from common.templates import load_templates
from common.watchdog import Watchdog
from recycler.loop import RecyclerLoop
from recycler.reservoir import Reservoir

log = structlog.get_logger()


def run(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT. Raises SparkError for a user's mistake or a lost server."""
    templates = load_templates(settings.templates.path)
    with until_told_to_stop() as stopping, Watchdog(settings.run.no_progress_s).watching() as watchdog:
        streams = open_streams(settings)
        reservoir = Reservoir(
            settings.recycler, settings.sampling, templates, run=settings.run.name, seed=settings.run.seed
        )
        loop = RecyclerLoop(
            streams,
            reservoir,
            content_bound=settings.staleness.content_bound,
            least_room=max(1, settings.learner.judge_groups_per_step // 4),
            heartbeat=Heartbeat(streams, "recycler", "recycler", watchdog),
        )
        watchdog.progress()
        log.info("recycler.started")
        while not stopping():
            loop.tick()
        loop.stop()
