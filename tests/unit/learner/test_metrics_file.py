"""metrics.jsonl across restarts."""

from __future__ import annotations

import json
from pathlib import Path

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
