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


_bound: Final[dict[str, object]] = {}
"""Fields of every event of this process. What is bound in a context would not reach threads begun elsewhere."""


def of_process(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add what is known of the process; the event's own fields win."""
    return {**_bound, **event}


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
            of_process,
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
    _bound.clear()
    _bound.update(bound)


def bind_epoch(epoch: int) -> None:
    """Say with every event of this process from now on which learner epoch it belongs to."""
    _bound["epoch"] = epoch
