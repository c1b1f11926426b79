"""The function libraries a memory server has: FUNCTION LOAD, LIST, FLUSH."""

from __future__ import annotations

from fnmatch import fnmatchcase

from simulation.functions import Function, Library, engine
from simulation.replies import OK, SYNTAX, Reply, ReplyError, unsupported


class Libraries:
    """Part of a server's data: they survive what its keys survive, except FLUSHALL."""

    def __init__(self) -> None:
        self._loaded: dict[bytes, Library] = {}
        self._durable: dict[bytes, Library] = {}
        self._functions: dict[bytes, Function] = {}

    def find(self, name: bytes) -> Function | None:
        return self._functions.get(name)

    def load(self, args: list[bytes]) -> Reply:
        replace = args[0].upper() == b"REPLACE"
        if len(args) != 1 + replace:
            raise ReplyError(SYNTAX)
        library = engine().load(args[-1])
        if library.name in self._loaded and not replace:
            raise ReplyError(f"ERR Library '{library.name.decode()}' already exists")
        others = {name: each for name, each in self._loaded.items() if name != library.name}
        for name in library.functions.keys() & _functions(others).keys():
            raise ReplyError(f"ERR Function {name.decode()} already exists")
        self._set({**others, library.name: library})
        return library.name

    def list(self, args: list[bytes]) -> Reply:
        words = list(args)
        with_code = bool(words) and words[-1].upper() == b"WITHCODE"
        if with_code:
            del words[-1]
        if words and (len(words) != 2 or words[0].upper() != b"LIBRARYNAME"):
            unsupported("these options of FUNCTION LIST")
        wanted = [each for each in self._loaded.values() if not words or fnmatchcase(each.name, words[1])]
        return [_description(each, with_code) for each in wanted]

    def flush(self, args: list[bytes]) -> Reply:
        if args and args[0].upper() not in (b"SYNC", b"ASYNC"):
            raise ReplyError("ERR FUNCTION FLUSH only supports SYNC|ASYNC option")
        self._set({})
        return OK

    def fsync(self) -> None:
        self._durable = self._loaded

    def power_cut(self) -> None:
        self._set(self._durable)

    def _set(self, loaded: dict[bytes, Library]) -> None:
        self._loaded, self._functions = loaded, _functions(loaded)


def _functions(libraries: dict[bytes, Library]) -> dict[bytes, Function]:
    return {name: each for library in libraries.values() for name, each in library.functions.items()}


def _description(library: Library, with_code: bool) -> Reply:
    functions = [
        [b"name", each.name, b"description", None, b"flags", sorted(each.flags)] for each in library.functions.values()
    ]
    code = [b"library_code", library.code] if with_code else []
    return [b"library_name", library.name, b"engine", b"LUA", b"functions", functions, *code]
