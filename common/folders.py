"""Folders that appear complete or not at all: written aside, hashed, then renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from common.messages import WeightFile

HASH_THREADS: Final = 8

T = TypeVar("T")
U = TypeVar("U")


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
    paths = sorted(folder.iterdir())
    digests = in_threads(sha256, paths)
    return tuple(
        WeightFile(name=path.name, sha256=digest, size=path.stat().st_size)
        for path, digest in zip(paths, digests, strict=True)
    )


def in_threads(hashed: Callable[[T], U], items: Sequence[T]) -> list[U]:
    """``hashed`` of every item, on several cores: hashlib lets go of the interpreter while it works."""
    threads = min(len(items), HASH_THREADS, len(os.sched_getaffinity(0)))
    if threads < 2:
        return [hashed(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(hashed, items))
