"""What the memory server answers: bytes, int, None, a list of these, ``Status``, ``ReplyError`` or ``Waiting``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

Reply = Any
"""bytes (bulk string) | int | None (nil) | list of replies | Status. Errors are raised as ReplyError."""


class Status(bytes):
    """A simple string. A client sees bytes; Lua sees a table ``{ok = ...}``."""


class ReplyError(Exception):
    """An error reply; its text starts with a code, as on the wire after the ``-``."""

    @property
    def text(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Waiting:
    """A blocking read that found nothing. The memory server never blocks: whoever asked decides how time passes."""

    wait_ms: int
    """How long the client is ready to wait; 0 means for ever."""
    again: Callable[[], Reply]
    """Reads once more, without waiting."""


OK: Final = Status(b"OK")
WRONGTYPE: Final = "WRONGTYPE Operation against a key holding the wrong kind of value"
NOT_AN_INTEGER: Final = "ERR value is not an integer or out of range"
SYNTAX: Final = "ERR syntax error"
OUT_OF_MEMORY: Final = "OOM command not allowed when used memory > 'maxmemory'."
OUT_OF_DISK: Final = "MISCONF Errors writing to the AOF file: No space left on device"


def unsupported(what: str) -> NoReturn:
    """Never answer what the real server might not: a simulation on a wrong answer proves nothing."""
    raise NotImplementedError(f"the memory server does not know {what}; teach it in tests/simulation")
