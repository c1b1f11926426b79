"""The storm: faults of all kinds, several a second at times, on one run, and then the count of what is left.

The choice of faults is seeded. Which instruction of which process they hit is not: these are real processes, so a
seed names a storm, and does not replay it.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from chaos.faults import FAULTS, SERVER_FAULTS, Fault
from chaos.rig import Rig
from chaos.truth import Truth, truth_of
from common.errors import Fenced
from common.server import connect

LOOK_S: Final = 0.5
CALM_S: Final = 1.5
"""Before the first fault: a power cut that takes the very start of a run would leave nothing to go on from."""
STUCK_S: Final = 60.0
"""A run without one optimizer step for so long, under faults that all heal within seconds, has come to a stand."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What a storm did, and what it did not."""

    seed: int
    truth: Truth
    seconds: float
    recovery_s: dict[str, list[float]]
    """Kind of fault -> seconds from each until the next optimizer step."""
    struck: dict[str, int]
    crashes: list[str]
    zombies: int
    """Learners that woke up fenced, and ended with 42."""
    refused: int
    bytes_lost: int
    replies_lost: int

    @property
    def faults(self) -> int:
        return sum(self.struck.values())

    def recovery(self, percent: float, name: str | None = None) -> float:
        """Of one kind of fault, or of all. In seconds; 100 percent is the longest."""
        times = [value for kind, values in self.recovery_s.items() if name in (None, kind) for value in values]
        return float(np.percentile(times, percent)) if times else 0.0


@dataclass
class Storm:
    rig: Rig
    seed: int
    pace_s: float
    """Mean time between two faults."""
    faults: Sequence[Fault] = FAULTS
    struck: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    recovery_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._ties = itertools.count()
        self._waiting: list[tuple[str, float]] = []
        self._version = (0, 0)
        self._progressed = time.monotonic()
        self._watch = connect(f"{self.rig.server.url}?socket_timeout=0.3")

    def run(self, *, items: int, faults: int) -> Report:
        """Strike until there were so many faults and the run has issued so many items; then heal, stop and count."""
        started = time.monotonic()
        with closing(self._watch):
            self.rig.start()
            self.rig.steps(3)
            self.rig.rest(CALM_S)
            strike_at = time.monotonic()
            looked_at, issued = 0.0, 0
            while sum(self.struck.values()) < faults or issued < items:
                now = time.monotonic()
                if now >= strike_at:
                    self._strike()
                    strike_at = now + self._draw.expovariate(1.0 / self.pace_s)
                if now - looked_at > LOOK_S:
                    looked_at, issued = now, max(issued, self._issued())
                self._round()
            self._calm_down()
        truth = truth_of(self.rig.streams, self.rig.settings, self.rig.checkpoints)
        zombies = self.rig.exits["learner", Fenced.exit_code]
        return Report(
            seed=self.seed,
            truth=truth,
            seconds=time.monotonic() - started,
            recovery_s=self.recovery_s,
            struck=self.struck,
            crashes=self.rig.crashes,
            zombies=zombies,
            refused=self.rig.refused,
            bytes_lost=self.rig.bytes_lost,
            replies_lost=sum(proxy.lost for proxy in self.rig.proxies.values()),
        )

    def _strike(self) -> None:
        """One fault of the weighted choice. One that meets a server that is down already is drawn, and not counted."""
        [fault] = self._draw.choices(self.faults, [fault.weight for fault in self.faults])
        self._look_at_progress()
        try:
            heals = fault.strike(self.rig, self._draw)
        except SERVER_FAULTS:
            return
        now = time.monotonic()
        self.struck[fault.name] += 1
        self._log(fault.name)
        self._waiting.append((fault.name, now))
        for delay_s, heal in heals:
            heapq.heappush(self._later, (now + delay_s, next(self._ties), heal))

    def _log(self, what: str) -> None:
        with (self.rig.directory.logs / "storm.log").open("a", encoding="utf-8") as file:
            now = datetime.now(UTC).isoformat()
            file.write(json.dumps({"timestamp": now, "event": what, "faults": sum(self.struck.values())}) + "\n")

    def _round(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            _, ties, heal = heapq.heappop(self._later)
            try:
                heal()
            except SERVER_FAULTS:  # the server is down: as soon as it is up
                heapq.heappush(self._later, (time.monotonic() + 0.1, ties, heal))
        self.rig.tend()
        self._look_at_progress()
        if time.monotonic() - self._progressed > STUCK_S:
            raise AssertionError(f"no optimizer step for {STUCK_S:.0f} s; {self.rig.crashes or 'nobody crashed'}")
        time.sleep(0.01)

    def _look_at_progress(self) -> None:
        """A step of the learner ends the recovery of every fault that struck before it."""
        with suppress(*SERVER_FAULTS):
            found: Any = self._watch.hmget(self.rig.streams.keys.progress, ["epoch", "policy_version"])
            epoch, version = (int(value or 0) for value in found)
            before, self._version = self._version, (epoch, version)
            if epoch == before[0] and version > before[1]:
                self._progressed = time.monotonic()
                for name, at in self._waiting:
                    self.recovery_s[name].append(self._progressed - at)
                self._waiting.clear()

    def _issued(self) -> int:
        with suppress(*SERVER_FAULTS):
            found: Any = self._watch.hmget(self.rig.streams.keys.ledger, ["issued:policy", "issued:judge"])
            return sum(int(value or 0) for value in found)
        return 0

    def _calm_down(self) -> None:
        """Undo what is not undone, let the run go on for a few steps, and stop it in order."""
        self._later = [(0.0, ties, heal) for _, ties, heal in self._later]
        give_up_at = time.monotonic() + STUCK_S
        while self._later or self._waiting or self.rig.former:
            self._round()
            if time.monotonic() > give_up_at:
                raise AssertionError(f"not calm: {self._waiting}, {len(self.rig.former)} zombies live")
        self.rig.steps(3)
        self.rig.stop()


def verdict(report: Report) -> list[str]:
    """What is wrong with a storm; empty when it passed."""
    return ([] if report.truth.clean else [str(report.truth)]) + report.crashes
