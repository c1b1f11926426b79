"""The sign of life of a member: what it does, and what its watchdog knows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import redis

from common.errors import InvalidMessage
from common.records import STEERING, STOPPED
from common.steering import Steering
from common.streams import Streams
from common.watchdog import Stall, Watchdog

EVERY_S: Final = 2.0
TTL_S: Final = {"learner": 300.0, "recycler": 15.0, "actor": 15.0}
"""By role. The learner's is long, since an optimizer step of a large model sends nothing while it lasts."""


class Heartbeat:
    """Sent by the member's loop. While the loop hangs inside a call, the watchdog's thread says so in its place."""

    def __init__(
        self,
        streams: Streams,
        member: str,
        role: str,
        watchdog: Watchdog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.watchdog = watchdog or Watchdog(clock=clock)
        self.watchdog.messenger = self
        self._streams = streams
        self._member = member
        self._role = role
        self._clock = clock
        self._said: dict[str, Any] = {"role": role}
        self._announced: Mapping[str, Any] = {}
        self._sent = float("-inf")
        self._stopped = False

    def announce(self, fields: Mapping[str, Any]) -> None:
        """What every sign of life says from now on."""
        self._announced = fields

    def said(self) -> Mapping[str, Any]:
        """The newest sign of life. It is replaced as a whole: another thread may read it."""
        return self._said

    @property
    def due(self) -> bool:
        return self._clock() - self._sent >= EVERY_S

    def beat(self, state: str, **fields: Any) -> None:
        """Tell the state and some figures. Of a stalled loop the state is ``stalled``, whatever it does in vain."""
        now = self._sent = self._clock()
        stall = self.watchdog.found(now)
        state = self.watchdog.held or state
        self._said = {"role": self._role, "state": state, **self._announced, **fields, **self.watchdog.counts(now)}
        sign = self.last_sign(stall.stage.owner) if stall and stall.stage.owner else ""
        self._streams.heartbeat(self._member, self._with(stall, sign), ttl_s=TTL_S[self._role])

    def stop(self) -> None:
        """Say farewell. A process that fails does not: it falls silent."""
        self._stopped = True
        self._streams.heartbeat(self._member, {"role": self._role, "state": STOPPED}, ttl_s=0.0)

    # -- for the watchdog -----------------------------------------------------------------------------------

    def send_stall(self, stall: Stall, sign: str) -> None:
        """Unless the loop does so itself. Tried once: this must not wait where the loop may be waiting already."""
        if self._stopped or self._clock() - self._sent < 2 * EVERY_S:
            return
        self._sent = self._clock()
        self._said = {**self._said, **self.watchdog.counts(self._sent)}  # metrics are read from it
        fields = self._with(stall, sign)
        keys = self._streams.keys
        names = (keys.members, keys.heartbeat(self._member))
        said = (self._member, json.dumps(fields), int(TTL_S[self._role] * 1000))
        self._streams.client.fcall("spark_heartbeat", len(names), *names, *said)

    def held(self) -> str:
        """Asked once: this must not wait where the loop may be waiting already.

        Where the server does not say, nobody holds the run: the stall is reported, with the error (``last_sign``).
        """
        try:
            text: Any = self._streams.client.hget(self._streams.keys.progress, STEERING)
            return Steering.from_json(text).held if text else ""
        except (redis.RedisError, InvalidMessage):
            return ""

    def last_sign(self, member: str) -> str:
        """When the learner or the recycler was last heard of, by the server's clock."""
        try:
            left_ms: Any = self._streams.client.pttl(self._streams.keys.heartbeat(member))
        except redis.RedisError as error:
            return f"whether {member} runs is unknown: {error}"
        if left_ms < 0:
            return f"{member} is not running"
        return f"the last heartbeat of {member} was {max(0.0, TTL_S[member] - left_ms / 1000):.0f} s ago"

    def _with(self, stall: Stall | None, sign: str) -> dict[str, Any]:
        return {**self._said, "state": "stalled", **stall.fields(sign)} if stall else self._said
