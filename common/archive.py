"""What a run keeps of the groups that its learner consumed: ``runs/NAME/groups/``, for ``spark why``, tail and report.

A segment file is a row of blocks, each of one learner step: a header, a compressed index of its uids, and the
compressed records. Whoever looks for one uid reads indexes only. ``learner/archive.py`` writes; what a killed learner
left of a block ends its file and is passed over. A uid may have several records, since a resumed run repeats what it
did after its checkpoint: the newest one counts.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import msgpack
from pydantic import Field

from common.codec import MAX_MESSAGE_BYTES, decode
from common.errors import InvalidMessage
from common.messages import CLOSED, Outcome, RolloutGroup

FOLDER: Final = "groups"
"""Of the run directory."""
MAGIC: Final = b"SPG1"
HEADER: Final = struct.Struct("<4sIIq")
"""Magic, bytes of the index, bytes of the records, policy version of the learner when it wrote."""
PATTERN: Final = "e*.groups"
BLOCK_BYTES: Final = 32 * 1024 * 1024
"""Records of one block before compression; a larger step makes several blocks."""
MOST_BYTES: Final = BLOCK_BYTES + MAX_MESSAGE_BYTES
"""A block that unpacks to more was not written by us."""
LEVEL: Final = 1
"""Of zlib: the higher ones take several times as long for a tenth less."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArchivedGroup:
    """One group and what the learner did with it. n: its siblings."""

    __pydantic_config__ = CLOSED
    group: RolloutGroup
    outcome: Outcome
    """``trained``, ``filtered`` or ``dropped_stale``."""
    policy_version: int
    """Trained: the version that its optimizer step made, as in metrics.jsonl. Else the learner's at that time."""
    staleness: int
    """Optimizer steps between its oldest token and the learner."""
    content_staleness: int | None
    """The same for the oldest answer that a judge task shows; None for policy groups."""
    advantages: tuple[float, ...]
    """Of every sibling [n]; 0 where it was excluded."""
    loss: tuple[float, ...] | None
    """What every sibling [n] added to the step's ``loss``: all samples of a step sum to it. None if not trained."""
    at: Annotated[float, Field(ge=0)]
    """Unix seconds on the learner's clock."""

    @property
    def uid(self) -> str:
        return self.group.uid


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of a block's index: where the record of a uid is, and what its task was made from."""

    uid: str
    sources: tuple[str, ...]
    start: int
    """First byte in the unpacked records."""
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Where the records of some groups lie, and whose they are."""

    path: Path
    start: int
    """First byte of its header in the file."""
    offset: int
    """First byte of the compressed records in the file."""
    size: int
    policy_version: int
    entries: tuple[Entry, ...]

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.offset + self.size


def pack(records: Iterable[tuple[ArchivedGroup, bytes]], policy_version: int) -> Iterator[bytes]:
    """Blocks with all records, each given with its encoded form."""
    rows: list[tuple[str, list[str], int, int]] = []
    parts: list[bytes] = []
    size = 0
    for record, data in records:
        if size + len(data) > BLOCK_BYTES and parts:
            yield _block(rows, parts, policy_version)
            rows, parts, size = [], [], 0
        sources = sorted({source.uid for source in record.group.task.sources})
        rows.append((record.uid, sources, size, len(data)))
        parts.append(data)
        size += len(data)
    if parts:
        yield _block(rows, parts, policy_version)


def _block(rows: list[tuple[str, list[str], int, int]], parts: list[bytes], policy_version: int) -> bytes:
    index = zlib.compress(msgpack.packb(rows), LEVEL)
    payload = zlib.compress(b"".join(parts), LEVEL)
    return HEADER.pack(MAGIC, len(index), len(payload), policy_version) + index + payload


def segments(directory: Path) -> list[Path]:
    """Segment files, oldest first."""
    return sorted(directory.glob(PATTERN))


def blocks_of(path: Path, start: int = 0) -> Iterator[Block]:
    """The whole blocks of a segment, in order; ends at the first that is torn or damaged. A file that is gone is empty.

    ``start``: where the first one that is wanted begins. Only headers and indexes are read; zlib's own checksums tell
    what is damaged.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:  # the learner dropped it meanwhile, as the oldest
        return
    with file:
        end = file.seek(0, 2)
        file.seek(start)
        while (block := _next_block(file, path, end)) is not None:
            yield block


def _next_block(file: BinaryIO, path: Path, end: int) -> Block | None:
    start, header = file.tell(), file.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    magic, index_size, size, policy_version = HEADER.unpack(header)
    offset = file.tell() + index_size
    if magic != MAGIC or offset + size > end:
        return None
    try:
        rows = msgpack.unpackb(_unpacked(file.read(index_size)), strict_map_key=True)
        entries = tuple(Entry(uid=str(u), sources=tuple(map(str, s)), start=int(a), size=int(n)) for u, s, a, n in rows)
    except (ValueError, TypeError, zlib.error, msgpack.UnpackException):
        return None
    file.seek(offset + size)
    return Block(path=path, start=start, offset=offset, size=size, policy_version=policy_version, entries=entries)


def records_of(block: Block) -> bytes:
    """The unpacked records. Raises InvalidMessage when they are damaged or gone."""
    try:
        with block.path.open("rb") as file:
            file.seek(block.offset)
            return _unpacked(file.read(block.size))
    except (OSError, ValueError, zlib.error) as error:
        raise InvalidMessage(f"{block.path.name} at byte {block.offset}: {error}") from error


def _unpacked(data: bytes) -> bytes:
    """Raises zlib.error for what is cut off or damaged (zlib's own checksum), ValueError for what is too large."""
    stream = zlib.decompressobj()
    text = stream.decompress(data, MOST_BYTES)
    if stream.unconsumed_tail:
        raise ValueError(f"unpacks to more than {MOST_BYTES} bytes")
    if not stream.eof:
        raise zlib.error("ends too early")
    return text


class ArchiveReader:
    """Reads ``directory`` as it is at the moment, also while the learner writes to it, and when it does not exist."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.unreadable = 0
        """Records passed over so far: damaged, dropped by the learner meanwhile, or of another version of SPARK."""

    def groups(self) -> Iterator[ArchivedGroup]:
        """Every group, oldest first, each once; one step's groups are in memory at a time."""
        newest = {entry.uid: (block.path, block.offset, entry.start) for block, entry in self._entries()}
        yield from self._read(lambda block, e: newest.get(e.uid) == (block.path, block.offset, e.start))

    def newest_first(self) -> Iterator[ArchivedGroup]:
        """The same, backwards: whoever wants a few reads a few."""
        seen: set[str] = set()
        for path in reversed(segments(self.directory)):
            for block in reversed(list(blocks_of(path))):
                wanted = {entry.uid: entry for entry in block.entries if entry.uid not in seen}
                seen |= wanted.keys()
                yield from reversed(list(self.read(block, list(wanted.values()))))

    def find(self, uid: str) -> ArchivedGroup | None:
        """The newest record of a uid; None when the archive has none, or not any more."""
        found = None
        for found in self._read(lambda _, entry: entry.uid == uid):  # noqa: B007
            pass
        return found

    def made_from(self, uid: str) -> list[ArchivedGroup]:
        """Judge groups whose task shows an answer of ``uid``, oldest first."""
        newest = {record.uid: record for record in self._read(lambda _, entry: uid in entry.sources)}
        return sorted(newest.values(), key=lambda record: record.at)

    def uids(self, prefix: str = "") -> list[str]:
        """The uids that begin with ``prefix``, in the order of their first record."""
        return list(dict.fromkeys(entry.uid for _, entry in self._entries() if entry.uid.startswith(prefix)))

    def _entries(self) -> Iterator[tuple[Block, Entry]]:
        return (
            (block, entry) for path in segments(self.directory) for block in blocks_of(path) for entry in block.entries
        )

    def _read(self, wanted: Callable[[Block, Entry], bool]) -> Iterator[ArchivedGroup]:
        for path in segments(self.directory):
            for block in blocks_of(path):
                if entries := [entry for entry in block.entries if wanted(block, entry)]:
                    yield from self.read(block, entries)

    def read(self, block: Block, entries: Sequence[Entry]) -> Iterator[ArchivedGroup]:
        """The records of some entries of a block."""
        try:
            data = records_of(block)
        except InvalidMessage:
            self.unreadable += len(entries)
            return
        for entry in entries:
            try:
                yield decode(ArchivedGroup, data[entry.start : entry.start + entry.size])
            except InvalidMessage:
                self.unreadable += 1
