"""Folders that appear complete or not at all: written aside, hashed, then renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from common.messages import WeightFile


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_folder(final: Path, write: Callable[[Path], None], *, durable: bool) -> tuple[WeightFile, ...]:
    """Let ``write(folder)`` create files, then make the folder visible as ``final``. Returns what is in it.

    With ``durable`` files, folder and parent are synced to disk in that order, so that after a power cut
    the folder is there as a whole or not at all.
    """
    partial = final.with_name(final.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    files = listed(partial)
    if durable:
        for file in files:
            fsync(partial / file.name)
        fsync(partial)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    if durable:
        fsync(final.parent)
    return files


def listed(folder: Path) -> tuple[WeightFile, ...]:
    return tuple(WeightFile(name=p.name, sha256=sha256(p), size=p.stat().st_size) for p in sorted(folder.iterdir()))
