"""Everything that is known of a run at one moment, read once: from its server, and from its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cli.folder_facts import FolderFacts, read_folder
from cli.report.history import MetricsReader, Row, without_repeats
from cli.rundir import RunDirectory
from common.errors import InvalidMessage
from common.live import with_values
from common.observer import Announced, Dead, Lease, Observer, Queue, ServerState
from common.records import STEERING, Beat, Ledger, lives
from common.settings import Settings
from common.steering import Steering
from common.streams import Streams

RECENT: Final = 20
"""Last batches whose metrics are kept."""
GIVE_UP_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    at: float
    """Unix seconds, of this machine."""
    settings: Settings
    """Of the run file, and over them what a user has set since."""
    steering: Steering
    up: bool
    """The run's own server answers; False when one was started on its data for this look."""
    server: ServerState
    ledger: Ledger
    progress: Mapping[str, str]
    members: Mapping[str, Beat | None]
    """Every member ever seen, with its last heartbeat or its farewell; None for one that fell silent."""
    heard_s: Mapping[str, float]
    """Seconds since that heartbeat."""
    queues: tuple[Queue, ...]
    leases: tuple[Lease, ...]
    weights: Announced | None
    dead: Dead
    rows: tuple[Row, ...]
    """Metrics of the last batches."""
    folder: FolderFacts

    def living(self, role: str) -> dict[str, Beat]:
        """Members of a role that live, by name."""
        return {name: beat for name, beat in self.members.items() if lives(beat) and beat.get("role") == role}

    @property
    def running(self) -> list[str]:
        """Members of every role that live."""
        return [name for name, beat in self.members.items() if lives(beat)]

    def queue(self, stream: str, group: str) -> Queue | None:
        return next((queue for queue in self.queues if (queue.stream, queue.group) == (stream, group)), None)

    @property
    def held(self) -> str:
        """Who holds the run back, in words; empty when nobody does."""
        return self.steering.held

    @property
    def policy_version(self) -> int:
        return int(self.progress.get("policy_version", 0))

    @property
    def epoch(self) -> int:
        return int(self.progress.get("epoch", 0))


def steering_of(progress: Mapping[str, str]) -> Steering:
    """What a user has told the run; nothing where that is of another version, whose learner says so."""
    try:
        return Steering.from_json(progress[STEERING]) if STEERING in progress else Steering()
    except InvalidMessage:
        return Steering()


class Looker:
    """Looks at one run, again and again. What is in files is read as it grows."""

    def __init__(
        self,
        run: RunDirectory,
        streams: Streams,
        *,
        up: bool = True,
        give_up_s: float = GIVE_UP_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._run = run
        self._up = up
        self._clock = clock
        self._observer = Observer(streams.client, streams.keys.run, give_up_s=give_up_s)
        self._observer.recycles = run.settings.learner.judge_share > 0
        self._reader = MetricsReader(run.metrics)
        self._rows: list[Row] = []

    def look(self) -> Snapshot:
        """Raises ServerError when the server does not answer, or knows nothing of the run."""
        observer = self._observer
        ledger = observer.conservation()  # first: it refuses a server that knows nothing of the run
        server = observer.server()
        members, progress = observer.members(), observer.progress()
        steering = steering_of(progress)
        now = self._clock()
        self._rows = without_repeats([*self._rows, *self._reader.read()])[-RECENT:]
        return Snapshot(
            at=now,
            settings=with_values(self._run.settings, steering.values),
            steering=steering,
            up=self._up,
            server=server,
            ledger=ledger,
            progress=progress,
            members=members,
            heard_s=observer.heard_s(members),
            queues=observer.queues(server.now_ms),
            leases=observer.leases(),
            weights=observer.announced(server.now_ms),
            dead=observer.dead(sum(counts["dead"] for counts in ledger.kinds.values())),
            rows=tuple(self._rows),
            folder=read_folder(self._run, now),
        )
