"""Function libraries: the real Lua code, run by the real Lua 5.1 against the memory server."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from lupa import lua51

from simulation.replies import Reply, ReplyError, Status

SANDBOX: Final = Path(__file__).with_name("sandbox.lua")
SHEBANG: Final = re.compile(rb"#!lua name=(\w+)[ \t]*(?=\n|$)")
LINE: Final = re.compile(r"user_function:(\d+):")
TRUE: Final = 1

Host = Callable[[list[bytes]], Reply]


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    name: bytes
    callback: Any
    flags: frozenset[bytes]

    @property
    def writes(self) -> bool:
        return b"no-writes" not in self.flags

    @property
    def grows(self) -> bool:
        return self.writes and b"allow-oom" not in self.flags


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    name: bytes
    code: bytes
    functions: dict[bytes, Function]


class Engine:
    """One Lua for all memory servers of this process. A library is compiled once, and called for one at a time."""

    def __init__(self) -> None:
        self._lua = lua51.LuaRuntime(encoding=None, register_eval=False, register_builtins=False)
        self._host: Host | None = None
        start = self._lua.execute(b"return function(code, ...) return assert(loadstring(code, '@sandbox'))(...) end")
        self._load, self._line = start(SANDBOX.read_bytes(), self._call_host, self._call_host_safely)
        self._libraries: dict[bytes, Library] = {}

    def load(self, code: bytes) -> Library:
        """Raises ReplyError for code that is no library."""
        if code not in self._libraries:
            self._libraries[code] = self._compile(code)
        return self._libraries[code]

    def _compile(self, code: bytes) -> Library:
        shebang = SHEBANG.match(code)
        if not shebang:
            raise ReplyError("ERR Missing library metadata")
        try:
            registered = self._load(code[shebang.end() :])
        except lua51.LuaError as error:
            raise ReplyError(f"ERR Error registering functions: ERR {_first_line(error)}") from error
        if isinstance(registered, bytes):
            raise ReplyError(f"ERR Error compiling function: {registered.decode(errors='replace')}")
        functions = [
            Function(name=entry[1], callback=entry[2], flags=frozenset(entry[3].values()))
            for entry in registered.values()
        ]
        return Library(name=shebang[1], code=code, functions={function.name: function for function in functions})

    def call(self, function: Function, keys: list[bytes], args: list[bytes], host: Host) -> Reply:
        """Run a function; ``host`` executes its commands. Raises ReplyError."""
        table = self._lua.table_from
        self._host = host
        try:
            return self._reply(function.callback(table(keys), table(args)))
        except lua51.LuaError as error:
            message = _first_line(error)
            line = LINE.match(message)
            raise ReplyError(f"ERR {message} script: on @user_function:{line[1] if line else -1}.") from error
        finally:
            self._host = None

    # -- between the two languages --------------------------------------------------------------------------

    def _call_host(self, *words: Any) -> Any:
        """``redis.call``: an error reply ends the function, which answers it."""
        assert self._host is not None, "redis.call outside of a function"
        try:
            return self._to_lua(self._host([_word(word) for word in words]))
        except ReplyError as error:
            raise ReplyError(f"{error.text} script: on @user_function:{self._line()}.") from None

    def _call_host_safely(self, *words: Any) -> Any:
        """``redis.pcall``: an error reply is a table."""
        assert self._host is not None, "redis.pcall outside of a function"
        try:
            return self._to_lua(self._host([_word(word) for word in words]))
        except ReplyError as error:
            return self._lua.table_from({b"err": error.text.encode()})

    def _to_lua(self, reply: Reply) -> Any:
        if reply is None:
            return False
        kind = type(reply)
        if kind is int or kind is bytes:
            return reply
        if kind is Status:
            return self._lua.table_from({b"ok": bytes(reply)})
        return self._lua.table_from([self._to_lua(part) for part in reply])

    def _reply(self, value: Any) -> Reply:
        """Of a function's result. A table ends at its first nil."""
        kind = type(value)
        if kind is bytes or value is None:
            return value
        if kind is bool:
            return TRUE if value else None
        if kind is int or kind is float:
            return int(value)
        if (text := value[b"err"]) is not None:
            raise ReplyError(text.decode(errors="replace"))
        if (text := value[b"ok"]) is not None:
            return Status(text)
        parts = []
        while (part := value[len(parts) + 1]) is not None:
            parts.append(self._reply(part))
        return parts


@cache
def engine() -> Engine:
    return Engine()


def _word(word: Any) -> bytes:
    if type(word) is bytes:
        return word
    if type(word) is int:
        return b"%d" % word
    if type(word) is float:
        return b"%.17g" % word
    raise ReplyError("ERR Command arguments must be strings or integers")


def _first_line(error: lua51.LuaError) -> str:
    """Lua appends a traceback."""
    message = error.args[0]
    words = message.decode(errors="replace") if isinstance(message, bytes) else str(message)
    return words.split("\n", 1)[0]
