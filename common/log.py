"""Logging: one event with fields a line. JSON in files, readable in a terminal; URLs lose their credentials."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

import structlog

from common.log_file import LogFile, Terminal

_CREDENTIALS: Final = (
    (re.compile(r"(\w+://)[^\s\"']+@"), r"\1***@"),  # up to the last @ of a word: a password may hold @ and /
    (re.compile(r"([?&]password=)[^\s\"'&]+"), r"\1***"),  # the other place of a URL for it
)


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace user and password in any URL of an event."""
    return {key: _redacted(value) for key, value in event.items()}


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        for pattern, hidden in _CREDENTIALS:
            value = pattern.sub(hidden, value)
        return value
    if isinstance(value, Mapping):
        return {key: _redacted(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(part) for part in value]
    return value


def configure(*, file: Path | None = None, json: bool | None = None, **bound: object) -> None:
    """Send events to ``file`` (JSON lines) or to stderr. ``bound`` fields (run, role, member) go with every event."""
    stream: Any = Terminal(sys.stderr) if file is None else LogFile(file, bound)
    as_json = not sys.stderr.isatty() or file is not None if json is None else json
    renderer: Any = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
