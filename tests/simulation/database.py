"""The keys of the memory server, their expiry, and what of them is on its disk."""

from __future__ import annotations

from typing import Final, TypeVar

from simulation.replies import WRONGTYPE, ReplyError
from simulation.stream_data import Stream

EMPTY_SERVER_BYTES: Final = 1_000_000
KEY_BYTES: Final = 64


class Hash(dict[bytes, bytes]):
    """Field -> value."""


class Set(dict[bytes, None]):
    """A set that keeps its order, so that a simulation repeats itself exactly."""


Value = bytes | Hash | Set | Stream
V = TypeVar("V", Hash, Set, Stream)


class Database:
    """``now_ms`` is the server's clock, read once per command. Access through these methods keeps track of changes."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.data: dict[bytes, Value] = {}
        self.expires_ms: dict[bytes, int] = {}
        self._changed: set[bytes] = set()
        self._durable: dict[bytes, tuple[Value, int | None]] = {}

    # -- access -------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> Value | None:
        expires_ms = self.expires_ms.get(key) if self.expires_ms else None
        if expires_ms is not None and expires_ms <= self.now_ms:
            self.remove(key)
        return self.data.get(key)

    def find(self, key: bytes, kind: type[V]) -> V | None:
        """For reading. Raises ReplyError when the key holds something else."""
        value = self.get(key)
        if value is not None and type(value) is not kind:
            raise ReplyError(WRONGTYPE)
        return value  # type: ignore[return-value]

    def change(self, key: bytes, kind: type[V]) -> V | None:
        """The same, for changing what is found."""
        self._changed.add(key)
        return self.find(key, kind)

    def make(self, key: bytes, kind: type[V]) -> V:
        """The same; made when it is not there."""
        value = self.change(key, kind)
        if value is None:
            value = self.data[key] = kind()
        return value

    def string(self, key: bytes) -> bytes | None:
        value = self.get(key)
        if value is not None and type(value) is not bytes:
            raise ReplyError(WRONGTYPE)
        return value  # type: ignore[return-value]

    def put(self, key: bytes, value: bytes, expires_ms: int | None = None) -> None:
        self._changed.add(key)
        self.data[key] = value
        self.expires_ms.pop(key, None)
        if expires_ms is not None:
            self.expires_ms[key] = expires_ms

    def remove(self, key: bytes) -> bool:
        self._changed.add(key)
        self.expires_ms.pop(key, None)
        return self.data.pop(key, None) is not None

    def clear(self) -> None:
        for key in list(self.data):
            self.remove(key)

    def used_bytes(self) -> int:
        return EMPTY_SERVER_BYTES + sum(len(key) + KEY_BYTES + _size(value) for key, value in self.data.items())

    # -- its disk -----------------------------------------------------------------------------------------

    def fsync(self) -> None:
        """Remember everything as it is now. Costs as much as what changed since the last time."""
        for key in self._changed:
            value = self.data.get(key)
            if value is None:
                self._durable.pop(key, None)
            else:
                self._durable[key] = (_copy(value), self.expires_ms.get(key))
        self._changed.clear()

    def power_cut(self) -> None:
        """Go back to what was remembered."""
        self.data = {key: _copy(value) for key, (value, _) in self._durable.items()}
        self.expires_ms = {key: ms for key, (_, ms) in self._durable.items() if ms is not None}
        self._changed.clear()


def _copy(value: Value) -> Value:
    return value if isinstance(value, bytes) else type(value)(value) if isinstance(value, dict) else value.copy()


def _size(value: Value) -> int:
    if isinstance(value, Stream):
        return value.size + KEY_BYTES * len(value.ids)
    if isinstance(value, bytes):
        return len(value)
    return sum(len(name) + len(held or b"") + KEY_BYTES for name, held in value.items())
