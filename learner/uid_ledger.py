"""Every uid that reached its end in this run's weights, and how: what a twin is recognised by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from common.messages import Kind, Outcome

Ended = tuple[Outcome, Kind]
CODES: Final[tuple[Ended, ...]] = (
    ("trained", "policy"),
    ("filtered", "policy"),
    ("dropped_stale", "policy"),
    ("trained", "judge"),
    ("filtered", "judge"),
    ("dropped_stale", "judge"),
)
RECORD: Final = 17
"""Bytes on disk: the uid, and the index of its end in ``CODES``."""


class UidLedger:
    """uid (32 hex digits) -> how it ended. About 100 bytes of memory each."""

    def __init__(self) -> None:
        self._codes: dict[bytes, int] = {}

    def add(self, uid: str, outcome: Outcome, kind: Kind) -> None:
        self._codes[bytes.fromhex(uid)] = CODES.index((outcome, kind))

    def end_of(self, uid: str) -> Outcome | None:
        code = self._codes.get(bytes.fromhex(uid))
        return None if code is None else CODES[code][0]

    def __contains__(self, uid: str) -> bool:
        return bytes.fromhex(uid) in self._codes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UidLedger) and self._codes == other._codes

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __len__(self) -> int:
        return len(self._codes)

    def items(self) -> Iterator[tuple[str, Ended]]:
        """Every uid, and how it ended."""
        return ((uid.hex(), CODES[code]) for uid, code in self._codes.items())

    def uids(self) -> set[str]:
        return {uid for uid, _ in self.items()}

    def counts(self) -> Counter[Ended]:
        return Counter(CODES[code] for code in self._codes.values())

    def to_bytes(self) -> bytes:
        return b"".join(uid + bytes([code]) for uid, code in sorted(self._codes.items()))

    @classmethod
    def from_bytes(cls, data: bytes) -> UidLedger:
        """Raises ValueError for bytes that are no ledger."""
        if len(data) % RECORD or any(code >= len(CODES) for code in data[RECORD - 1 :: RECORD]):
            raise ValueError(f"{len(data)} bytes are no uid ledger")
        ledger = cls()
        for start in range(0, len(data), RECORD):
            ledger._codes[data[start : start + RECORD - 1]] = data[start + RECORD - 1]
        return ledger
