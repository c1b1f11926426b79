"""What a run's folder tells: how it ended, its newest checkpoint, who died under `spark up`."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cli.folder_facts import read_folder
from cli.rundir import RunDirectory
from common.settings import Settings

NOW = 1_800_000_000.0


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(Settings.model_validate({"run": {"name": "test", "dir": str(tmp_path)}}))
    directory.create()
    directory.logs.mkdir()
    return directory


def write(path: Path, text: str, at: float = NOW) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    os.utime(path, (at, at))


def test_an_empty_folder_tells_its_disk_only(run: RunDirectory) -> None:
    facts = read_folder(run, NOW)
    assert (facts.ending, facts.saved, facts.deaths) == ("", None, ())
    assert facts.disk is not None
    assert 0 < facts.disk.free_bytes <= facts.disk.total_bytes


def test_whether_there_is_a_report(run: RunDirectory) -> None:
    assert not read_folder(run, NOW).report
    write(run.path / "report.html", "<html>")
    assert read_folder(run, NOW).report


@pytest.mark.parametrize(
    ("summary", "metrics_at", "ending"),
    [
        ('{"finished": true}', NOW - 1, "finished"),
        ('{"finished": false}', NOW - 1, "stopped"),
        ('{"finished": false}', NOW + 1, ""),
        ('{"finished": ', NOW - 1, ""),
    ],
)
def test_how_a_run_ended(run: RunDirectory, summary: str, metrics_at: float, ending: str) -> None:
    write(run.summary, summary)
    write(run.metrics, "", metrics_at)
    assert read_folder(run, NOW).ending == ending


def test_the_newest_checkpoint(run: RunDirectory) -> None:
    for name, at in (
        ("e000001-s00000020", NOW - 90),
        ("e000002-s00000030.1", NOW - 40),
        ("e000002-s00000040.tmp", NOW),
    ):
        folder = run.path / "checkpoints" / name
        write(folder / "weights", "x" * 100)
        os.utime(folder, (at, at))
    saved = read_folder(run, NOW).saved
    assert saved is not None
    assert (saved.policy_version, saved.age_s, saved.size_bytes) == (30, 40.0, 100)


def test_deaths_of_the_last_hour_with_last_words(run: RunDirectory) -> None:
    def line(event: str, ago_s: float, **more: object) -> str:
        at = datetime.fromtimestamp(NOW - ago_s, UTC).isoformat().replace("+00:00", "Z")
        return json.dumps({"event": event, "timestamp": at, "member": "up", **more})

    lines = [
        'cut off in the middle": 3}',
        line("up.child_died", 4000.0, member="actor-0", exit_code=1),
        line("up.child_died", 100.0, member="actor-0", exit_code=-9),
        line("up.started", 50.0),
        line("up.server_died", 10.0, exit_code=-9),
    ]
    write(run.logs / "up.log", "\n".join(lines))
    write(run.logs / "actor-0.stderr", "Traceback\nspark: it is too large\n\n")
    actor, server = read_folder(run, NOW).deaths
    assert (actor.member, actor.exit_code, actor.ago_s, actor.last_words) == ("actor-0", -9, 100.0, "it is too large")
    assert (server.member, server.last_words) == ("server", "")
