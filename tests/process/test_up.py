"""`spark up` from start to report, resumed, interrupted, and with processes killed under it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from run_harness import Up, processes_of, spark, steps_of, until
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.checkpoint import CheckpointStore


def summary(run: Path) -> dict[str, object]:
    return dict(json.loads((run / "summary.json").read_text(encoding="utf-8")))


def test_a_run_ends_with_everything_a_user_expects_and_goes_on_when_asked(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    up = start()
    assert up.wait() == 0, up.output.read_text()
    assert steps_of(up.run) == [1, 2, 3]
    assert summary(up.run)["finished"] is True
    assert (up.run / "report.html").is_file()
    model = AutoModelForCausalLM.from_pretrained(up.run / "export")
    assert model.num_parameters() > 0
    assert AutoTokenizer.from_pretrained(up.run / "export").chat_template

    status = spark("status", str(up.run), "--json", cwd=tmp_path)
    assert status.returncode == 0, status.stderr
    ledger = json.loads(status.stdout)["ledger"]
    assert ledger["balanced"] is True
    assert ledger["policy"]["trained"] == 12
    assert ledger["policy"]["issued"] > 12

    assert {path.name for path in tmp_path.iterdir()} == {"runs", "up.log"}  # nothing is written elsewhere
    again = start("learner.max_steps=5")
    assert again.wait() == 0, again.output.read_text()
    assert steps_of(up.run) == [1, 2, 3, 4, 5]
    ledger = summary(up.run)["ledger"]
    assert ledger["balanced"] is True
    assert ledger["policy"]["trained"] == 20

    kept = (up.run / "config.toml").read_bytes()
    refused = start("run.seed=5")
    assert refused.wait() == 2
    assert "run.seed are fixed for a run" in refused.output.read_text()
    assert (up.run / "config.toml").read_bytes() == kept  # what is refused changes nothing

    copy = shutil.copytree(up.run, tmp_path / "elsewhere" / up.run.name)
    assert str(copy) in spark("export", str(copy), cwd=tmp_path).stdout
    renamed = spark("export", str(copy.rename(copy.with_name("other"))), cwd=tmp_path)
    assert renamed.returncode == 2
    assert "a run's folder bears its name" in renamed.stderr

    exported = spark("export", str(up.run), "--to", str(tmp_path / "model"), cwd=tmp_path)
    assert "policy version 5" in exported.stdout, exported.stderr
    assert "WARNING" not in exported.stdout + exported.stderr
    held_out = tmp_path / "held_out.jsonl"
    questions = [(f"{n} +1 +2 +{d} -1", str(n + d + 2)) for n in range(6) for d in range(1, 5)]
    lines = [json.dumps({"prompt": q, "answer": answer, "verifier": "exact"}) + "\n" for q, answer in questions]
    held_out.write_text("".join(lines), encoding="utf-8")
    arguments = ["--draws", "24", "--json", str(tmp_path / "figures.json"), "--set", "eval.votes=2"]
    evaluated = spark("eval", str(up.run), str(held_out), *arguments, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["figures"]
    assert {"policy", "pointwise", "tpr", "tnr", "pairwise", "fix", "break", "tts", "majority"} <= figures.keys()


def test_an_interrupted_run_leaves_no_process_and_resumes(start: Callable[..., Up]) -> None:
    up = start("learner.max_steps=200")
    until(lambda: len(steps_of(up.run)) >= 3, "three steps")
    assert len(processes_of(up.run)) == 4
    kept = (up.run / "config.toml").read_bytes()
    second = start("learner.max_steps=1")
    assert second.wait() == 3
    assert "is up already: another `spark up` works on it" in second.output.read_text()
    assert (up.run / "config.toml").read_bytes() == kept
    up.interrupt()
    assert up.wait() == 0, up.output.read_text()
    assert processes_of(up.run) == {}
    assert summary(up.run)["finished"] is False
    assert summary(up.run)["ledger"]["balanced"] is True
    reached = steps_of(up.run)[-1]

    resumed = start(f"learner.max_steps={reached + 2}")
    assert resumed.wait() == 0, resumed.output.read_text()
    assert steps_of(up.run) == list(range(1, reached + 3))
    assert summary(up.run)["ledger"]["balanced"] is True


def test_killed_processes_are_restarted_and_nothing_is_lost_or_counted_twice(start: Callable[..., Up]) -> None:
    up = start(
        "learner.max_steps=10000", "redis.lease_s=4"
    )  # more than it can do: the run must not end before the kills
    until(lambda: len(steps_of(up.run)) >= 3, "three steps")
    for member in ("actor-0", "recycler", "learner"):
        before = processes_of(up.run)[member]
        os.kill(before, signal.SIGKILL)
        until(lambda: processes_of(up.run).get(member, before) != before, f"a new {member}")  # noqa: B023
    reached = len(steps_of(up.run))
    until(lambda: len(steps_of(up.run)) >= reached + 3, "three steps after the last kill")
    up.interrupt()
    assert up.wait() == 0, up.output.read_text()
    steps = steps_of(up.run)
    assert steps == list(range(1, len(steps) + 1))
    ledger = summary(up.run)["ledger"]
    assert ledger["balanced"] is True
    saved = CheckpointStore(up.run / "checkpoints", 2).newest()
    assert saved is not None
    assert saved.state.epoch == 2
    ended = sum(ledger[kind][o] for kind in ("policy", "judge") for o in ("trained", "filtered", "dropped_stale"))
    assert len(saved.state.ended) == ended
