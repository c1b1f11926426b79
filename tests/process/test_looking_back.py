"""`spark tail` and `spark why` on a real run: while it goes on, after its learner was killed, and when it is over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from run_harness import Up, command, environment, processes_of, spark, steps_of, until

from common.archive import ArchiveReader


def follow(run: Path, cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("tail", str(run), *arguments, "--follow"),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_every_group_can_be_told_of_although_the_learner_was_killed(start: Callable[..., Up], tmp_path: Path) -> None:
    up = start("learner.max_steps=10000", "learner.checkpoint_every=4")
    until(lambda: len(steps_of(up.run)) >= 2, "two steps")
    following = follow(up.run, tmp_path, "rollouts", "-n", "0", "--json")
    metrics = follow(up.run, tmp_path, "metrics")
    assert following.stdout is not None
    assert len(json.loads(following.stdout.readline())["message"]["rollouts"]) == 8
    following.stdout.close()  # as `| head -1` does
    assert following.wait(timeout=60) == 0
    assert following.stderr is not None
    with following.stderr as complaints:
        assert complaints.read() == ""

    learner = processes_of(up.run)["learner"]
    os.kill(learner, signal.SIGKILL)
    until(lambda: processes_of(up.run).get("learner", learner) != learner, "a new learner")
    reached = len(steps_of(up.run))
    until(lambda: len(steps_of(up.run)) >= reached + 3, "three steps of the new learner")
    up.interrupt()
    assert up.wait() == 0, up.output.read_text()
    metrics.send_signal(signal.SIGINT)
    shown, _ = metrics.communicate(timeout=60)
    assert metrics.returncode == 0
    assert int(shown.splitlines()[-1].split()[1]) == steps_of(up.run)[-1]

    reader = ArchiveReader(up.run / "groups")
    ends = Counter((one.group.task.kind, one.outcome) for one in reader.groups())
    ledger = json.loads((up.run / "summary.json").read_text())["ledger"]
    outcomes = ("trained", "filtered", "dropped_stale")
    assert {(k, o): ledger[k][o] for k in ("policy", "judge") for o in outcomes if ledger[k][o]} == ends
    losses: dict[int, float] = defaultdict(float)
    for one in reader.groups():
        if one.outcome == "trained":
            assert one.loss is not None
            losses[one.policy_version] += sum(one.loss)
    told = [json.loads(line) for line in (up.run / "metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx({step["policy_version"]: step["loss"] for step in told}, abs=1e-6)

    judge = next(one for one in reader.newest_first() if one.group.task.sources and one.outcome == "trained")
    [source] = {ref.uid for ref in judge.group.task.sources}
    upward = json.loads(spark("why", str(up.run), judge.uid[:12], "--json", cwd=tmp_path).stdout)
    assert [one["task"]["question"] for one in upward["sources"]] == [judge.group.task.question]
    downward = spark("why", str(up.run), source, cwd=tmp_path)
    assert downward.returncode == 0, downward.stderr
    assert f"made into {judge.uid[:8]}  {judge.group.task.objective}  trained in step" in downward.stdout
    assert "\x1b" not in downward.stdout
    unknown = spark("why", str(up.run), "xyz", cwd=tmp_path)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "no uid begins with 'xyz'; looked through the archive" in unknown.stderr
