"""Folders of actors' copies: gone with their owner, and never taken from one that lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from common.weights_cache import OwnFolder, sweep

ROOT = Path(__file__).resolve().parents[3]
OWNER = """
import sys
from pathlib import Path
from common.weights_cache import OwnFolder

folder = OwnFolder(Path(sys.argv[1]))
(folder.path / "model").write_bytes(b"x" * 1000)
print(folder.path.name, flush=True)
sys.stdin.read()
"""


def owner(directory: Path) -> tuple[subprocess.Popen[str], str]:
    """A process with a copy; it ends when its input does."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def folders(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.is_dir()}


def test_a_process_that_ends_takes_its_folder_along(tmp_path: Path) -> None:
    process, name = owner(tmp_path)
    assert folders(tmp_path) == {name}
    process.communicate(timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_killed_process_is_swept_away_by_the_next(tmp_path: Path) -> None:
    (killed, dead), (process, alive) = owner(tmp_path), owner(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert folders(tmp_path) == {dead, alive}
    mine = OwnFolder(tmp_path)
    assert folders(tmp_path) == {alive, mine.path.name}
    sweep(tmp_path)
    assert folders(tmp_path) == {alive, mine.path.name}
    mine.close()
    mine.close()
    process.communicate(timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_is_swept(tmp_path: Path) -> None:
    (tmp_path / "spark-weights-of-mine").mkdir()
    (tmp_path / "other.lock").write_text("")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.lock", "spark-weights-of-mine"]


def test_a_directory_that_is_not_there_is_made_or_has_nothing_to_sweep(tmp_path: Path) -> None:
    sweep(tmp_path / "absent")
    folder = OwnFolder(tmp_path / "absent" / "too")
    assert folder.path.is_dir()
    assert folder.path.stat().st_mode & 0o077 == 0
    folder.close()


def test_a_lock_without_a_folder_is_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / "spark-weights-0123.lock").write_text("")
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
