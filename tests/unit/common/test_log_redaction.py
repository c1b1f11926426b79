"""Events in the log: whole lines of JSON, without credentials."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from common.log import configure, redact


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "logs" / "actor.log"
    configure(file=path, run="demo", role="actor")
    yield path
    structlog.contextvars.clear_contextvars()
    structlog.get_config()["logger_factory"]._file.close()
    structlog.reset_defaults()


def events(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("redis://user:pw@host:6379/0", "redis://***@host:6379/0"),
        ("rediss://:pw@host", "rediss://***@host"),
        ("lost redis://a:b@one and redis://c:d@two", "lost redis://***@one and redis://***@two"),
        ("unix:///run/spark.sock", "unix:///run/spark.sock"),
        ("unix:///run/spark.sock?password=pw&db=1", "unix:///run/spark.sock?password=***&db=1"),
        ("rediss://host?db=1&password=p/w", "rediss://host?db=1&password=***"),
        ("redis://host:6379", "redis://host:6379"),
        ("mail me@home", "mail me@home"),
    ],
)
def test_urls_lose_their_credentials_only(said: str, kept: str) -> None:
    assert redact(None, "info", {"event": said, "url": said, "n": 1}) == {"event": kept, "url": kept, "n": 1}


def test_an_event_is_one_line_with_what_was_bound(log_file: Path) -> None:
    structlog.get_logger().info("actor.started", url="redis://user:pw@host", text="two\nlines")
    [event] = events(log_file)
    assert event.pop("timestamp")
    assert event == {
        "event": "actor.started",
        "level": "info",
        "run": "demo",
        "role": "actor",
        "url": "redis://***@host",
        "text": "two\nlines",
    }


def test_events_below_info_are_left_out(log_file: Path) -> None:
    structlog.get_logger().debug("detail")
    assert events(log_file) == []


def test_an_exception_comes_with_its_traceback(log_file: Path) -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        structlog.get_logger().exception("actor.failed")
    [event] = events(log_file)
    assert "ValueError: boom" in str(event["exception"])
