"""The recycler: ``spark recycler RUN.toml``."""

from __future__ import annotations

import structlog

from common.heartbeat import Heartbeat
from common.log import bind_epoch
from common.process import open_streams, until_told_to_stop
from common.settings import Settings
from common.telemetry.start import started
from common.templates import load_templates
from common.watchdog import Watchdog
from recycler.following import Following, least_room
from recycler.loop import RecyclerLoop
from recycler.reservoir import Reservoir

log = structlog.get_logger()


def run(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT. Raises SparkError for a user's mistake or a lost server."""
    templates = load_templates(settings.templates.path)
    with (
        until_told_to_stop() as stopping,
        started(settings, role="recycler", member="recycler") as telemetry,
        Watchdog(settings.run.no_progress_s).watching() as watchdog,
    ):
        with stopping.at_once():
            streams = open_streams(settings)
        heartbeat = Heartbeat(streams, "recycler", "recycler", watchdog)
        heartbeat.announce(telemetry.announced)
        telemetry.meters.follow(heartbeat.said)
        reservoir = Reservoir(
            settings.recycler, settings.sampling, templates, run=settings.run.name, seed=settings.run.seed
        )
        loop = RecyclerLoop(
            streams,
            reservoir,
            content_bound=settings.staleness.content_bound,
            least_room=least_room(settings),
            following=Following(settings),
            heartbeat=heartbeat,
            traces=telemetry.traces,
            on_epoch=bind_epoch,
        )
        watchdog.progress()
        log.info("recycler.started")
        while not stopping():
            loop.tick()
        loop.stop()
