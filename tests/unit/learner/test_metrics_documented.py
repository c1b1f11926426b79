"""docs/metrics.md names what the learner writes: everything, and nothing else.

The learner's own loop, engine and recorder run on a tiny model; only where groups come from and what is published are
replaced, so that every kind of group occurs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.messages import OBJECTIVES, Objective, RolloutGroup, SourceRef, answer_hash
from common.settings import Settings
from common.steering import Steering
from common.watchdog import Watchdog
from learner.__main__ import recorder
from learner.group_stats import GroupStats
from learner.judge_alarms import JudgeAlarms
from learner.loop import run
from learner.metrics_file import MetricsFile
from learner.sinks import open_sinks
from learner.steering import Helm
from learner.torch_engine import TorchEngine

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"
PLACEHOLDERS = {
    "OBJECTIVE": f"({'|'.join(OBJECTIVES)})",
    "KIND": "(policy|judge)",
    "OUTCOME": "(trained|filtered|dropped_stale)",
    "STAGE": "(wait_for_groups|paused|step|publish|checkpoint)",
    "K": r"\d+",
}


def documented() -> list[str]:
    """The names in the first columns of the tables of section 1."""
    section = DOCUMENT.read_text(encoding="utf-8").split("\n## ")[1]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\b(OBJECTIVE|KIND|OUTCOME|STAGE|K)\b|(?<=_)K\b", lambda m: PLACEHOLDERS[m[0]], name))


class Intake:
    """Two batches of every kind of group; the rest of the real one needs a server."""

    def __init__(self, batches: list[list[RolloutGroup]], settings: Settings) -> None:
        stats, staleness = GroupStats(settings.metrics), lambda group: 1 - group.oldest_version
        self.shelf = SimpleNamespace(stats=stats, staleness=staleness)
        self.helm = Helm(settings)
        self.helm.steering = Steering(mode="paused")  # for the first batch
        self._batches = batches

    def take(self, *_: Any) -> list[RolloutGroup] | None:
        if not self._batches:
            return None
        batch, self.helm.steering = self._batches.pop(0), Steering()
        for group in batch:
            self.shelf.stats.arrived(group, 3)
            self.shelf.stats.trained(group, 0, 3)
            for outcome in ("trained", "filtered", "dropped_stale"):
                self.shelf.stats.ended(outcome, group.task.kind)
        return batch

    def stopping(self) -> bool:
        return False


def groups(make_group) -> Iterator[RolloutGroup]:
    def made(index: int, objective: Objective, *shown: str, positive: bool | None, version: int = 0) -> RolloutGroup:
        group = make_group(index, (1.0, 0.0, None), objective=objective, positive=positive, version=version)
        return replace(group, task=replace(group.task, sources=tuple(map(answer, shown))))

    def answer(text: str) -> SourceRef:
        return SourceRef(
            uid="s",
            sample=0,
            answer_hash=answer_hash(text),
            policy_version=0,
            weights_epoch=1,
            correct=text == "42",
            verifier="exact@1",
        )

    yield made(0, "solve", positive=None)
    yield made(1, "solve", positive=None, version=1)
    for index in range(2, 20):
        yield made(index, "pointwise", "42" if index % 2 else "41", positive=index % 2 == 1)
    yield made(20, "pointwise", "", positive=False)
    yield made(21, "pointwise", ":", positive=False)
    yield made(22, "pairwise", "42", "41", positive=True)
    yield made(23, "pairwise", "41", "42", positive=False)
    yield made(24, "reflect", "41", positive=False)
    yield made(25, "reflect", "42", positive=True)


@dataclass(kw_only=True)
class Trained:
    written: set[str]
    """Every name in metrics.jsonl."""
    noted: dict[str, Any]
    """What the heartbeat says."""


@pytest.fixture(scope="module")
def trained(make_group, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A learner trains two batches."""
    folder = tmp_path_factory.mktemp("metrics")
    settings = Settings.model_validate(
        {
            "model": {"path": str(tiny_model)},
            "run": {"dir": folder},
            "learner": {"max_steps": 2, "lr": 1e-4},
            "loss": {"kl_coef": 0.01},
        }
    )
    intake: Any = Intake([list(groups(make_group)) for _ in range(2)], settings)
    noted: dict[str, Any] = {}
    idle = SimpleNamespace(
        publish=lambda _: None,
        tend=lambda _: True,
        save=lambda _: None,
        save_if_due=lambda _: None,
        finish=lambda *_: None,
        note=noted.update,
        batch=lambda _: None,
    )
    others: Any = idle
    with MetricsFile(folder / "metrics.jsonl", 0) as file, open_sinks(settings, 0) as sinks:
        alarms = JudgeAlarms(intake.shelf.stats.judge, settings.metrics)
        record = recorder(file, sinks, Watchdog(), others, alarms, others)
        run(TorchEngine(settings), intake, others, others, settings, record)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    return Trained(written={name for line in lines for name in json.loads(line)}, noted=noted)


def test_every_metric_is_documented(trained: Trained) -> None:
    patterns = [pattern(name) for name in documented()]
    assert {name for name in trained.written if not any(p.fullmatch(name) for p in patterns)} == set()


def test_every_documented_metric_is_written(trained: Trained) -> None:
    missing = {name for name in documented() if not any(pattern(name).fullmatch(found) for found in trained.written)}
    assert missing == set()


def test_the_heartbeat_carries_the_panel_and_the_alarms(trained: Trained) -> None:
    """Half of all verdicts accept here. Of wrong answers, the two probes included, so few came that none is raised."""
    assert (trained.noted["judge"]["tpr"], trained.noted["judge"]["tnr"]) == (0.5, 0.5)
    assert {"auroc", "ece", "swap_consistency", "accuracy/age_3"} <= set(trained.noted["judge"])
    assert trained.noted["alarms"] == []


def test_the_names_are_read_from_the_tables() -> None:
    names = documented()
    assert {"loss", "kl/staleness_K", "OUTCOME/KIND", "judge/accuracy/age_K"} <= set(names)
    assert len(names) == len(set(names))
    assert pattern("judge/accuracy/age_K").fullmatch("judge/accuracy/age_12")
    assert not pattern("kl/OBJECTIVE").fullmatch("kl/nothing")
