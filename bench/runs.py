"""Training runs for benchmarks: the same processes that `spark up` starts, without its display."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.rundir import RunDirectory
from cli.train import States, Trained, train
from common.errors import SparkError
from common.settings_sources import load_settings

DEMO = Path(__file__).resolve().parent.parent / "examples" / "arithmetic" / "run.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    directory: RunDirectory
    trained: Trained
    steps: list[dict[str, Any]]

    @property
    def samples(self) -> int:
        return int(sum(step.get("samples", 0) for step in self.steps))


def run_demo(name: str, folder: Path, overrides: list[str]) -> Run:
    """Train the arithmetic example with ``overrides`` in ``folder/name``; one that was interrupted goes on."""
    settings = load_settings(DEMO, [f"run.name={name}", f"run.dir={json.dumps(str(folder))}", *overrides])
    directory = RunDirectory(settings)
    directory.create()
    directory.log_to("bench", role="bench")
    trained = train(directory, _watch_nothing)
    if not trained.finished:
        raise SparkError(f"run {directory.path} was stopped; start the benchmark again with the same folder to go on")
    lines = directory.metrics.read_text(encoding="utf-8").splitlines()
    return Run(directory=directory, trained=trained, steps=[json.loads(line) for line in lines])


async def _watch_nothing(_states: States) -> None:
    await asyncio.Event().wait()  # until the supervisor cancels it
