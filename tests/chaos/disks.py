"""Small disks that can be filled. A tmpfs needs the right to mount."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.rows import CannotRun


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own. Raises CannotRun without the right to mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError as error:
        raise CannotRun(f"a disk to fill needs mount(8): {error}") from error
    if mounted.returncode != 0:
        raise CannotRun(f"a disk to fill needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], timeout=10, check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Not a byte is left on the disk of ``folder`` until the block ends."""
    filler = folder / "filler"
    fill(filler)
    try:
        yield
    finally:
        filler.unlink()


def fill(filler: Path) -> None:
    """Take what room there is, also what was given free since."""
    for size in (1 << 20, 1 << 12, 1):
        try:
            with filler.open("ab", buffering=0) as file:
                while file.write(bytes(size)) == size:
                    pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
