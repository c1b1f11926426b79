"""The journal of what users have told a run: ``checkpoints/steering/000002.jsonl``, one file for each learner epoch.

It lies beside the checkpoints, and in none of them: a rollback undoes training, never what a user wants. A decision is
durable here before anything follows from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog
from pydantic import TypeAdapter, ValidationError

from common.folders import fsync
from common.steering import Change

log = structlog.get_logger()

FOLDER: Final = "steering"
_CHANGE: Final = TypeAdapter(Change)


class Journal:
    """``root``: of the checkpoints. ``epoch``: of the learner that writes; None for who only reads."""

    def __init__(self, root: Path, epoch: int | None = None) -> None:
        self._folder = root / FOLDER
        self._epoch = epoch

    def read(self) -> list[Change]:
        """Every change once, oldest first. A fenced learner may have decided a command that its successor decided too.

        The decision in the older file counts: both are of the same order, and the older learner was the first.
        """
        once: dict[str, Change] = {}
        for path in sorted(self._folder.glob("[0-9]*.jsonl")):
            for change in _changes(path):
                once.setdefault(change.nonce, change)
        return list(once.values())

    def append(self, change: Change) -> None:
        """One line, or nothing of it, on disk when this returns. Raises OSError, on a full disk among others."""
        self._folder.mkdir(parents=True, exist_ok=True)
        line = _CHANGE.dump_json(change) + b"\n"
        with (self._folder / f"{self._epoch:06d}.jsonl").open("ab", buffering=0) as file:
            size = file.tell()
            try:
                if (written := file.write(line)) != len(line):
                    raise OSError(f"{file.name}: {written} of {len(line)} bytes were written")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
        fsync(self._folder)


def _changes(path: Path) -> Iterator[Change]:
    """A line that was cut off was never obeyed: its command is read again from the control stream."""
    for line in path.read_bytes().splitlines():
        try:
            yield _CHANGE.validate_json(line)
        except ValidationError as error:
            log.warning("steering.line_unreadable", path=str(path), reason=error.errors()[0]["msg"])
