"""A folder of one process below a directory that many share: gone when the process ends, however it ends.

The owner holds a lock on a file beside the folder. The kernel lets go of it when the owner dies, so whoever can take
the lock of a folder may remove it. (A process id could be another process's by now, or another container's.)
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Final

_PREFIX: Final = "spark-weights-"
_LOCK: Final = ".lock"
SHARED_MEMORY: Final = Path("/dev/shm")


def default_directory() -> Path:
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())


class OwnFolder:
    """``DIRECTORY/spark-weights-RANDOM/``. Folders of dead processes are swept away when a new one is made."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError."""
        directory.mkdir(parents=True, exist_ok=True)
        sweep(directory)
        self.path, lock = _created(directory)
        self.close = weakref.finalize(self, _remove, self.path, lock)  # at the end of the process, if not before
        """Remove it; harmless when repeated."""


def _created(directory: Path) -> tuple[Path, int]:
    while True:
        path = directory / f"{_PREFIX}{secrets.token_hex(6)}"
        lock = os.open(_lock_of(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _lock_of(path).exists():  # else a sweep came between the two calls above
            path.mkdir(mode=0o700)
            return path, lock
        os.close(lock)


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    _lock_of(path).unlink(missing_ok=True)
    os.close(lock)


def sweep(directory: Path) -> None:
    """Remove the folders whose owner is dead."""
    for file in directory.glob(f"{_PREFIX}*{_LOCK}"):
        try:
            lock = os.open(file, os.O_RDWR)
        except (FileNotFoundError, PermissionError):  # swept by another, or another user's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # its owner lives
            os.close(lock)
        else:
            _remove(file.with_name(file.name.removesuffix(_LOCK)), lock)


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + _LOCK)
