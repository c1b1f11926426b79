"""Some hundred schedules of the simulation: whole runs under faults. ``make simulation`` makes a hundred thousand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from simulation.campaign import campaign

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
