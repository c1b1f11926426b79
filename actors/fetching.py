"""Fetching weights beside generation: a copy of many gigabytes over a network must not stop the tokens.

Files that only have to be verified where they lie are fetched at once.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from common.messages import WeightManifest


class Source(Protocol):
    """Turns manifests into files for an engine: ``common.weights_source.WeightSource``, or one that merges adapters."""

    def at_hand(self, manifest: WeightManifest) -> bool:
        """Whether ``fetch`` has nothing to copy or to compute, and is called at once."""
        ...

    def fetch(self, manifest: WeightManifest) -> list[Path]:
        """Complete, verified files, valid until the next call. Raises WeightsError."""
        ...

    def close(self) -> None:
        """Remove what was copied."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    manifest: WeightManifest
    files: list[Path]


@dataclass(slots=True, eq=False)
class _Job:
    manifest: WeightManifest
    done: threading.Event = field(default_factory=threading.Event)
    outcome: list[Path] | Exception = field(default_factory=list)

    def run(self, source: Source) -> None:
        try:
            self.outcome = source.fetch(self.manifest)
        except Exception as error:  # noqa: BLE001  (raised in the thread that asks)
            self.outcome = error
        self.done.set()

    def result(self) -> Fetched:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return Fetched(manifest=self.manifest, files=self.outcome)


class Fetching:
    """One fetch at a time; one that was begun is finished, so that versions which come faster do not starve it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._job: _Job | None = None

    def get(self, wanted: WeightManifest, *, wait_s: float) -> Fetched | None:
        """What has been fetched, ``wanted`` or a version before it; None while that takes longer than ``wait_s``.

        The files are to be applied before the next call, which may change them. Raises WeightsError.
        """
        if self._source.at_hand(wanted):
            return Fetched(manifest=wanted, files=self._source.fetch(wanted))
        if self._job is None:
            self._job = _Job(wanted)
            threading.Thread(target=self._job.run, args=(self._source,), name="weights", daemon=True).start()
        if not self._job.done.wait(wait_s):
            return None
        job, self._job = self._job, None
        return job.result()
