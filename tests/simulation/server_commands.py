"""What a client asks of the server itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from simulation.commands import integer
from simulation.replies import Reply, ReplyError, unsupported

Trouble = Literal["memory", "disk"]
VERSION: Final = "7.2.4"


@dataclass(slots=True)
class Limits:
    """What CONFIG SET may change here; a restart forgets it. ``maxmemory`` is bytes, 0: no limit."""

    maxmemory: int = 0
    policy: str = "noeviction"

    def set(self, name: str, value: bytes) -> None:
        if name == "maxmemory":
            self.maxmemory = integer(value, "ERR CONFIG SET failed - argument must be a memory value")
        elif name == "maxmemory-policy":
            self.policy = value.decode()
        else:
            unsupported(f"CONFIG SET {name}")

    def get(self, name: str) -> Reply:
        values = {"maxmemory": str(self.maxmemory), "maxmemory-policy": self.policy}
        if name not in values:
            unsupported(f"CONFIG GET {name}")
        return [name.encode(), values[name].encode()]


def info(section: str, limits: Limits, used_bytes: int, trouble: Trouble | None) -> bytes:
    """The fields of INFO that SPARK reads, of one section or of all."""
    sections = {
        "server": {"redis_version": VERSION, "server_name": "memory"},
        "memory": {
            "used_memory": used_bytes,
            "maxmemory": limits.maxmemory,
            "maxmemory_policy": limits.policy,
        },
        "persistence": {
            "loading": 0,
            "aof_enabled": 1,
            "aof_last_write_status": "err" if trouble == "disk" else "ok",
        },
    }
    wanted = sections if section in ("default", "all", "everything") else {section: sections.get(section)}
    if None in wanted.values():
        unsupported(f"INFO {section}")
    lines = [f"{name}:{value}" for fields in wanted.values() for name, value in (fields or {}).items()]
    return "\r\n".join(lines).encode()


def number_of_keys(word: bytes, arguments: int) -> int:
    """Of FCALL. Raises ReplyError."""
    keys = integer(word, "ERR Bad number of keys provided")
    if keys < 0:
        raise ReplyError("ERR Number of keys can't be negative")
    if keys > arguments:
        raise ReplyError("ERR Number of keys can't be greater than number of args")
    return keys
