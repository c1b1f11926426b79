"""A log on a full disk: whoever logs never notices, and the log says later what is missing."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from common.log import configure
from common.log_file import LogFile, Terminal

BOUND = {"member": "actor-0"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """A file that takes all the room but ``leave`` bytes (in whole pages)."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
        file.truncate(file.tell() - leave)
    return path


def events(path: Path) -> list[dict]:
    """Lines that are whole."""
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def test_a_full_disk_costs_lines_and_they_are_counted(small_disk: Path) -> None:
    file = LogFile(small_disk / "actor.log", BOUND)
    file.write('{"n": 1}\n')
    ballast = fill(small_disk)
    for number in range(2, 600):  # the page of the first line takes some more
        file.write(json.dumps({"n": number}) + "\n")
    lost = file.lost
    assert 0 < lost < 598
    ballast.unlink()
    file.write('{"n": 600}\n')
    file.close()
    said = events(small_disk / "actor.log")
    assert [event["n"] for event in said if "n" in event] == [*range(1, 600 - lost), 600]
    [confession] = [event for event in said if "n" not in event]
    assert (confession["event"], confession["lines"], confession["member"]) == ("log.lines_lost", lost, "actor-0")
    assert said[-2] == confession
    assert file.lost == 0


def test_a_line_that_fits_in_half_stays_on_a_line_of_its_own(small_disk: Path) -> None:
    file = LogFile(small_disk / "actor.log", BOUND)
    file.write('{"n": 1}\n')
    ballast = fill(small_disk)
    file.write(json.dumps({"n": 2, "text": "y" * 6000}) + "\n")
    assert file.lost == 1
    ballast.unlink()
    file.write('{"n": 3}\n')
    file.close()
    lines = (small_disk / "actor.log").read_text().splitlines()
    assert [json.loads(lines[0]), json.loads(lines[-1])] == [{"n": 1}, {"n": 3}]
    assert lines[1].startswith('{"n": 2, "text": "yyy')
    assert json.loads(lines[2])["event"] == "log.lines_lost"
    assert len(lines) == 4


def test_a_process_goes_on_beyond_the_largest_file_it_may_write(tmp_path: Path) -> None:
    """Without root: the limit of a process stands for the end of the disk."""
    code = """
import resource, signal, sys
from pathlib import Path
import structlog
from common.log import configure
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
path = Path(sys.argv[1])
configure(file=path, role="actor")
for number in range(50):
    structlog.get_logger().info("event", number=number)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
structlog.get_logger().info("room again")
"""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if hard != resource.RLIM_INFINITY:
        code = code.replace("(resource.RLIM_INFINITY, resource.RLIM_INFINITY)", f"({hard}, {hard})")
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.log"],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = events(tmp_path / "a.log")
    numbers = [event["number"] for event in said if "number" in event]
    assert numbers == list(range(len(numbers)))
    assert [event["event"] for event in said[-2:]] == ["log.lines_lost", "room again"]
    assert said[-2]["lines"] == 50 - len(numbers)
    assert said[-2]["role"] == "actor"


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_terminal_that_is_a_file_on_a_full_disk_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(Broken())
    terminal.write("a line\n")
    terminal.flush()
    monkeypatch.setattr(sys, "stderr", Broken())
    configure()
    structlog.get_logger().info("said to nobody")
    structlog.reset_defaults()


def test_the_device_that_is_always_full(tmp_path: Path) -> None:
    file = LogFile(Path("/dev/full"), BOUND)
    for _ in range(3):
        file.write("x\n")
    assert file.lost == 3
    file.close()
