"""A Redis-protocol server in memory, for the simulation: no thread, no socket, no clock of its own.

It passes the contract tests of the real server (tests/contract) and answers random commands as that one does
(tests/contract/test_memory_answers.py). What it does not know raises NotImplementedError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulation import group_commands, info_commands, key_commands, pending_commands, stream_commands
from simulation.commands import COMMANDS, Command
from simulation.database import Database
from simulation.functions import Function, engine
from simulation.libraries import Libraries
from simulation.replies import (
    OK,
    OUT_OF_DISK,
    OUT_OF_MEMORY,
    SYNTAX,
    Reply,
    ReplyError,
    Status,
    Waiting,
    unsupported,
)
from simulation.server_commands import Limits, Trouble, info, number_of_keys

KNOWN = (key_commands, stream_commands, group_commands, pending_commands, info_commands)
"""Importing them has entered their commands in the table."""
WITH_SUBCOMMAND = frozenset((b"XGROUP", b"XINFO", b"FUNCTION", b"CONFIG"))
QUEUED = Status(b"QUEUED")


class ServerDown(Exception):
    """Nobody answers, or the connection was cut by a restart."""


@dataclass(slots=True)
class Session:
    """One connection as the server sees it: the commands of a MULTI that waits for its EXEC."""

    life: int
    """Of which life of the server; a restart cuts every connection."""
    queued: list[list[bytes]] | None = None
    spoilt: bool = False


class MemoryServer:
    """``clock`` tells the time in seconds. ``full`` and ``down`` may be set at any moment between two commands."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.db = Database()
        self.limits = Limits()
        self.full: Trouble | None = None
        """Out of "memory" or of "disk": what needs it is refused before it has any effect."""
        self.down = False
        """Every command raises ServerDown, which a client sees as a lost connection."""
        self.life = 0
        self._clock = clock
        self.libraries = Libraries()
        self._own: dict[bytes, Callable[[list[bytes]], Reply]] = {
            b"PING": lambda args: args[0] if args else Status(b"PONG"),
            b"INFO": self._info,
            b"CONFIG GET": lambda args: self.limits.get(args[0].decode()),
            b"CONFIG SET": self._config_set,
            b"FUNCTION LOAD": self.libraries.load,
            b"FUNCTION LIST": self.libraries.list,
            b"FUNCTION FLUSH": self.libraries.flush,
            b"FLUSHALL": self._flushall,
            b"WAITAOF": self._wait_for_disk,
            b"SHUTDOWN": self._shutdown,
            b"FCALL": self._fcall,
            b"FCALL_RO": self._fcall_ro,
        }

    # -- its life and its disk ------------------------------------------------------------------------------

    def fsync(self) -> None:
        """Everything until now would survive a power cut."""
        self.db.fsync()
        self.libraries.fsync()

    def power_cut(self) -> None:
        """Back to the last ``fsync``; every connection is cut."""
        self.db.power_cut()
        self.libraries.power_cut()
        self.restart()

    def restart(self) -> None:
        """Killed and started again: what the kernel had of it is still there. Connections and CONFIG SET are not."""
        self.limits = Limits()
        self.down = False
        self.life += 1

    def flushall(self) -> None:
        self.db.clear()

    # -- commands -------------------------------------------------------------------------------------------

    def session(self) -> Session:
        return Session(self.life)

    def execute(self, session: Session, words: list[bytes]) -> Reply | Waiting:
        """One command of one connection. Raises ReplyError, ServerDown, and NotImplementedError for what is unknown."""
        self._answering(session)
        name, args = named(words)
        if session.queued is None and name not in (b"MULTI", b"EXEC"):
            return self._run(name, args)
        return self._transaction(session, name, args, words)

    def again(self, session: Session, waiting: Waiting) -> Reply:
        """The end of a blocking read's wait."""
        self._answering(session)
        return waiting.again()

    def _answering(self, session: Session) -> None:
        if self.down:
            raise ServerDown("Connection refused")
        if session.life != self.life:
            raise ServerDown("Connection closed by server")
        self.db.now_ms = int(self._clock() * 1000)

    def _run(self, name: bytes, args: list[bytes]) -> Reply | Waiting:
        if refusal := self._refusal(name, args):
            raise ReplyError(refusal)
        if command := COMMANDS.get(name):
            command.check(len(args))
            return command.run(self.db, args)
        return self._known(name)(args)

    def _known(self, name: bytes) -> Callable[[list[bytes]], Reply]:
        if name not in self._own:
            unsupported(name.decode(errors="backslashreplace"))
        return self._own[name]

    def _wait_for_disk(self, args: list[bytes]) -> Reply:
        """All of the log is on disk at once, unless the disk is full."""
        if self.full == "disk":
            return [0, 0]
        self.fsync()
        return [1, 0]

    def _refusal(self, name: bytes, args: list[bytes]) -> str | None:
        """Why a full server does not run this; None where it does."""
        if self.full is None and not self.limits.maxmemory:
            return None
        writes, grows = self._needs(name, args)
        if grows and self._out_of_memory():
            return OUT_OF_MEMORY
        if self.full == "disk" and (writes or name == b"PING"):
            return OUT_OF_DISK
        return None

    def _out_of_memory(self) -> bool:
        return self.full == "memory" or 0 < self.limits.maxmemory < self.db.used_bytes()

    def _needs(self, name: bytes, args: list[bytes]) -> tuple[bool, bool]:
        """(writes, grows) of a command; FCALL is as its function says."""
        needing: Command | Function | None = COMMANDS.get(name)
        if name == b"FCALL" and args:
            needing = self.libraries.find(args[0])
        if needing is None:
            return name in (b"FUNCTION LOAD", b"FUNCTION FLUSH", b"FLUSHALL"), name == b"FUNCTION LOAD"
        return needing.writes, needing.grows

    # -- MULTI ----------------------------------------------------------------------------------------------

    def _transaction(self, session: Session, name: bytes, args: list[bytes], words: list[bytes]) -> Reply:
        if session.queued is None:
            if name == b"EXEC":
                raise ReplyError("ERR EXEC without MULTI")
            session.queued, session.spoilt = [], False
            return OK
        if name == b"EXEC":
            queued, session.queued = session.queued, None
            return self._exec(queued, session.spoilt)
        try:
            self._check_queued(name, args)
        except ReplyError:
            session.spoilt = True
            raise
        session.queued.append(words)
        return QUEUED

    def _check_queued(self, name: bytes, args: list[bytes]) -> None:
        """What is refused when it is queued spoils the whole transaction."""
        if name == b"MULTI":
            raise ReplyError("ERR Command 'multi' not allowed inside a transaction")
        if command := COMMANDS.get(name):
            command.check(len(args))
        else:
            self._known(name)
        if refusal := self._refusal(name, args):
            raise ReplyError(refusal)

    def _exec(self, queued: list[list[bytes]], spoilt: bool) -> Reply:
        if spoilt:
            raise ReplyError("EXECABORT Transaction discarded because of previous errors.")
        commands = [named(words) for words in queued]
        if refusal := next(filter(None, (self._refusal(*each) for each in commands)), None):
            raise ReplyError(f"EXECABORT Transaction discarded because of: {refusal}")
        return [self._caught(name, args) for name, args in commands]

    def _caught(self, name: bytes, args: list[bytes]) -> Reply:
        """An error of one command does not keep the others of its transaction from running."""
        try:
            reply = self._run(name, args)
        except ReplyError as error:
            return error
        return None if isinstance(reply, Waiting) else reply

    # -- functions ------------------------------------------------------------------------------------------

    def _fcall(self, args: list[bytes], *, read_only: bool = False) -> Reply:
        if len(args) < 2:
            raise ReplyError("ERR wrong number of arguments for 'fcall' command")
        name, count, *rest = args
        function = self.libraries.find(name)
        if function is None:
            raise ReplyError("ERR Function not found")
        keys = number_of_keys(count, len(rest))
        if read_only and function.writes:
            raise ReplyError("ERR Can not execute a script with write flag using *_ro command.")
        host = self._host if function.writes else self._reading_host
        return engine().call(function, rest[:keys], rest[keys:], host)

    def _fcall_ro(self, args: list[bytes]) -> Reply:
        return self._fcall(args, read_only=True)

    def _host(self, words: list[bytes]) -> Reply:
        """A command of a function. Whether there is room was asked before the function began."""
        name, args = named(words)
        command = COMMANDS.get(name)
        if command is None:
            unsupported(f"{name.decode(errors='backslashreplace')} in a function")
        if not command.takes(len(args)):
            raise ReplyError("ERR Wrong number of args calling command from script")
        reply = command.run(self.db, args)
        return None if isinstance(reply, Waiting) else reply

    def _reading_host(self, words: list[bytes]) -> Reply:
        command = COMMANDS.get(named(words)[0])
        if command and command.writes:
            raise ReplyError("ERR Write commands are not allowed from read-only scripts.")
        return self._host(words)

    # -- the server itself ----------------------------------------------------------------------------------

    def _info(self, args: list[bytes]) -> Reply:
        section = args[0].decode().lower() if args else "default"
        return info(section, self.limits, self.db.used_bytes(), self.full)

    def _config_set(self, args: list[bytes]) -> Reply:
        for name, value in zip(args[::2], args[1::2], strict=True):
            self.limits.set(name.decode().lower(), value)
        return OK

    def _flushall(self, args: list[bytes]) -> Reply:
        if args and args[0].upper() not in (b"SYNC", b"ASYNC"):
            raise ReplyError(SYNTAX)
        self.flushall()
        return OK

    def _shutdown(self, args: list[bytes]) -> Reply:
        self.fsync()
        self.down = True
        raise ServerDown("Connection closed by server")


def named(words: list[bytes]) -> tuple[bytes, list[bytes]]:
    """(command, arguments); of a command with subcommands both names."""
    name = words[0].upper()
    if name in WITH_SUBCOMMAND and len(words) > 1:
        return b"%s %s" % (name, words[1].upper()), words[2:]
    return name, words[1:]
