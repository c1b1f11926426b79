"""What the SDK logs goes to the run's log as events, and not once a second: a collector may be away for hours."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import structlog

log = structlog.get_logger()

LOGGERS: Final = ("opentelemetry", "redis.observability", "urllib3")
QUIET_S: Final = 60.0
"""The same trouble is told again after this long, with how often it came."""


class SdkLog(logging.Handler):
    """Warnings of the SDK as the event ``telemetry.trouble``."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock
        self._told: dict[str, tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Once per module and QUIET_S. The exception of a record is its last line, without a traceback."""
        at, more = self._told.get(record.name, (float("-inf"), 0))
        if self._clock() - at < QUIET_S:
            self._told[record.name] = (at, more + 1)
            return
        self._told[record.name] = (self._clock(), 0)
        cause = repr(record.exc_info[1]) if record.exc_info and record.exc_info[1] else ""
        log.warning("telemetry.trouble", source=record.name, said=record.getMessage(), cause=cause, unsaid=more)

    def close(self) -> None:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self)
            logging.getLogger(name).propagate = True
        super().close()


def sdk_log(clock: Callable[[], float] = time.monotonic) -> SdkLog:
    """Listen from now on, until it is closed."""
    handler = SdkLog(clock)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).propagate = False
    return handler
