"""What must hold at every call, looked at from inside the server: no later damage is needed to see a breach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from simulation.database import Database
from simulation.memory_client import Words
from simulation.stream_data import Stream, id_text, parse_id

After = Callable[[], Iterator[str]]
"""To be called when the command was executed: what it broke."""
FIRST_KEY: Final = 3


def watch(db: Database, command: Words) -> After | None:
    """Of a call whose effect is bounded, how things stood before it."""
    if command[0] != b"FCALL" or command[1] not in _WATCHED:
        return None
    stream = db.data.get(command[FIRST_KEY])
    return _WATCHED[command[1]](stream, command) if isinstance(stream, Stream) else None


def _of_trim(stream: Stream, command: Words) -> After:
    return partial(_trimmed, stream, list(stream.ids))


def _trimmed(stream: Stream, before: list[int]) -> Iterator[str]:
    """Only what every group has read and acknowledged may be deleted."""
    for entry_id in before[: len(before) - len(stream.ids)]:
        for name, group in stream.groups.items():
            if entry_id > group.last_id or entry_id in group.pending:
                yield f"{id_text(entry_id).decode()} was deleted before {name.decode()} had done with it"


def _of_lease(stream: Stream, command: Words) -> After | None:
    group = stream.groups.get(command[FIRST_KEY + 1])
    step = 2 if command[1] == b"spark_recount" else 1
    ids = [parse_id(word) for word in command[FIRST_KEY + 4 :: step]]
    if group is None:
        return None
    owners = {entry_id: group.pending[entry_id].consumer for entry_id in ids if entry_id in group.pending}
    return partial(_kept, stream, command[FIRST_KEY + 1], owners)


def _kept(stream: Stream, name: bytes, owners: dict[int, bytes]) -> Iterator[str]:
    """Renewing and handing back are for the owner alone."""
    group = stream.groups[name]
    for entry_id, owner in owners.items():
        if entry_id in group.pending and group.pending[entry_id].consumer != owner:
            thief = group.pending[entry_id].consumer.decode()
            yield f"{thief} took {id_text(entry_id).decode()} from {owner.decode()} by renewing a lost lease"


_WATCHED: Final[dict[bytes, Callable[[Stream, Words], After | None]]] = {
    b"spark_trim": _of_trim,
    b"spark_set_idle": _of_lease,
    b"spark_recount": _of_lease,
}
