"""Many schedules, over several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from simulation.patches import on_a_virtual_machine
from simulation.planted import planted
from simulation.schedule import Result, run

CHUNK: Final = 50
"""Schedules that a process makes before it reports."""
SHOWN: Final = 20
"""Failed schedules that are kept with all they say."""


@dataclass(slots=True)
class Summary:
    """Of all schedules so far."""

    schedules: int = 0
    items: int = 0
    commands: int = 0
    virtual_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    failed: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        self.schedules += 1
        self.items += result.items
        self.commands += result.commands
        self.virtual_s += result.virtual_s
        self.faults += result.faults
        self.outcomes += result.outcomes
        if result.violations:
            self.failed.append(result)


def campaign(seeds: range, processes: int, bug: str | None = None) -> Iterator[Summary]:
    """One summary that grows, each time some more schedules are done. ``bug``: a planted one (``planted.BUGS``)."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    summary = Summary()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for results in pool.map(run_some, chunks, [bug] * len(chunks)):
            for result in results:
                summary.add(result)
            yield summary


def run_some(seeds: range, bug: str | None = None) -> list[Result]:
    """In this process."""
    with on_a_virtual_machine(), planted(bug):
        return [run(seed, folder()) for seed in seeds]


def folder() -> Path:
    """Where this process keeps the files of a run: in memory where there is such a place."""
    memory = Path("/dev/shm")
    return (memory if memory.is_dir() else Path("/tmp")) / f"spark-simulation-{os.getpid()}"


def traced(seed: int, bug: str | None = None) -> tuple[Result, list[str]]:
    """One schedule with everything that happens in it."""
    trace: list[str] = []

    def log(logger: Any, method: str, event: dict[str, Any]) -> Any:
        import structlog

        text = " ".join(f"{name}={value!r}" for name, value in event.items() if name != "event")
        trace.append(f"{'':23} log {event['event']} {text}")
        raise structlog.DropEvent

    with on_a_virtual_machine(log), planted(bug):
        result = run(seed, folder(), trace)
    return result, trace
