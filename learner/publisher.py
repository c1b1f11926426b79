"""The publisher: weights to the store, the manifest to the stream last, old versions away when nobody uses them."""

from __future__ import annotations

import structlog

from common.streams import Streams
from common.weights import WeightStore
from learner.engine import TorchEngine

log = structlog.get_logger()


class Publisher:
    """Never waits for an actor: a version is only kept until no live actor uses it."""

    def __init__(self, streams: Streams, store: WeightStore, epoch: int, kept: int) -> None:
        self._streams = streams
        self._store = store
        self._epoch = epoch
        self._kept = kept
        self._published: list[int] = []

    def publish(self, engine: TorchEngine) -> None:
        version = engine.policy_version
        parent = self._published[-1] if self._published else -1
        manifest = self._store.publish(self._epoch, version, parent, engine.write_weights)
        self._streams.publish(manifest)  # last: its presence means that the files are complete
        self._published.append(version)
        self._streams.report_progress(policy_version=version, epoch=self._epoch)
        self._forget_unused()

    def _forget_unused(self) -> None:
        if len(self._published) <= self._kept:
            return
        beats = [beat for beat in self._streams.members().values() if beat and beat.get("role") == "actor"]
        used = [int(beat["policy_version"]) for beat in beats if int(beat.get("policy_version", -1)) >= 0]
        oldest = min([self._published[-self._kept], *used])
        self._published = [version for version in self._published if version >= oldest]
        self._store.remove_older_than(oldest, self._epoch)
