"""The segment files of the archive: bounded in size, cut back to the checkpoint that a run goes on from."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from common.archive import blocks_of, segments

log = structlog.get_logger()

SEGMENTS: Final = 16
"""Files that a full archive has: room is made by a sixteenth of it."""


class Segments:
    """The files of one learner epoch, ``eEPOCH-NUMBER.groups``; the oldest of all epochs go when there are too many."""

    def __init__(self, directory: Path, epoch: int, policy_version: int, max_mb: int) -> None:
        """Forgets what was recorded after ``policy_version``: it will be done again, or is of lost weights."""
        self._directory = directory
        self._epoch = epoch
        self._most = max_mb * 1024 * 1024
        self._number = 0
        self._path: Path | None = None
        self._failing = False
        self._try(lambda: cut(directory, policy_version))

    def append(self, block: bytes) -> None:
        """The whole block, or nothing of it. A full disk is logged once, until it has room again."""
        self._try(lambda: self._append(block))

    def _append(self, block: bytes) -> None:
        path = self._current(len(block))
        self._directory.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                written = file.write(block)
                if written != len(block):
                    raise OSError(f"{path}: {written} of {len(block)} bytes were written")
            except OSError:
                file.truncate(size)
                raise
        self._drop_oldest(path)

    def _current(self, size: int) -> Path:
        """The newest file, or a new one when it has its share already."""
        if self._path is None or _size(self._path) + size > self._most // SEGMENTS:
            self._number += 1
            self._path = self._directory / f"e{self._epoch:06d}-{self._number:06d}.groups"
        return self._path

    def _drop_oldest(self, newest: Path) -> None:
        sizes = {path: _size(path) for path in segments(self._directory)}
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total <= self._most or path == newest:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self._failing:
                log.error("archive.failed", reason=str(error))
            self._failing = True
            return
        if self._failing:
            log.info("archive.recovered")
        self._failing = False


def cut(directory: Path, policy_version: int) -> None:
    """Drop the blocks that were written after ``policy_version``. Raises OSError."""
    for path in reversed(segments(directory)):
        blocks = list(blocks_of(path))
        later = [block for block in blocks if block.policy_version > policy_version]
        if blocks and not later:
            return  # nor is there anything later in older files
        if later and later[0] is not blocks[0]:
            os.truncate(path, later[0].start)
            return
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
