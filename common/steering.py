"""Steering: what users have told a run while it goes on. Commands, what became of each, and what holds now (pure).

A command is appended to the control stream of the run. The learner hears it, decides it at the next step boundary,
and journals the decision (``learner.steering``); the journal, folded, is what holds. docs/steering.md has the protocol.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from common.errors import InvalidMessage

Action = Literal["pause", "resume", "drain", "set"]
Mode = Literal["running", "paused", "draining", "drained"]
Deed = Literal[Action, "drained", "file"]
"""What a change is: a user's action, the end of a drain, or live values given up for what the run file says now."""


def _finite(value: Any) -> Any:
    """JSON has no word for inf and nan: it writes null, which nobody could read back."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"a setting is a finite number, not {'null' if value is None else value}")
    return value


Value = Annotated[int | float, BeforeValidator(_finite)]

ANSWERS_KEPT: Final = 32
"""Commands whose answer is told: whoever gave one waits seconds for it."""
MODES: Final[Mapping[Deed, Mode]] = {
    "pause": "paused",
    "resume": "running",
    "drain": "draining",
    "drained": "drained",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A user's word. ``nonce`` makes it count once, however often it was appended or is read."""

    nonce: str
    action: Action
    by: str
    at: float
    """Unix seconds, by the clock of who gave it: for people."""
    values: dict[str, Value] = field(default_factory=dict)
    """Of ``set``: setting -> value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What the learner decided: a line of its journal, and an event of the run."""

    nonce: str
    action: Deed
    by: str
    at: float
    policy_version: int
    """Optimizer steps made before: the change holds for every step after this one."""
    epoch: int
    changes: dict[str, tuple[Value, Value]] = field(default_factory=dict)
    """Setting -> value before and after."""
    of_file: dict[str, Value] = field(default_factory=dict)
    """Setting -> value in the run file at that time."""
    refused: str = ""
    """Why nothing was changed; empty when it was obeyed."""

    def event(self) -> dict[str, str]:
        """Fields of the event ``steered``."""
        changed = " ".join(f"{key}={old!r}->{new!r}" for key, (old, new) in self.changes.items())
        return {
            "nonce": self.nonce,
            "action": self.action,
            "by": self.by,
            "at": str(self.at),
            "policy_version": str(self.policy_version),
            "epoch": str(self.epoch),
            "changes": changed,
            "refused": self.refused,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A setting that was changed in the running run."""

    value: Value
    of_file: Value
    """What the run file said then. When it says something else now, that is the later word."""
    by: str
    at: float
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    nonce: str
    policy_version: int
    refused: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """What holds now."""

    mode: Mode = "running"
    by: str = ""
    """Who set the mode, and when; empty for a run that was never told anything."""
    since: float = 0.0
    live: dict[str, Live] = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()

    @property
    def values(self) -> dict[str, Value]:
        """Setting -> live value."""
        return {key: live.value for key, live in self.live.items()}

    @property
    def held(self) -> str:
        """Of a run that a user holds back, in words; empty for one that runs."""
        return "" if self.mode == "running" else f"{self.mode} by {self.by} since {moment(self.since)}"

    def after(self, change: Change) -> Steering:
        """What holds after one more change."""
        answer = Answer(nonce=change.nonce, policy_version=change.policy_version, refused=change.refused)
        told = replace(self, answers=(*self.answers, answer)[-ANSWERS_KEPT:])
        if change.refused:
            return told
        if change.action in ("set", "file"):
            return replace(told, live=_live(self.live, change))
        mode = MODES[change.action]
        return told if mode == self.mode else replace(told, mode=mode, by=change.by, since=change.at)

    def answer(self, nonce: str) -> Answer | None:
        return next((answer for answer in self.answers if answer.nonce == nonce), None)

    def to_json(self) -> str:
        return _STEERING.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Steering:
        """Raises InvalidMessage."""
        try:
            return _STEERING.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            reason = first["msg"].removeprefix("Value error, ")
            raise InvalidMessage(
                f"not a steering: {where}: {reason}" if where else f"not a steering: {reason}"
            ) from error


_STEERING: Final = TypeAdapter(Steering)


def _live(live: Mapping[str, Live], change: Change) -> dict[str, Live]:
    """A value that is the run file's again is no live value any more."""
    merged = dict(live)
    for key, (_, value) in change.changes.items():
        of_file = change.of_file[key]
        merged.pop(key, None)
        if value != of_file:
            merged[key] = Live(
                value=value, of_file=of_file, by=change.by, at=change.at, policy_version=change.policy_version
            )
    return merged


def fold(changes: Iterable[Change], start: Steering | None = None) -> Steering:
    """What holds after these changes."""
    steering = start or Steering()
    for change in changes:
        steering = steering.after(change)
    return steering


Page = Callable[[str], list[tuple[str, bytes]]]
"""Entries of the control stream before an id (``+``: from the newest on), the newest first."""


def unheard(page: Page, known: Callable[[str, bytes], bool]) -> list[bytes]:
    """Payloads that are not known yet, oldest first.

    Read from the newest back to the first known one, not from a remembered place on: a server that lost its tail, and
    whose clock was set back, may put a new entry before that place.
    """
    found: list[bytes] = []
    before = "+"
    while rows := page(before):
        new = [payload for entry_id, payload in rows if not known(entry_id, payload)]
        found += new
        if len(new) < len(rows):
            break
        before = f"({rows[-1][0]}"
    return found[::-1]


def moment(at: float) -> str:
    """A time for people, the same on every host."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
