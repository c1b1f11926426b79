"""Counting figures in bursts: one by one, between other work, each takes about six times as long.

What a loop records is kept for whoever asks for the metrics, and counted then, or when ``MOST`` are waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from opentelemetry.metrics import Histogram, Meter, MeterProvider

Count = Callable[..., object]
"""``add``, ``record`` or ``set`` of an instrument."""
MOST: Final = 512


class Later:
    """Values that are not counted yet. Any thread may add, and any may settle."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Count, float, Mapping[str, Any] | None]] = deque()

    def add(self, count: Count, value: float, labels: Mapping[str, Any] | None) -> None:
        """``labels`` must not change any more."""
        self._waiting.append((count, value, labels))
        if len(self._waiting) >= MOST:
            self.settle()

    def settle(self) -> None:
        """Count all that waits, in the order in which it came."""
        while self._waiting:
            try:
                count, value, labels = self._waiting.popleft()
            except IndexError:  # another thread took it
                return
            count(value, labels)


class LaterProvider(MeterProvider):
    """For a library that records by itself: its histograms are counted later."""

    def __init__(self, provider: MeterProvider, later: Later) -> None:
        self._provider = provider
        self._later = later

    def get_meter(self, *args: Any, **kwargs: Any) -> Meter:
        return cast(Meter, _LaterMeter(self._provider.get_meter(*args, **kwargs), self._later))


class _LaterMeter:
    def __init__(self, meter: Meter, later: Later) -> None:
        self._meter = meter
        self._later = later

    def __getattr__(self, name: str) -> Any:
        return getattr(self._meter, name)

    def create_histogram(self, *args: Any, **kwargs: Any) -> _LaterHistogram:
        return _LaterHistogram(self._meter.create_histogram(*args, **kwargs), self._later)


class _LaterHistogram:
    def __init__(self, histogram: Histogram, later: Later) -> None:
        self._histogram = histogram
        self._later = later

    def record(self, amount: float, attributes: Mapping[str, Any] | None = None) -> None:
        self._later.add(self._histogram.record, amount, attributes)
