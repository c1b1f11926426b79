"""The table of commands, and how arguments are read. An unknown command or option is a mistake of the simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from simulation.database import Database
from simulation.replies import NOT_AN_INTEGER, Reply, ReplyError

Handler = Callable[[Database, list[bytes]], Reply]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """``arguments`` are counted without the name; ``grows``: refused when the server is out of memory."""

    name: str
    run: Handler
    arguments: tuple[int, int | None]
    writes: bool
    grows: bool

    def takes(self, arguments: int) -> bool:
        least, most = self.arguments
        return arguments >= least and (most is None or arguments <= most)

    def check(self, arguments: int) -> None:
        if not self.takes(arguments):
            raise ReplyError(f"ERR wrong number of arguments for '{self.name.lower().replace(' ', '|')}' command")


COMMANDS: Final[dict[bytes, Command]] = {}
"""By name; a subcommand by both names with a space between."""


def command(
    name: str, least: int, most: int | None = None, *, writes: bool = False, grows: bool = False
) -> Callable[[Handler], Handler]:
    """Enter a handler in the table."""

    def enter(run: Handler) -> Handler:
        COMMANDS[name.encode()] = Command(
            name=name, run=run, arguments=(least, most), writes=writes or grows, grows=grows
        )
        return run

    return enter


def integer(text: bytes, error: str = NOT_AN_INTEGER) -> int:
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > 19:
        raise ReplyError(error)
    return int(text)
