"""Tasks that died at an actor: no batch waits for them, and too many of them end the run."""

from __future__ import annotations

from common.errors import TooManyDead
from common.settings import Settings
from common.streams import Streams
from learner.issuer import Issuer


class Deaths:
    def __init__(self, streams: Streams, issuer: Issuer, settings: Settings) -> None:
        self._streams = streams
        self._issuer = issuer
        self._settings = settings
        self._dead = self._at_cut = streams.ledger()["dead:policy"]
        self._newest_event = streams.newest_event()

    def use(self, settings: Settings) -> None:
        self._settings = settings

    def cut(self) -> None:
        """A batch was taken: those before it end no run."""
        self._at_cut = self._dead

    def mark(self) -> None:
        """Deaths are looked for from here on: a run that goes well for days must not read back all its events."""
        newest = self._streams.newest_event()
        if self._streams.ledger()["dead:policy"] == self._dead:  # read after the mark: no death lies before it
            self._newest_event = newest

    def forget(self, dead: int) -> None:
        """Tasks that died at an actor are on nobody's way: no batch waits for them. Raises TooManyDead."""
        if dead > self._dead:
            self._newest_event, uids = self._streams.dead_since(self._newest_event)
            for uid in uids:
                self._issuer.forget(uid)
        self._dead = dead  # fewer, when the user has revived some
        self._at_cut = min(self._at_cut, dead)
        learner = self._settings.learner
        if dead - self._at_cut > learner.refill * learner.groups_per_step + 8:
            raise TooManyDead(
                f"{dead - self._at_cut} tasks have died since the last batch; `spark dead list` says of what. "
                "Nothing more is issued: mend the cause, start again, and `spark dead retry` them"
            )
