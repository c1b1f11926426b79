"""The helm: what users have told the run, as the learner obeys it. docs/steering.md has the protocol.

A command is heard while the learner waits, and obeyed at the next step boundary: journaled on disk, told to the server,
and only then followed. It therefore holds across every crash, and whatever is rolled back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

from common.codec import decode
from common.errors import InvalidMessage
from common.live import decide, of_the_file, steered
from common.settings import Settings
from common.steering import Change, Command, Deed, Steering, fold, unheard
from common.streams import Streams
from learner.fence import Fence
from learner.journal import Journal

log = structlog.get_logger()

LOOK_S: Final = 1.0
"""Between two looks at the control stream."""
TELL_S: Final = 5.0
"""What holds is told so often: the server may have lost it."""


class Helm:
    """Of a run that nobody steers: ``settings`` are those of the run file. ``SteeredHelm`` is the one of a real run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        """Of the run file, with live values."""
        self.steering = Steering()
        self.is_called = False
        """A command was heard and waits for the next step boundary."""

    @property
    def paused(self) -> bool:
        """No prompts are issued, and no batch is taken."""
        return self.steering.mode == "paused"

    @property
    def draining(self) -> bool:
        """No prompts are issued; what is in flight is trained, and then the run ends."""
        return self.steering.mode == "draining"

    def listen(self) -> bool:
        """Whether the learner is called to the next step boundary. To be asked all the time."""
        return self.is_called

    def obey(self, policy_version: int) -> bool:
        """At a step boundary: do what was heard. Returns whether anything changed that others have to know."""
        return False

    def drained(self, policy_version: int) -> None:
        """All that was in flight is trained and durable: the drain is over, and the next start goes on."""


class SteeredHelm(Helm):
    def __init__(
        self,
        streams: Streams,
        fence: Fence,
        journal: Journal,
        settings: Settings,
        *,
        policy_version: int,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """``settings``: of the run file. ``policy_version``: that this learner starts from. Raises OSError."""
        super().__init__(settings)
        self._streams = streams
        self._fence = fence
        self._journal = journal
        self._file = settings
        self._clock = clock
        self._wall_clock = wall_clock
        self._looked = self._told = float("-inf")
        self._pending: list[Command] = []
        changes = journal.read()
        self._known: set[str] = {change.nonce for change in changes}
        """Nonces of the commands that are decided or wait; ids of entries that nobody can read."""
        self._last = changes[-1] if changes else None
        self.steering = fold(changes)
        self._start(policy_version)
        self.settings = steered(self._file, self.steering.values)
        self._restored = bool(self.steering.live)
        if self._last is not None:
            log.info("learner.steered", mode=self.steering.mode, **self.steering.values)

    def _start(self, policy_version: int) -> None:
        """A drained run goes on when it is started again, and a run file that was changed since has the last word."""
        if self.steering.mode == "drained":
            self._decide(self._own("resume", "its start", policy_version))
        if given_up := of_the_file(self.steering, self._file):
            of_file = {key: value for key, (_, value) in given_up.items()}
            self._decide(self._own("file", "the run file", policy_version, changes=given_up, of_file=of_file))

    def listen(self) -> bool:
        if self._clock() - self._looked >= LOOK_S:
            self._looked = self._clock()
            self._hear()
            if self._last is not None and self._clock() - self._told >= TELL_S:
                self._tell(self._last)
        return self.is_called

    def obey(self, policy_version: int) -> bool:
        """Raises Fenced. A full disk is logged, and the command waits."""
        before, restored = (self.steering.mode, self.settings), self._restored
        self._restored = self.is_called = False
        while self._pending:
            command, epoch = self._pending[0], self._fence.epoch
            try:
                self._decide(decide(command, self.steering, self._file, policy_version=policy_version, epoch=epoch))
            except OSError as error:
                log.error("steering.not_journaled", reason=str(error), action=command.action)
                break
            self._pending.pop(0)
        self.settings = steered(self._file, self.steering.values)
        return restored or before != (self.steering.mode, self.settings)

    def drained(self, policy_version: int) -> None:
        self._decide(self._own("drained", self.steering.by, policy_version))

    def _hear(self) -> None:
        for payload in unheard(self._streams.control, self._is_known):
            command = decode(Command, payload)  # readable: the others are known by their ids
            if command.nonce not in self._known:
                self._known.add(command.nonce)
                self._pending.append(command)
        self.is_called = bool(self._pending)

    def _is_known(self, entry_id: str, payload: bytes) -> bool:
        if entry_id in self._known:
            return True
        try:
            return decode(Command, payload).nonce in self._known
        except InvalidMessage as error:
            self._known.add(entry_id)
            log.warning("steering.command_unreadable", id=entry_id, reason=str(error))
            return True

    def _decide(self, change: Change) -> None:
        """Journal first: what is told or followed may never be forgotten."""
        self._fence.check()
        self._journal.append(change)
        self._known.add(change.nonce)
        self._last, self.steering = change, self.steering.after(change)
        self._tell(change)
        say = log.warning if change.refused else log.info
        say("learner.steered_by", **change.event())

    def _tell(self, last: Change) -> None:
        self._fence.hold(lambda: self._streams.tell_steering(self._fence.token, self.steering, last))
        self._told = self._clock()

    def _own(self, action: Deed, by: str, policy_version: int, **fields: object) -> Change:
        """A change that no command asked for."""
        epoch = self._fence.epoch
        return Change(
            nonce=f"{action}:{epoch}",
            action=action,
            by=by,
            at=self._wall_clock(),
            policy_version=policy_version,
            epoch=epoch,
            **fields,  # type: ignore[arg-type]
        )
