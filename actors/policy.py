"""Following the policy: take each newly published version between two decoding steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

from actors.engine import Engine
from actors.fetching import Fetching, Source
from common.codec import decode
from common.errors import InvalidMessage, WeightsError
from common.messages import Task, WeightManifest
from common.staleness import may_generate
from common.streams import Streams
from common.weights_source import WeightSource

log = structlog.get_logger()

POLL_S: Final = 0.02
"""Weights are looked for no more often than this while tokens flow,"""
LOOKING_SHARE: Final = 0.01
"""and for no more than this share of the time,"""
SELDOM_S: Final = 0.5
"""but no more seldom than this."""
RETRY_S: Final = 0.5
"""Weights that did not load are tried again after this; newer ones at once."""
FETCH_WAIT_S: Final = 0.1
"""How long one look at the weights waits for their files while nothing may be generated without them."""


class PolicyFollower:
    """Applies the newest manifest. Torn or altered weights keep the old version, and are retried."""

    def __init__(
        self,
        streams: Streams,
        engine: Engine,
        max_staleness: int,
        clock: Callable[[], float] = time.monotonic,
        source: Source | None = None,
        on_applied: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        """``source``: where the files of a manifest come from; a directory that is also here, if none is given.

        ``on_applied`` is told how long it took from noticing weights to having them in place.
        """
        self.epoch = 0
        """Learner epoch of the applied weights."""
        self.published_version = -1
        self._published_epoch = 0
        self.failures = 0
        self.trouble = ""
        """Why the newest weights do not load; empty once some have."""
        self._streams = streams
        self._engine = engine
        self._max_staleness = max_staleness
        self._on_applied = on_applied
        self._clock = clock
        self._look_again_at = float("-inf")
        self._fetching = Fetching(source or WeightSource())
        self._retry_at: dict[WeightManifest, float] = {}
        self._behind_since: float | None = None

    @property
    def may_generate(self) -> bool:
        """The generation gate: weights are there, and no further behind than the bound."""
        applied = self._engine.policy_version
        if applied < 0 or self.epoch != self._published_epoch:  # another learner's line: these weights may be lost ones
            return False
        return may_generate(applied, self.published_version, self._max_staleness)

    @property
    def wanted(self) -> str:
        """The weights that ``may_generate`` asks for, in words."""
        if self._engine.policy_version < 0:
            return "the first weights"
        if self.epoch != self._published_epoch:
            return f"weights of learner epoch {self._published_epoch}, not of epoch {self.epoch}"
        return (
            f"weights no older than policy version {self.published_version - self._max_staleness}, "
            f"not those of version {self._engine.policy_version}"
        )

    @property
    def behind_s(self) -> float:
        """Seconds for which newer weights have been on offer and none were applied; 0 with the newest."""
        return 0.0 if self._behind_since is None else self._clock() - self._behind_since

    def is_ahead(self, task: Task) -> bool:
        """A prompt that a lost line of weights issued, for a version that does not exist (again) yet."""
        return task.kind == "policy" and 0 <= self.published_version < task.issued_version

    def follow(self, *, now: bool = False) -> None:
        """Apply the newest weights if there are newer ones. Unless ``now``, not at every call: see POLL_S."""
        if not now and self._clock() < self._look_again_at:
            return
        looked_at = self._clock()
        manifest = self._newest()
        took = self._clock() - looked_at
        self._look_again_at = looked_at + min(max(POLL_S, took / LOOKING_SHARE), SELDOM_S)
        if manifest is None or (manifest.epoch, manifest.version) <= (self.epoch, self._engine.policy_version):
            self._behind_since = None
            return
        if self._behind_since is None:
            self._behind_since = looked_at
        self.published_version, self._published_epoch = manifest.version, manifest.epoch
        if self._clock() < self._retry_at.get(manifest, float("-inf")):
            return
        try:
            applied = self._fetch_and_apply(manifest)
        except WeightsError as error:
            self.failures += 1
            self.trouble = str(error)
            self._retry_at = {manifest: self._clock() + RETRY_S}
            log.warning("policy.apply_failed", reason=str(error), kept=self._engine.policy_version)
            return
        if applied:
            self._on_applied(self.behind_s)
            self.trouble = ""
            self._behind_since = None

    def _fetch_and_apply(self, wanted: WeightManifest) -> bool:
        """Apply ``wanted``, or weights before it if their files came first; whether any were. Raises WeightsError."""
        found = self._fetching.get(wanted, wait_s=0.0 if self.may_generate else FETCH_WAIT_S)
        if found is None or found.manifest.epoch != wanted.epoch:
            return False
        if (found.manifest.epoch, found.manifest.version) <= (self.epoch, self._engine.policy_version):
            return False
        self._engine.apply(found.files, found.manifest.version)
        self.epoch = found.manifest.epoch
        return True

    def _newest(self) -> WeightManifest | None:
        """The newest of the last manifests; those of a fenced learner's older epoch are passed over."""
        manifests = []
        for payload in self._streams.newest_weights():
            try:
                manifests.append(decode(WeightManifest, payload))
            except InvalidMessage as error:
                log.warning("policy.bad_manifest", reason=str(error))
        return max(manifests, key=lambda m: (m.epoch, m.version), default=None)
