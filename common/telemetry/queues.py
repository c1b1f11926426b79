"""What the learner tells of the server: backlogs, ages, dead letters, ledger, members, memory; read on demand.

Read in the thread of whoever asks: a server that is away gives no figures, and nobody waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import redis
import structlog

from common.errors import ServerError
from common.observer import Observer, Queue, ServerState
from common.records import lives
from common.streams import Streams
from common.telemetry.quiet import Reading

log = structlog.get_logger()

REREAD_S: Final = 1.0
"""A reading serves everybody who asks within this time: the metrics of one export are of one moment."""


class Queues:
    """Reads what the metrics of the server are about, by the calls that `spark top` uses. Each is tried once."""

    def __init__(self, streams: Streams, clock: Callable[[], float] = time.monotonic) -> None:
        self._observer = Observer(streams.client, streams.keys.run, give_up_s=0.0)
        self._observer.recycles = streams.recycles
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._readings: Sequence[Reading] = ()
        self._away = False

    def read(self) -> Sequence[Reading]:
        """The newest readings; none while the server does not answer."""
        with self._lock:
            if self._clock() - self._read_at >= REREAD_S:
                self._readings = self._reread()
                self._read_at = self._clock()
            return self._readings

    def _reread(self) -> Sequence[Reading]:
        try:
            readings = tuple(self._ask())
        except (ServerError, redis.RedisError) as error:
            if not self._away:
                log.warning("telemetry.server_away", reason=str(error))
            self._away = True
            return ()
        self._away = False
        return readings

    def _ask(self) -> Iterator[Reading]:
        state = self._observer.server()
        yield from _memory(state)
        for queue in self._observer.queues(state.now_ms):
            yield from _backlog(queue)
        ledger = self._observer.ledger()
        yield from _ledger(ledger)
        yield "spark.dead_letters", {}, float(self._observer.dead(sum_of(ledger, "dead")).count)
        alive = [lives(beat) for beat in self._observer.members().values()]
        yield "spark.members", {"alive": "true"}, float(alive.count(True))
        yield "spark.members", {"alive": "false"}, float(alive.count(False))


def sum_of(ledger: dict[str, int], state: str) -> int:
    """Of both kinds."""
    return sum(count for name, count in ledger.items() if name.startswith(f"{state}:"))


def _backlog(queue: Queue) -> Iterator[Reading]:
    labels = {"stream": queue.stream, "group": queue.group}
    yield "spark.stream.pending", labels, float(queue.pending)
    yield "spark.stream.undelivered", labels, float(queue.undelivered)
    yield "spark.stream.oldest_pending.age", labels, queue.oldest_pending_s or 0.0
    yield "spark.stream.oldest_undelivered.age", labels, queue.oldest_undelivered_s or 0.0


def _memory(state: ServerState) -> Iterator[Reading]:
    yield "spark.server.memory", {}, float(state.used_bytes)
    yield "spark.server.memory_share", {}, state.memory_share


def _ledger(counts: dict[str, int]) -> Iterator[Reading]:
    for name, value in counts.items():
        state, _, kind = name.partition(":")
        yield "spark.ledger.groups", {"state": state, "kind": kind}, float(value)
