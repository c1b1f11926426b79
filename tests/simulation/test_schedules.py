"""Some hundred schedules of the simulation: whole runs under faults. ``make simulation`` makes a hundred thousand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulation.campaign import campaign, run_some
from simulation.world import World

ROOT = Path(__file__).parents[2]
SEEDS = range(1000, 1200)
REPLAYED = "1003"


def test_no_schedule_breaks_a_promise() -> None:
    *_, summary = campaign(SEEDS, processes=2)
    assert summary.schedules == len(SEEDS)
    assert {result.seed: result.violations for result in summary.failed} == {}
    assert sum(summary.faults.values()) > len(SEEDS)
    assert summary.outcomes["learner done"] >= len(SEEDS)
    assert summary.outcomes["learner killed"] > 0
    assert summary.outcomes["learner Fenced"] > 0


def test_a_check_that_crashes_names_its_seed_and_ends_nothing(monkeypatch) -> None:
    def crash(*_: object) -> Iterator[str]:
        yield "seen before"
        raise ValueError("no such key")

    monkeypatch.setattr("simulation.schedule._reference", lambda *_: None)
    monkeypatch.setattr("simulation.schedule.wrong", crash)
    for seed, result in enumerate(run_some(range(2))):
        assert result.seed == seed
        assert result.violations[0] == "seen before"
        assert "ValueError: no such key" in result.violations[1]


@pytest.mark.parametrize("fault", [True, False])
def test_only_a_server_that_was_flushed_may_know_nothing_of_a_run_that_is_over(fault: bool, monkeypatch) -> None:
    ends = World.run

    def wiped(world: World) -> None:
        ends(world)
        world.server.flushall()
        world.flushed = fault

    monkeypatch.setattr(World, "run", wiped)
    monkeypatch.setattr("simulation.schedule._reference", lambda *_: None)
    [result] = run_some(range(1))
    assert any("knows nothing of run" in violation for violation in result.violations) is not fault


def test_a_seed_replays_exactly() -> None:
    """Also in another process, where strings hash otherwise."""
    traces = [_trace(hash_seed) for hash_seed in ("1", "2")]
    assert "***" in traces[0]
    assert traces[0] == traces[1]


def _trace(hash_seed: str) -> str:
    path = os.pathsep.join(str(ROOT / name) for name in (".", "tests", "tests/helpers"))
    command = [sys.executable, "-m", "simulation", "--seed", REPLAYED, "--trace"]
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout
