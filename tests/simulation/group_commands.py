"""Consumer groups: made, moved, and read by their consumers."""

from __future__ import annotations

from simulation.commands import command
from simulation.database import Database
from simulation.replies import OK, Reply, ReplyError, Waiting, unsupported
from simulation.stream_commands import Read, read_options
from simulation.stream_data import Group, Pending, Seen, Stream, id_text, parse_id

NO_KEY = (
    "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use the MKSTREAM "
    "option to create an empty stream automatically."
)
DOLLAR = (
    "ERR The $ ID is meaningless in the context of XREADGROUP: you want to read the history of this consumer by "
    "specifying a proper ID, or use the > ID to get new messages. The $ ID would just return an empty result set."
)
NEW = b">"


def text(word: bytes) -> str:
    return word.decode(errors="backslashreplace")


def no_group(key: bytes, name: bytes) -> ReplyError:
    return ReplyError(f"NOGROUP No such key '{text(key)}' or consumer group '{text(name)}'")


def group_of(db: Database, key: bytes, name: bytes, *, change: bool = False) -> tuple[Stream, Group]:
    """Raises ReplyError NOGROUP."""
    stream = db.change(key, Stream) if change else db.find(key, Stream)
    group = stream.groups.get(name) if stream else None
    if stream is None or group is None:
        raise no_group(key, name)
    return stream, group


def group_of_stream(stream: Stream, key: bytes, name: bytes) -> Group:
    """The same in the words of XGROUP and XINFO."""
    if name not in stream.groups:
        raise ReplyError(f"NOGROUP No such consumer group '{text(name)}' for key name '{text(key)}'")
    return stream.groups[name]


# -- XGROUP -----------------------------------------------------------------------------------------------


@command("XGROUP CREATE", 3, grows=True)
def xgroup_create(db: Database, args: list[bytes]) -> Reply:
    key, name, start, *options = args
    make = False
    for word in options:
        if word.upper() != b"MKSTREAM":
            unsupported(f"XGROUP CREATE {text(word)}")
        make = True
    stream = db.find(key, Stream)
    if stream is None and not make:
        raise ReplyError(NO_KEY)
    position = _start(stream or Stream(), start)
    stream = db.make(key, Stream)
    if name in stream.groups:
        raise ReplyError("BUSYGROUP Consumer Group name already exists")
    stream.groups[name] = Group(position, None)
    return OK


def _start(stream: Stream, word: bytes) -> int:
    return stream.last_id if word == b"$" else parse_id(word)


def _for_xgroup(db: Database, args: list[bytes]) -> tuple[Stream, Group]:
    stream = db.change(args[0], Stream)
    if stream is None:
        raise ReplyError(NO_KEY)
    return stream, group_of_stream(stream, args[0], args[1])


@command("XGROUP SETID", 3, 3, writes=True)
def xgroup_setid(db: Database, args: list[bytes]) -> Reply:
    stream, group = _for_xgroup(db, args)
    group.last_id, group.entries_read = _start(stream, args[2]), None
    return OK


@command("XGROUP DESTROY", 2, 2, writes=True)
def xgroup_destroy(db: Database, args: list[bytes]) -> Reply:
    stream = db.change(args[0], Stream)
    if stream is None:
        raise ReplyError(NO_KEY)
    return 1 if stream.groups.pop(args[1], None) else 0


@command("XGROUP CREATECONSUMER", 3, 3, grows=True)
def xgroup_createconsumer(db: Database, args: list[bytes]) -> Reply:
    _, group = _for_xgroup(db, args)
    if args[2] in group.consumers:
        return 0
    group.consumers[args[2]] = Seen(db.now_ms)
    return 1


@command("XGROUP DELCONSUMER", 3, 3, writes=True)
def xgroup_delconsumer(db: Database, args: list[bytes]) -> Reply:
    _, group = _for_xgroup(db, args)
    return group.remove_consumer(args[2])


# -- XREADGROUP -------------------------------------------------------------------------------------------


@command("XREADGROUP", 6, writes=True)
def xreadgroup(db: Database, args: list[bytes]) -> Reply:
    if args[0].upper() != b"GROUP":
        unsupported("XREADGROUP that does not begin with GROUP")
    name, consumer = args[1], args[2]
    read = read_options(iter(args[3:]), "XREADGROUP")
    for key, position in zip(read.keys, read.positions, strict=True):
        _check_readable(db, key, name, position)

    def look() -> Reply:
        found = [part for at in range(len(read.keys)) if (part := _read_stream(db, read, at, name, consumer))]
        return found or None

    found = look()
    return Waiting(read.block_ms, look) if found is None and read.block_ms is not None else found


def _check_readable(db: Database, key: bytes, name: bytes, position: bytes) -> None:
    stream = db.find(key, Stream)
    if stream is None or name not in stream.groups:
        raise ReplyError(f"{no_group(key, name).text} in XREADGROUP with GROUP option")
    if position == b"$":
        raise ReplyError(DOLLAR)
    if position != NEW:
        parse_id(position)


def _read_stream(db: Database, read: Read, at: int, name: bytes, consumer: bytes) -> Reply:
    """New entries, or those already in this consumer's hands: they are then delivered once more."""
    key, position = read.keys[at], read.positions[at]
    try:
        stream, group = group_of(db, key, name, change=True)
    except ReplyError as error:  # the group was destroyed during the wait
        raise ReplyError(f"{error.text} in XREADGROUP with GROUP option") from None
    group.ask(consumer, db.now_ms)
    if position != NEW:
        return [key, _deliver_again(db, stream, group, consumer, parse_id(position), read.count)]
    ids = stream.after(group.last_id, read.count)
    if not ids:
        return None
    for entry_id in ids:
        stream.advance(group, entry_id)
        group.pending[entry_id] = Pending(consumer, db.now_ms, 1)
    group.consumers[consumer] = Seen(db.now_ms, db.now_ms)
    return [key, [stream.rows[entry_id] for entry_id in ids]]


def _deliver_again(
    db: Database, stream: Stream, group: Group, consumer: bytes, after: int, count: int | None
) -> list[Reply]:
    """An entry that was deleted while it was pending comes without fields, and counts as no delivery."""
    rows: list[Reply] = []
    for entry_id in sorted(group.pending):
        if len(rows) == count:
            break
        entry = group.pending[entry_id]
        if entry_id > after and entry.consumer == consumer:
            row = stream.rows.get(entry_id)
            rows.append(row or [id_text(entry_id), None])
            if row:
                group.pending[entry_id] = Pending(consumer, db.now_ms, entry.deliveries + 1)
    return rows
