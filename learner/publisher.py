"""The publisher: weights to the store, the manifest to the stream last, old versions away when nobody needs them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

from common.codec import encode
from common.errors import WeightsError
from common.lineage import ONE_LINE, Lineage
from common.messages import WeightManifest
from common.records import Beat, lives
from common.streams import Streams
from common.weights import WeightStore
from learner.engine import Engine

log = structlog.get_logger()

TEND_S: Final = 2.0


class Publisher:
    """Never waits for an actor: a version is only kept until no live actor uses it, and ``most`` versions at most."""

    def __init__(
        self,
        streams: Streams,
        store: WeightStore,
        epoch: int,
        kept: int,
        *,
        most: int = 16,
        lineage: Lineage = ONE_LINE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._streams = streams
        self._store = store
        self._epoch = epoch
        self._kept = kept
        self._most = max(most, kept)
        self._lineage = lineage.to_json()
        self._clock = clock
        self._published: list[int] = []
        self._announced: WeightManifest | None = None
        self._tended = float("-inf")
        self._failures = 0
        """Of living actors, to load weights; when it was last looked at."""

    def publish(self, engine: Engine) -> None:
        """Make the engine's weights the newest. A full disk is logged; ``tend`` tries again."""
        self._tended = self._clock()
        if self._write(engine, self._published[-1] if self._published else -1):
            self._published.append(engine.policy_version)
        self._forget_unused()

    def _write(self, engine: Engine, parent: int, *, whole: bool = False) -> bool:
        version = engine.policy_version
        try:
            manifest = self._store.publish(self._epoch, version, parent, engine.write_weights, whole=whole)
        except OSError as error:
            log.error("weights.failed", reason=str(error), policy_version=version)
            return False
        self._announce(manifest)
        return True

    def tend(self, engine: Engine) -> bool:
        """While the learner waits: publish what a full disk refused, announce again what the server has lost.

        Returns whether the engine's weights are announced. Without them actors may come to a stand, and no step would
        ever come that publishes others.
        """
        if self._clock() - self._tended < TEND_S:
            return self._is_announced(engine)
        self._tended = self._clock()
        if self._announced is None or not self._is_announced(engine):
            self.publish(engine)
        elif encode(self._announced) not in self._streams.newest_weights():
            log.warning("weights.announced_again", policy_version=self._announced.version)
            self._announce(self._announced)
        else:
            self._report(self._announced.version)
            self._mend(engine, self._announced)
        return self._is_announced(engine)

    def _is_announced(self, engine: Engine) -> bool:
        return self._announced is not None and self._announced.version == engine.policy_version

    def _mend(self, engine: Engine, manifest: WeightManifest) -> None:
        """Write the weights again, whole, when actors cannot load them and they are altered indeed.

        A difference is always suspect: its files may be as they were written and yet not lead where they should.
        """
        failures = sum(int(beat.get("apply_failures", 0)) for beat in self._actors())
        more, self._failures = failures > self._failures, failures
        if not more:
            return
        reason = "actors cannot apply the difference" if manifest.chain else self._damage(manifest)
        if reason:
            log.error("weights.damaged", reason=reason)
            self._write(engine, manifest.parent, whole=True)

    def _damage(self, manifest: WeightManifest) -> str:
        try:
            self._store.check(manifest)
        except (WeightsError, OSError) as error:
            return str(error)
        return ""

    def _announce(self, manifest: WeightManifest) -> None:
        self._streams.publish(manifest)  # last: its presence means that the files are complete
        self._announced = manifest
        self._report(manifest.version)

    def _report(self, version: int) -> None:
        self._streams.report_progress(policy_version=version, epoch=self._epoch, lineage=self._lineage)

    def _forget_unused(self) -> None:
        if len(self._published) <= self._kept:
            return
        used = [int(beat["policy_version"]) for beat in self._actors() if int(beat.get("policy_version", -1)) >= 0]
        oldest = max(min([self._published[-self._kept], *used]), self._published[-self._most :][0])
        self._published = [version for version in self._published if version >= oldest]
        self._store.remove_older_than(oldest, self._epoch)

    def _actors(self) -> list[Beat]:
        """Last heartbeats of the living actors."""
        return [beat for beat in self._streams.members().values() if lives(beat) and beat.get("role") == "actor"]
