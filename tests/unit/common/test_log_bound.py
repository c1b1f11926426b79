"""What every event of a process says: run, role, member, and the learner's epoch once it is known, in every thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from common.log import bind_epoch, configure

ABOUT = {"run": "demo", "role": "actor", "member": "actor-0"}


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "logs" / "actor-0.log"
    configure(file=path, **ABOUT)
    yield path
    structlog.contextvars.clear_contextvars()
    structlog.get_config()["logger_factory"]._file.close()
    structlog.reset_defaults()


def in_a_thread(event: str) -> None:
    """Said by a thread of somebody else's, which inherits no context."""
    thread = threading.Thread(target=lambda: structlog.get_logger().warning(event))
    thread.start()
    thread.join()


def about(path: Path) -> dict[str, dict[str, object]]:
    """Event -> its fields, without level and time."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return {e["event"]: {k: v for k, v in e.items() if k not in ("event", "level", "timestamp")} for e in events}


def test_run_role_and_member_are_in_every_event_and_the_epoch_once_it_is_known(log_file: Path) -> None:
    structlog.get_logger().info("before.here")
    in_a_thread("before.there")
    bind_epoch(3)
    structlog.get_logger().info("after.here")
    in_a_thread("after.there")
    structlog.get_logger().info("after.own", epoch=2)
    assert about(log_file) == {
        "before.here": ABOUT,
        "before.there": ABOUT,
        "after.here": {**ABOUT, "epoch": 3},
        "after.there": {**ABOUT, "epoch": 3},
        "after.own": {**ABOUT, "epoch": 2},
    }


def test_another_process_s_log_begins_anew(log_file: Path, tmp_path: Path) -> None:
    bind_epoch(3)
    structlog.get_config()["logger_factory"]._file.close()
    structlog.contextvars.clear_contextvars()
    other = tmp_path / "learner.log"
    configure(file=other, run="other")
    structlog.get_logger().info("learner.started")
    assert about(other) == {"learner.started": {"run": "other"}}
