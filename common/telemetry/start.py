"""Starting and stopping the telemetry of a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from common.errors import SettingsError
from common.settings import Settings
from common.telemetry.quiet import QUIET, Telemetry

log = structlog.get_logger()


@contextmanager
def started(settings: Settings, *, role: str, member: str) -> Iterator[Telemetry]:
    """The telemetry of this process until the block is left. Raises SettingsError when it is not installed."""
    if not settings.telemetry.on:
        yield QUIET
        return
    try:
        from common.telemetry.sdk import Running
    except ImportError as error:
        raise SettingsError(
            f"[telemetry] needs {error.name}, which is not installed; run "
            "`pip install -c constraints.txt -e '.[telemetry]'`, or leave telemetry.endpoint and "
            "telemetry.prometheus_port out"
        ) from error
    running = Running(settings.telemetry, role, member, settings.run.name)
    wanted, told = settings.telemetry, running.telemetry
    log.info("telemetry.started", endpoint=wanted.endpoint, prometheus=told.address, share=wanted.sample_share)
    try:
        yield told
    finally:
        running.stop()
