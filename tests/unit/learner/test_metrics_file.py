"""metrics.jsonl across restarts."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from learner.metrics_file import MetricsFile


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def record(path: Path, restored: int, *steps: tuple[int, float]) -> None:
    with MetricsFile(path, restored) as file:
        for version, elapsed_s in steps:
            file.record({"policy_version": version, "elapsed_s": elapsed_s})


def test_steps_after_the_checkpoint_are_forgotten_and_time_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    record(path, 0, (1, 1.0), (2, 2.0), (3, 3.0))
    record(path, 2, (3, 0.5), (4, 1.5))
    assert [(line["policy_version"], line["elapsed_s"]) for line in lines(path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 2.5),
        (4, 3.5),
    ]


def test_a_recorded_line_is_returned_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    record(path, 0, (1, 1.0))
    with MetricsFile(path, 1) as file:
        assert file.record({"policy_version": 2, "elapsed_s": 0.5}) == lines(path)[-1]


def test_half_a_line_at_the_end_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    record(path, 0, (1, 1.0))
    path.write_text(path.read_text(encoding="utf-8") + '{"policy_ver', encoding="utf-8")
    record(path, 5, (2, 1.0))
    assert [line["policy_version"] for line in lines(path)] == [1, 2]


def test_a_run_from_the_start_forgets_everything(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    record(path, 0, (1, 1.0))
    record(path, 0)
    assert lines(path) == []


# -- a disk without room --------------------------------------------------------------------------------------


@pytest.fixture
def limited() -> Iterator[Callable[[int | None], None]]:
    """Sets the largest file that this process may write: the end of the disk, without a disk. Events are not printed,
    since they would go to a file too; so would pytest's own words, hence ``limited(None)`` before a test ends."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with capture_logs():
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def step(version: int) -> dict[str, float]:
    return {"policy_version": version, "elapsed_s": float(version), "loss": 0.5}


def test_lines_wait_for_room_and_no_half_line_is_ever_in_the_file(tmp_path: Path, limited) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0) as file:
        file.record(step(1))
        one = path.stat().st_size
        limited(one + one // 2)
        with capture_logs() as said:
            file.record(step(2))
            assert path.stat().st_size == one
            file.record(step(3))
        assert [(event["event"], event["waiting"]) for event in said] == [
            ("metrics.not_written", 1),
            ("metrics.not_written", 2),
        ]
        limited(None)
        file.record(step(4))
        assert [line["policy_version"] for line in lines(path)] == [1, 2, 3, 4]


def test_what_waits_at_the_end_is_tried_once_more(tmp_path: Path, limited) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0) as file:
        limited(10)
        file.record(step(1))
        limited(None)
    assert [line["policy_version"] for line in lines(path)] == [1]


def test_what_no_room_was_found_for_is_said(tmp_path: Path, limited) -> None:
    with capture_logs() as said, MetricsFile(tmp_path / "metrics.jsonl", 0) as file:
        limited(10)
        file.record(step(1))
    limited(None)
    assert said[-1] == {"event": "metrics.lost", "lines": 1, "log_level": "error"}


def test_memory_has_an_end_too(tmp_path: Path, limited, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.metrics_file.MOST_WAITING", 2)
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, 0) as file:
        limited(10)
        for version in range(1, 5):
            file.record(step(version))
        limited(None)
    assert [line["policy_version"] for line in lines(path)] == [3, 4]


def test_a_run_is_resumed_on_a_disk_without_any_room(tmp_path: Path, limited) -> None:
    """Forgetting lines needs no room."""
    path = tmp_path / "metrics.jsonl"
    record(path, 0, (1, 1.0), (2, 2.0), (3, 3.0))
    limited(0)
    with MetricsFile(path, 1):
        found = lines(path)
    limited(None)
    assert [line["policy_version"] for line in found] == [1]


def test_a_full_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system needs root")
    try:
        with MetricsFile(disk / "metrics.jsonl", 0) as file:
            for version in range(1, 2000):
                file.record(step(version))
            there = [line["policy_version"] for line in lines(disk / "metrics.jsonl")]
            assert there == list(range(1, len(there) + 1))
            assert len(there) < 1999
            subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
            file.record(step(2000))
        assert [line["policy_version"] for line in lines(disk / "metrics.jsonl")] == list(range(1, 2001))
    finally:
        subprocess.run(["umount", disk], check=True)
