"""metrics.jsonl: one line per batch. A resumed run forgets the lines that its checkpoint does not know of."""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

import structlog

log = structlog.get_logger()

MOST_WAITING: Final = 10_000
"""Lines kept in memory while the disk is full; beyond it the oldest are lost."""


class MetricsFile:
    """Appends metrics; ``elapsed_s`` goes on from where the run was interrupted.

    A disk without room ends nothing: lines wait in memory, and half a line never stays in the file.
    """

    def __init__(self, path: Path, policy_version: int) -> None:
        """Keeps what was recorded up to ``policy_version``, and drops what will be trained again."""
        self._waiting: deque[bytes] = deque()
        self._size, last = _kept(path, policy_version)
        self._offset_s = float(last["elapsed_s"]) if last else 0.0
        self._file: BinaryIO = path.open("ab", buffering=0)
        self._cut()

    def record(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Returns the line as it is written."""
        line = {**metrics, "elapsed_s": round(self._offset_s + metrics["elapsed_s"], 3)}
        self._waiting.append(json.dumps(line).encode() + b"\n")
        self._write()
        return line

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()
        if self._waiting:
            log.error("metrics.lost", lines=len(self._waiting))
        self._file.close()

    def _write(self) -> None:
        """All that waits, as far as there is room."""
        try:
            while self._waiting:
                self._append(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            log.error("metrics.not_written", reason=str(error), waiting=len(self._waiting))
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            log.error("metrics.lost", lines=1)

    def _append(self, line: bytes) -> None:
        """One line, or nothing of it. Raises OSError."""
        self._cut()  # what the last attempt may have left
        written = self._file.write(line)
        if written != len(line):
            self._cut()
            raise OSError(f"only {written} of {len(line)} bytes were written; the disk is full")
        self._size += len(line)

    def _cut(self) -> None:
        """Drop what follows the last whole line."""
        os.ftruncate(self._file.fileno(), self._size)


def _kept(path: Path, policy_version: int) -> tuple[int, dict[str, Any] | None]:
    """Bytes of the lines up to ``policy_version``, and the last of them. A killed process may have left half a line."""
    size, last = 0, None
    for text in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not text.endswith(b"\n") or line["policy_version"] > policy_version:
            break
        size, last = size + len(text), line
    return size, last
