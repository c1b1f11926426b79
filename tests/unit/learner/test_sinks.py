"""Metric sinks: what they write is read back from their own files, and none of them can hurt a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sink_readers import tensorboard_scalars, wandb_records
from structlog.testing import capture_logs

from common.errors import SettingsError
from common.settings import Settings
from learner.sinks import Feeder, Sink, feeder, open_sinks
from learner.sinks.base import opener


def settings_of(folder: Path, *sinks: str, **run: Any) -> Settings:
    return Settings.model_validate(
        {"run": {"dir": folder, "name": "r", **run}, "metrics": {"sinks": sinks}, "redis": {"url": "redis://u:pw@h"}}
    )


def trained(settings: Settings, start: int, *steps: int, loss: float = 0.0) -> None:
    """A learner that goes on from ``start`` and records these steps; their loss tells who trained them."""
    with open_sinks(settings, start) as sinks:
        for step in steps:
            sinks.record({"policy_version": step, "elapsed_s": float(step), "loss/all": loss + step})


# -- TensorBoard ----------------------------------------------------------------------------------------------


def test_tensorboard_shows_every_metric_by_policy_version(tmp_path: Path) -> None:
    trained(settings_of(tmp_path, "tensorboard"), 0, 1, 2)
    found = tensorboard_scalars(tmp_path / "r" / "tensorboard")
    assert found == {"elapsed_s": [(1, 1.0), (2, 2.0)], "loss/all": [(1, 1.0), (2, 2.0)]}


@pytest.mark.parametrize("start", [0, 2])
def test_tensorboard_shows_steps_trained_again_instead_of_the_lost_ones(tmp_path: Path, start: int) -> None:
    settings = settings_of(tmp_path, "tensorboard")
    trained(settings, 0, 1, 2, 3, 4)
    trained(settings, start, *range(start + 1, 6), loss=100.0)
    kept, again = [(s, float(s)) for s in range(1, start + 1)], [(s, 100.0 + s) for s in range(start + 1, 6)]
    assert tensorboard_scalars(tmp_path / "r" / "tensorboard")["loss/all"] == kept + again


# -- Weights & Biases -----------------------------------------------------------------------------------------


@pytest.fixture
def wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    yield
    wandb.teardown()


def test_a_resumed_run_is_the_same_wandb_run_and_repeats_no_step(tmp_path: Path, wandb_offline: None) -> None:
    settings = settings_of(tmp_path, "wandb")
    trained(settings, 0, 1, 2, 3)
    trained(settings, 2, 3, 4, loss=100.0)
    files = sorted((tmp_path / "r" / "wandb").glob("offline-run-*/*.wandb"))
    runs = [[r.run for r in wandb_records(file) if r.WhichOneof("record_type") == "run"] for file in files]
    assert {(run.run_id, run.display_name, run.project) for found in runs for run in found} == {
        (json.loads((tmp_path / "r" / "wandb" / "spark.json").read_text())["run_id"], "r", "spark")
    }
    assert [losses(file) for file in files] == [{1: 1.0, 2: 2.0, 3: 3.0}, {4: 104.0}]
    config = {item.key: item.value_json for found in runs for run in found for item in run.config.update}
    assert json.loads(config["learner"])["lr"] == settings.learner.lr
    assert "redis" not in config
    assert not any(b"pw@h" in file.read_bytes() for file in files)


def losses(file: Path) -> dict[int, float]:
    rows = [record.history for record in wandb_records(file) if record.WhichOneof("record_type") == "history"]
    named = [(row.step.num, item) for row in rows for item in row.item if "loss/all" in (item.key, *item.nested_key)]
    return {step: json.loads(item.value_json) for step, item in named}


# -- a sink that fails, and one that is slow --------------------------------------------------------------------


class Kept:
    """A sink that keeps what it gets, until something is wrong."""

    def __init__(self, wrong: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        self.rows: list[int] = []
        self.closed = False
        self._wrong = wrong

    def record(self, metrics: Any) -> None:
        self._wrong(metrics)
        self.rows.append(metrics["policy_version"])

    def close(self) -> None:
        self.closed = True


def ended(fed: Feeder, timeout_s: float = 10.0) -> None:
    fed.end()
    fed.join(timeout_s)


def test_a_sink_that_cannot_be_opened_is_switched_off() -> None:
    def broken() -> Sink:
        raise OSError("no such server")

    with capture_logs() as said:
        fed = Feeder("broken", broken)
        for step in range(5):
            fed.record({"policy_version": step})
        ended(fed)
    assert said == [{"event": "sink.off", "sink": "broken", "reason": "OSError: no such server", "log_level": "error"}]


def test_a_sink_that_fails_is_closed_and_gets_nothing_more() -> None:
    def fails_at_2(metrics: dict[str, Any]) -> None:
        if metrics["policy_version"] == 2:
            raise ValueError("disk full")

    kept = Kept(fails_at_2)
    with capture_logs() as said:
        fed = Feeder("kept", lambda: kept)
        for step in range(1, 6):
            fed.record({"policy_version": step})
        ended(fed)
    assert (kept.rows, kept.closed) == ([1], True)
    assert [event["event"] for event in said] == ["sink.off"]


def test_a_slow_sink_never_holds_up_the_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets what its queue holds; the rest is lost and counted."""
    monkeypatch.setattr(feeder, "MOST_WAITING", 3)
    busy, go_on = threading.Event(), threading.Event()

    def waits(_: dict[str, Any]) -> None:
        busy.set()
        go_on.wait(10)

    kept = Kept(waits)
    with capture_logs() as said:
        fed = Feeder("slow", lambda: kept)
        fed.record({"policy_version": 1})
        assert busy.wait(10)
        for step in range(2, 8):
            fed.record({"policy_version": step})  # returns, though the sink is stuck in step 1
        go_on.set()
        ended(fed)
    assert (kept.rows, kept.closed) == ([1, 2, 3, 4], True)
    assert said == [
        {"event": "sink.behind", "sink": "slow", "waiting": 3, "log_level": "warning"},
        {"event": "sink.lost", "sink": "slow", "steps": 3, "log_level": "error"},
    ]


def test_a_sink_that_hangs_at_the_end_is_left_behind() -> None:
    go_on = threading.Event()
    with capture_logs() as said:
        fed = Feeder("stuck", lambda: Kept(lambda _: go_on.wait(10) and None))
        fed.record({"policy_version": 1})
        ended(fed, timeout_s=0.05)
    assert [event["event"] for event in said] == ["sink.not_closed"]
    go_on.set()


# -- the user's own ---------------------------------------------------------------------------------------------

OWN = """
import json
class Lines:
    def __init__(self, settings, policy_version):
        self.file = open(settings.run.dir / "own.jsonl", "a")
        self.file.write(json.dumps({"from": policy_version}) + "\\n")
    def record(self, metrics):
        self.file.write(json.dumps(dict(metrics)) + "\\n")
    def close(self):
        self.file.close()
"""


def test_a_class_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "j_own_sink.py").write_text(OWN, encoding="utf-8")
    settings = settings_of(tmp_path, "python:j_own_sink:Lines", python_path=(tmp_path,))
    trained(settings, 7, 8)
    lines = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    assert lines == [{"from": 7}, {"policy_version": 8, "elapsed_s": 8.0, "loss/all": 8.0}]


def test_mistakes_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="importing j_nowhere failed"):
        opener("python:j_nowhere:Lines", [tmp_path])
    with pytest.raises(SettingsError, match=r"json has no class Nothing; write python:MODULE:CLASS"):
        opener("python:json:Nothing")
    with pytest.raises(ValueError, match=r"metrics\.sinks"):
        settings_of(tmp_path, "tensorbord")
