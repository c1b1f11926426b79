"""One rollout actor: ``spark actor RUN.toml --name actor-0``. Settings first; torch only when they are right."""

from __future__ import annotations

import os
from contextlib import ExitStack

import structlog

from common.heartbeat import Heartbeat
from common.log import bind_epoch
from common.process import open_streams, until_told_to_stop
from common.settings import Settings
from common.telemetry.start import started
from common.watchdog import Watchdog

log = structlog.get_logger()


def run(settings: Settings, name: str) -> None:
    """Work until SIGTERM or SIGINT. Raises SparkError for a user's mistake or a lost server.

    Raises SystemExit when it is told to stop while it still starts.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.actor.torch_threads))  # read when torch is imported
    with (
        until_told_to_stop() as stopping,
        started(settings, role="actor", member=name) as telemetry,
        Watchdog(settings.run.no_progress_s).watching() as watchdog,
        ExitStack() as opened,
    ):
        with stopping.at_once():
            streams = open_streams(settings)
            heartbeat = Heartbeat(streams, name, "actor", watchdog)
            heartbeat.announce(telemetry.announced)
            telemetry.meters.follow(heartbeat.said)

            import torch

            from actors.actor import Actor
            from actors.adapter_source import open_source
            from actors.engines import close_engine, open_engine
            from actors.spans import GroupSpans
            from actors.verifiers.pool import VerifierPool

            torch.set_num_threads(settings.actor.torch_threads)
            source = open_source(settings)
            opened.callback(source.close)
            engine = open_engine(settings)
            opened.callback(close_engine, engine)
            pool = VerifierPool(
                workers=settings.verifier.workers,
                timeout_s=settings.verifier.timeout_s,
                memory_mb=settings.verifier.memory_mb,
                python_path=settings.run.python_path,
            )
            opened.callback(pool.close)
            actor = Actor(
                name,
                streams,
                engine,
                pool,
                max_staleness=settings.staleness.max_staleness,
                groups_in_flight=settings.actor.groups_in_flight,
                lease_s=settings.redis.lease_s,
                max_deliveries=settings.redis.max_deliveries,
                heartbeat=heartbeat,
                source=source,
                spans=GroupSpans(telemetry, settings.model.path),
                on_epoch=bind_epoch,
            )
        watchdog.progress()
        log.info("actor.started")
        while not stopping():
            actor.tick()
        actor.stop()
