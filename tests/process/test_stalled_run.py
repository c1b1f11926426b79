"""A run in which one process stands still: the others say so, where people look."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from run_harness import Up, processes_of, spark, steps_of, until


def status(run: Path, cwd: Path) -> dict[str, Any]:
    said = spark("status", str(run), "--json", cwd=cwd)
    assert said.returncode in (0, 6), said.stderr  # a stall that lasts is a problem
    return dict(json.loads(said.stdout))


def log_of(run: Path, member: str, event: str) -> list[dict[str, Any]]:
    path = run / "logs" / f"{member}.log"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line for line in map(json.loads, lines) if line["event"] == event]


def waits_for_groups(run: Path) -> list[dict[str, Any]]:
    return [event for event in log_of(run, "learner", "stalled") if event["stage"] == "wait_for_groups"]


def test_a_stopped_actor_makes_the_learner_say_what_it_waits_for_until_it_goes_on(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    up = start("learner.max_steps=100000", "actor.count=1", "run.no_progress_s=6", "redis.lease_s=600")
    until(lambda: len(steps_of(up.run)) >= 2, "two steps")
    actor = processes_of(up.run)["actor-0"]
    os.kill(actor, signal.SIGSTOP)
    try:
        said = until(lambda: waits_for_groups(up.run), "a stalled learner")[0]  # a slow start may be one, too
        stalls = status(up.run, tmp_path)["stalls"]
        until(lambda: "learner stalled in wait_for_groups" in up.output.read_text(), "a line of the display")
    finally:
        os.kill(actor, signal.SIGCONT)
    assert "4 policy groups" in said["waits_for"]
    assert "actors" in said["unblocked_by"]
    assert said["member"] == "learner"
    assert "wait_for_groups" in stalls["learner"]
    reached = len(steps_of(up.run))
    until(lambda: len(steps_of(up.run)) >= reached + 2, "steps after the actor went on")
    rows = [json.loads(line) for line in (up.run / "metrics.jsonl").read_text().splitlines()]
    stalled = [row for row in rows if row["stalls"]]
    assert stalled
    assert stalled[0]["stalls_s"] > 6


def test_a_server_that_is_killed_is_started_again_and_nothing_is_lost(start: Callable[..., Up]) -> None:
    up = start("learner.max_steps=100000")
    until(lambda: len(steps_of(up.run)) >= 3, "three steps")
    url = (up.run / "server" / "url").read_text().removeprefix("unix://")
    os.kill(_server_pid(url), signal.SIGKILL)
    reached = len(steps_of(up.run))
    until(lambda: len(steps_of(up.run)) >= reached + 3, "three steps with the new server")
    up.interrupt()
    assert up.wait() == 0, up.output.read_text()
    assert log_of(up.run, "up", "up.server_died")
    assert json.loads((up.run / "summary.json").read_text())["ledger"]["balanced"] is True


def _server_pid(socket: str) -> int:
    """The process that was told to listen on this socket; its title may have been rewritten by itself."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:  # it ended meanwhile
                continue
            if socket.encode() in words and b"server" in words:
                return int(entry.name)
    raise AssertionError(f"no process listens on {socket}")
