"""The real command in real processes, on a small run of the arithmetic example."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "arithmetic" / "run.toml"
SMALL = (
    "learner.groups_per_step=4",
    "learner.max_steps=3",
    "learner.checkpoint_every=2",
    "actor.groups_in_flight=4",
    'eval.prompts=""',
)
DEADLINE_S = 120.0


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPARK_")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error::UserWarning", "-m", "cli", *arguments]


def spark(*arguments: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run ``spark`` to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env={**environment(), **extra},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def overrides(*settings: str) -> list[str]:
    return [part for setting in (*SMALL, *settings) for part in ("--set", setting)]


def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Poll until ``condition`` holds; its value. Fails with what was waited for."""
    give_up_at = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > give_up_at:
            pytest.fail(f"waited {deadline_s:.0f} s for {what}")
        time.sleep(0.05)
    return value


def steps_of(run: Path) -> list[int]:
    """Policy versions in metrics.jsonl; complete lines only."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line)["policy_version"] for line in lines if line.endswith("\n")]


def processes_of(run: Path) -> dict[str, int]:
    """Member -> pid of the processes of a run, found by their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:  # it ended meanwhile
            continue
        if str(run / "config.toml") in words and "-m" in words:
            role = words[words.index("-m") + 2]
            found[words[words.index("--name") + 1] if "--name" in words else role] = int(entry.name)
    return found


class Up:
    """A `spark up` in the background."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.run = folder / "runs" / "demo"
        self.output = folder / "up.log"
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                command("up", str(DEMO), *overrides(*settings)),
                cwd=folder,
                env=environment(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait(self) -> int:
        return self.process.wait(timeout=DEADLINE_S)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)
