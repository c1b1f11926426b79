"""A real run that is paused, steered, killed, resumed and drained, by the commands as a user types them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from run_harness import Up, processes_of, spark, steps_of, until

LOOK_S = 3.0
"""How long a paused run is looked at; the learner obeys within a second and a step."""


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def issued(run: Path, cwd: Path) -> dict[str, int]:
    said = spark("status", str(run), "--json", cwd=cwd)
    ledger = json.loads(said.stdout)["ledger"]
    return {kind: ledger[kind]["issued"] for kind in ("policy", "judge")}


def told(cwd: Path, *arguments: str) -> str:
    said = spark(*arguments, cwd=cwd)
    assert said.returncode == 0, said.stderr
    return said.stdout


def test_a_run_is_paused_steered_killed_resumed_and_drained(start: Callable[..., Up], tmp_path: Path) -> None:
    up = start("learner.max_steps=100000", "actor.count=1", "learner.checkpoint_every=1000", "run.no_progress_s=4")
    run = up.run
    until(lambda: len(steps_of(run)) >= 3, "three steps")

    # a change takes effect
    assert "set after step" in told(tmp_path, "set", str(run), "learner.lr=0.000125", "learner.judge_share=0.2")
    until(lambda: rows(run)[-1]["lr"] < 0.0002, "a step with the new rate")

    # a pause holds: no step, no task, however long one looks; nobody calls it a stall
    assert "paused after step" in told(tmp_path, "pause", str(run))
    reached, tasks = steps_of(run)[-1], issued(run, tmp_path)
    log = run / "logs" / "actor-0.log"
    until(lambda: "rests" in log.read_text(), "the actor to say why it rests")
    give_up_at = time.monotonic() + LOOK_S
    while time.monotonic() < give_up_at:
        assert steps_of(run)[-1] == reached
        time.sleep(0.1)
    assert issued(run, tmp_path) == tasks
    status = json.loads(spark("status", str(run), "--json", cwd=tmp_path).stdout)
    assert status["members"]["learner"]["state"].startswith("paused by ")
    assert "stalled" not in status["members"]["actor-0"]["state"]

    # a learner that is killed stays paused, and keeps the change although its last checkpoint may not know of it
    before = processes_of(run)["learner"]
    os.kill(before, signal.SIGKILL)
    until(lambda: processes_of(run).get("learner", before) != before, "another learner")
    assert f"goes on after step {reached}\n" in told(tmp_path, "resume", str(run), "--wait", "60")
    until(lambda: steps_of(run)[-1] > reached, "a step after the pause")
    assert rows(run)[-1]["lr"] < 0.0002

    # a bad value is refused before anything is sent
    refused = spark("set", str(run), "learner.judge_share=1.5", cwd=tmp_path)
    assert refused.returncode == 2
    assert "learner.judge_share=1.5: input should be less than 1" in refused.stderr

    # a drain trains what is in flight, and ends well
    told(tmp_path, "drain", str(run))
    assert up.wait() == 0, up.output.read_text()
    assert "drained; `spark up" in up.output.read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["finished"], summary["drained"], summary["ledger"]["balanced"]) == (False, True, True)
    assert [summary["ledger"][kind]["in_flight"] for kind in ("policy", "judge")] == [0, 0]
    assert json.loads(told(tmp_path, "audit", str(run), "--json"))["ok"] is True
    listed = told(tmp_path, "set", str(run))
    assert "learner.lr = 0.000125, set by " in listed
    assert "(run file: 0.0003)" in listed


def test_a_run_that_is_paused_while_it_is_down_starts_paused_and_says_so(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    up = start("learner.max_steps=100000", "actor.count=1", "learner.judge_share=0.0")
    until(lambda: len(steps_of(up.run)) >= 2, "two steps")
    up.interrupt()
    assert up.wait() == 0, up.output.read_text()
    reached = steps_of(up.run)[-1]
    assert "no learner of this run is running" in told(tmp_path, "pause", str(up.run))
    up = start("learner.max_steps=100000", "actor.count=1", "learner.judge_share=0.0")
    until(lambda: "`spark resume" in up.output.read_text(), "a word about the pause, before anything starts")
    until(lambda: "learner paused by" in up.output.read_text(), "the learner to say that it is paused")
    assert "goes on after step" in told(tmp_path, "resume", str(up.run), "--wait", "60")
    until(lambda: steps_of(up.run)[-1] > reached, "a step after the pause")
    log = (up.run / "logs" / "learner.log").read_text()
    assert log.index('"action": "pause"') < log.index('"action": "resume"')
