"""Carries metrics to a sink without ever holding up the learner: a thread and a bounded queue for each."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import structlog

from common.settings import Settings
from learner.sinks.base import Metrics, Opener, Sink, opener

log = structlog.get_logger()

MOST_WAITING: Final = 1000
"""Steps kept for a sink that is slower than the learner; beyond it new ones are lost."""
CLOSE_S: Final = 10.0
"""How long the end of a run waits for all sinks together."""


class Feeder:
    """One sink in a thread of its own, where it is opened too: that may take long, and fail."""

    def __init__(self, name: str, open_sink: Callable[[], Sink]) -> None:
        self._name = name
        self._open = open_sink
        self._queue: queue.SimpleQueue[Metrics | None] = queue.SimpleQueue()
        self._over = threading.Event()
        """It ended or failed: what is recorded from here on is thrown away."""
        self._lost = 0
        context = contextvars.copy_context()  # what is bound to every event of this process' log
        self._thread = threading.Thread(target=context.run, args=(self._feed,), name=f"sink-{name}", daemon=True)
        self._thread.start()

    def record(self, metrics: Metrics) -> None:
        """Returns at once. A full queue loses the step, and says so once."""
        if self._over.is_set():
            return
        if self._queue.qsize() < MOST_WAITING:  # nobody else puts anything
            self._queue.put(metrics)
            return
        if not self._lost:
            log.warning("sink.behind", sink=self._name, waiting=MOST_WAITING)
        self._lost += 1

    def end(self) -> None:
        """Nothing more comes: the sink is closed after what waits."""
        self._queue.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the end, and say what was not written."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.error("sink.not_closed", sink=self._name, waiting=self._queue.qsize())
        if self._lost:
            log.error("sink.lost", sink=self._name, steps=self._lost)

    def _feed(self) -> None:
        try:
            sink = self._open()
            try:
                while (metrics := self._queue.get()) is not None:
                    sink.record(metrics)
            finally:
                sink.close()
        except Exception as error:  # noqa: BLE001 - reported; whatever a sink meets, the run goes on without it
            log.error("sink.off", sink=self._name, reason=f"{type(error).__name__}: {error}")
        finally:
            self._over.set()


class Sinks:
    """All sinks of a run."""

    def __init__(self, feeders: Sequence[Feeder]) -> None:
        self._feeders = feeders

    def record(self, metrics: Metrics) -> None:
        for feeder in self._feeders:
            feeder.record(metrics)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        for feeder in self._feeders:
            feeder.end()
        give_up_at = time.monotonic() + timeout_s
        for feeder in self._feeders:
            feeder.join(max(0.0, give_up_at - time.monotonic()))


@contextmanager
def open_sinks(settings: Settings, policy_version: int) -> Iterator[Sinks]:
    """The sinks of ``metrics.sinks``, for a run that goes on from ``policy_version``. Raises SettingsError."""
    openers = {name: opener(name, settings.run.python_path) for name in settings.metrics.sinks}
    sinks = Sinks([Feeder(name, _opening(of, settings, policy_version)) for name, of in openers.items()])
    try:
        yield sinks
    finally:
        sinks.close()


def _opening(of: Opener, settings: Settings, policy_version: int) -> Callable[[], Sink]:
    return lambda: of(settings, policy_version)
