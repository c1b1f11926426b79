"""One consumer of one group: claims entries so that a lost reply, a crash or a zombie loses nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import redis

from common.server import BLOCK_MS
from common.streams import Delivery, Streams

PAGE: Final = 100
"""Rows of the own pending list read at once."""
OWN_LOOK_S: Final = 10.0
"""How often a consumer without leases looks through its own pending entries without a reason. A server that lost its
last second may have made acknowledged ones pending again, and the connection may have come back without an error."""
IDLE_LOOK_S: Final = 0.5
"""How often a consumer with nothing to do looks for entries that were handed back."""


class Consumer:
    """Claims from several streams of one group, oldest debts first.

    After any error the reply may be lost while the server has already marked entries as ours, so the own
    pending list is read again before anything new. ``held`` are the entries in the caller's hands.
    """

    def __init__(
        self,
        streams: Streams,
        group: str,
        name: str,
        sources: Sequence[str],
        *,
        lease_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.streams = streams
        self.group = group
        self.name = name
        self.sources = tuple(sources)
        self.held: dict[str, set[str]] = {source: set() for source in sources}
        self._lease_s = lease_s
        self._clock = clock
        self._owed = self._all_owed()
        self._looked_for_expired = self._renewed = self._looked_for_own = clock()

    def claim(self, count: int, block_ms: int | None = None) -> list[Delivery]:
        """Up to ``count`` entries: left behind, then expired at another consumer, then new ones, source by source.

        ``block_ms`` (at most ``BLOCK_MS``) waits for a new entry when there is none. Returns [] when nothing came, or
        when the server was away, had lost its groups or was full; then this has waited for it or mended it.
        """
        try:
            return self._claim(count, block_ms) if count > 0 else []
        except redis.RedisError as error:
            self._owed = self._all_owed()
            self.streams.recover_from(error)
            return []
        except BaseException:  # a signal in the middle of a read: what the server answered is lost too
            self._owed = self._all_owed()
            raise

    def _claim(self, count: int, block_ms: int | None) -> list[Delivery]:
        if self._lease_s is None and self._clock() - self._looked_for_own > OWN_LOOK_S:  # leases run out by themselves
            self._looked_for_own = self._clock()
            self._owed = self._all_owed()
        claimed = (
            self._left_behind(count)
            or self._expired(count)
            or self._new(count)
            or self._expired(count, idle=True)  # what was handed back should not wait for the next look
            or self._next(block_ms)
        )
        if len(claimed) > count:  # a blocking read may bring one entry of each source; the next claim gets the rest
            self._owed = self._all_owed()
            claimed = claimed[:count]
        for delivery in claimed:
            self.held[delivery.stream].add(delivery.id)
        return claimed

    def adopt(self) -> int:
        """Take over what every other consumer of the group holds; the next claims deliver it. Returns how many.

        For a group with one consumer, whose predecessors are dead or fenced. To be repeated now and then: a fenced
        one may still claim entries before it notices.
        """
        moved = sum(self.streams.adopt(source, self.group, self.name) for source in self.sources)
        if moved:
            self._owed = self._all_owed()
        return moved

    def done(self, delivery: Delivery) -> None:
        """The entry was acked, buried or handed back."""
        self.held[delivery.stream].discard(delivery.id)

    def renew(self) -> set[str]:
        """Renew the leases of held entries when a quarter of the lease has passed. Returns the ids lost to others."""
        if self._lease_s is None or self._clock() - self._renewed < self._lease_s / 4:
            return set()
        self._renewed = self._clock()
        lost: set[str] = set()
        for source, ids in self.held.items():
            if ids:
                kept = self.streams.renew(source, self.group, self.name, sorted(ids))
                lost |= ids - kept
                ids &= kept
        return lost

    def hand_back_all(self) -> int:
        """Make everything held claimable at once, by others or by this consumer's next claim. Returns how many."""
        handed = 0
        self._owed = self._all_owed()
        for source, ids in self.held.items():
            handed += len(self.streams.hand_back(source, self.group, self.name, sorted(ids)))
            ids.clear()
        return handed

    def _all_owed(self) -> dict[str, str]:
        """Source -> id after which its own pending entries are to be looked through."""
        return dict.fromkeys(self.sources, "0-0")

    def _left_behind(self, count: int) -> list[Delivery]:
        """Own pending entries that are not in hand: of a lost reply, or of this consumer before a restart."""
        found: list[Delivery] = []
        while self._owed and len(found) < count:
            source, after = next(iter(self._owed.items()))
            rows = self.streams.own_pending(self.group, self.name, source, after, PAGE)
            missing = [row for row in rows if row[0] not in self.held[source]]
            wanted = missing[: count - len(found)]
            found += self.streams.read_own(self.group, self.name, source, wanted)
            if len(wanted) < len(missing):
                self._owed[source] = wanted[-1][0]
            elif len(rows) == PAGE:
                self._owed[source] = rows[-1][0]
            else:
                del self._owed[source]
        return found

    def _expired(self, count: int, *, idle: bool = False) -> list[Delivery]:
        """Looked for every quarter of the lease; by a consumer with nothing else to do, every ``IDLE_LOOK_S``."""
        if self._lease_s is None:
            return []
        pause_s = min(IDLE_LOOK_S, self._lease_s / 4) if idle else self._lease_s / 4
        if self._clock() - self._looked_for_expired < pause_s:
            return []
        self._looked_for_expired = self._clock()
        lease_ms = int(self._lease_s * 1000)
        found: list[Delivery] = []
        for source in self.sources:
            room = count - len(found)
            if room:
                held = self.held[source]
                found += self.streams.read_expired(self.group, self.name, source, lease_ms, room, held)
        return found

    def _new(self, count: int) -> list[Delivery]:
        found: list[Delivery] = []
        for source in self.sources:
            if len(found) < count:
                found += self.streams.read_new(self.group, self.name, [source], count - len(found), None)
        return found

    def _next(self, block_ms: int | None) -> list[Delivery]:
        if not block_ms:  # 0 would block for ever
            return []
        return self.streams.read_new(self.group, self.name, self.sources, 1, min(block_ms, BLOCK_MS))
