"""One simulated run: the server, the members, and a supervisor that starts again what has ended."""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from common.errors import Fenced, ServerError, WipedServer
from common.messages import RolloutGroup
from common.settings import Settings
from common.streams import Streams
from learner.checkpoint import CheckpointStore
from simulation.memory_client import LeanClient, connect_memory
from simulation.memory_server import MemoryServer
from simulation.scenario import RUN, Scenario, settings_of
from simulation.scheduler import Process, Scheduler
from simulation.stream_data import Stream
from simulation.toys import Family, ToyTrainer
from simulation.wire import Chaos, Wire

SERVER_STARTED_S: Final = 1_000_000.0
"""What the server's clock says when a run begins."""
FSYNC_S: Final = 1.0
"""Longest time that is lost by a power cut, as with ``appendfsync everysec``."""
PATIENCE_S: Final = 240.0
"""From the end of the last fault on, a run is healthy, and must be over after so long."""
MOST_COMMANDS: Final = 40_000
TOLD: Final = (Fenced, ServerError)
"""Errors with which a process may end: it says what and why, and is started again. Everything else is a crash."""

Bodies = Mapping[str, Callable[[Wire], str]]
"""Role -> what a process of it does; returns how it ended."""


class World:
    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        folder: Path,
        chaos: Chaos,
        bodies: Bodies,
        trace: list[str] | None = None,
    ) -> None:
        self.scenario = scenario
        self.chaos = chaos
        self.trace = trace
        self.draw = random.Random(seed)
        self.scheduler = Scheduler()
        self.clock_offset_s = 0.0
        self.server = MemoryServer(lambda: SERVER_STARTED_S + self.scheduler.now + self.clock_offset_s)
        self.family = Family()
        self.healthy_from = 0.0
        """When the last fault so far ends."""
        self.lost_power = self.clock_went_back = self.flushed = False
        self.disk_full_until = float("-inf")
        self.violations: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.finished = False
        """A learner has ended as it should."""
        self.rebuild = False
        """The user wants the next learner to rebuild the run."""
        self.alive: list[Wire] = []
        self.waiting: list[tuple[Process, list[bytes], list[int]]] = []
        self.commands = 0
        self._folder = folder
        self._bodies = bodies
        self._observer: Streams | None = None
        self._started: Counter[str] = Counter()

    @property
    def settings(self) -> Settings:
        return settings_of(self.scenario, self._folder, rebuild=self.rebuild)

    # -- the run ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """From the first start to the end of the last learner; then everything is healed, and everybody ends."""
        self._fsync()
        actors = [f"actor-{index}" for index in range(self.scenario.actors)]
        for member in ("learner", *actors, *(["recycler"] if self.scenario.recycles else [])):
            self.start(member)
        self.scheduler.run(self._over)
        if not self.finished:
            self.violations.append(self._standstill())
        self.server.down, self.server.full = False, None
        for wire in list(self.alive):
            wire.process.end()

    def _over(self) -> bool:
        if self.finished and not self.learners():
            return True
        return self.scheduler.now > self.healthy_from + PATIENCE_S or self.commands > MOST_COMMANDS

    def _standstill(self) -> str:
        alive = " ".join(wire.process.name for wire in self.alive)
        where = "; ".join(self._held_up())
        return f"stands still after {self.commands} commands and {self.scheduler.now:.0f} s; alive: {alive}; {where}"

    def _held_up(self) -> Iterator[str]:
        """What is in flight, and where."""
        data = self.server.db.data
        for stream, groups in self.observer().keys.groups(recycles=self.scenario.recycles).items():
            found = data.get(stream.encode())
            for name, group in found.groups.items() if isinstance(found, Stream) else ():
                held = Counter(entry.consumer.decode() for entry in group.pending.values())
                yield f"{stream} of {name.decode()} in {groups}: {found.lag(group)} unread, pending {dict(held)}"

    def _fsync(self) -> None:
        self.server.fsync()
        self.scheduler.after(self.draw.random() * FSYNC_S, self._fsync)

    # -- members ----------------------------------------------------------------------------------------------

    def learners(self) -> list[Wire]:
        return [wire for wire in self.alive if wire.role == "learner"]

    def start(self, member: str) -> None:
        self._started[member] += 1
        wire = Wire(self, member, self._started[member], self._bodies[member.partition("-")[0]])
        self.alive.append(wire)
        self.told(wire, "starts")
        self.scheduler.start(wire.process)

    def ended(self, wire: Wire) -> None:
        outcome, error = wire.process.outcome, wire.process.error
        self.told(wire, f"ends: {outcome} {error or ''}")
        self.alive.remove(wire)
        self.outcomes[f"{wire.role} {outcome}"] += 1
        if error is not None and not isinstance(error, TOLD):
            self.violations.append(f"{wire.process.name} crashed: {''.join(traceback.format_exception(error))}")
        if wire.role != "learner":
            self.scheduler.after(self.draw.random() * 2.0, self.start, wire.member)
            return
        self.finished |= outcome == "done"
        self.rebuild = isinstance(error, WipedServer)  # which told the user what to do
        self.scheduler.after(self.draw.random() * 2.0, self._replace_learner)

    def _replace_learner(self) -> None:
        if not self.finished and not self.learners():
            self.start("learner")

    def streams(self, wire: Wire) -> Streams:
        return Streams(
            wire.client,
            RUN,
            recycles=self.scenario.recycles,
            give_up_s=self.settings.redis.give_up_s,
            seed=self.draw.getrandbits(32),
            clock=self.scheduler.clock,
            sleep=wire.process.rest,
        )

    def nonce(self) -> str:
        return f"{self.draw.getrandbits(64):016x}"

    def observer(self) -> Streams:
        """The streams as an auditor reads them, with nothing in between."""
        if self._observer is None:
            self._observer = Streams(
                connect_memory(self.server, client=LeanClient), RUN, recycles=self.scenario.recycles
            )
        return self._observer

    def checkpoints(self) -> CheckpointStore:
        return CheckpointStore(self.settings.run.directory / "checkpoints", self.settings.learner.checkpoints_kept)

    def batch_taken(self, engine: ToyTrainer, groups: list[RolloutGroup]) -> None:
        """Called before the step on it: what its tokens say of the weights that sampled them."""
        for group in groups:
            tokens = {int(token) for rollout in group.rollouts for token in rollout.completion.token_ids}
            staleness = max(self.family.distance(token, engine.weights.token) for token in tokens)
            if staleness > self.scenario.eta:
                self.violations.append(f"{group.uid} is trained {staleness} steps after it was sampled")
            if not any(tokens <= set(self.family.line(token)) for token in tokens):
                self.violations.append(f"{group.uid} is of two lines of weights")

    # -- blocking reads ---------------------------------------------------------------------------------------

    def wait(self, process: Process, streams: list[bytes], seconds: float) -> None:
        """Until one of the streams has grown, the server has restarted, or so long."""
        entry = (process, streams, self._sizes(streams))
        self.waiting.append(entry)
        try:
            process.rest(seconds)
        finally:
            self.waiting.remove(entry)

    def look_at_waiting(self) -> None:
        for process, streams, sizes in self.waiting:
            if self._sizes(streams) != sizes:
                process.wake()

    def restart_server(self, restart: Callable[[], None]) -> None:
        """``restart`` or ``power_cut`` of the server: every connection is cut."""
        restart()
        for process, _, _ in self.waiting:
            process.wake()

    def _sizes(self, streams: list[bytes]) -> list[int]:
        return [getattr(self.server.db.data.get(name), "added", -1) for name in streams]

    # -- the disk of the members --------------------------------------------------------------------------------

    def fsync(self, path: Path) -> None:
        """Whoever runs now has written this. Killed here, it does not come to what follows."""
        running = next(wire for wire in self.alive if wire.process is self.scheduler.running)
        running.point(f"fsync {path.name}")

    # -- what is told -----------------------------------------------------------------------------------------

    def told(self, wire: Wire | None, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.scheduler.now:9.4f} {wire.process.name if wire else 'world':12} {text}")
