"""Lines of growing files: from the end backwards, and as they come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

BLOCK: Final = 64 * 1024
"""Bytes read at once, backwards."""
LONGEST_LINE: Final = 16 * 1024 * 1024


def newest_lines(path: Path, end: int | None = None) -> Iterator[bytes]:
    """The whole lines of a file before byte ``end``, the last first. A file that is not there has none."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        place = file.seek(0, 2) if end is None else end
        rest, behind = b"", True  # what stands behind the last line end is no whole line
        while place > 0:
            size = min(BLOCK, place)
            place = file.seek(place - size)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            for line in reversed(lines):
                if not behind:
                    yield line
                behind = False
        if not behind:
            yield rest


class Growing:
    """What is appended to a file from now on. One that was cut or replaced is read from its start."""

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        self.path = path
        self.start = 0 if from_start else _end_of_lines(path)
        """Where the lines begin that ``lines`` has not returned yet."""

    def lines(self) -> list[bytes]:
        """New whole lines."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self.start:
                    self.start = 0
                file.seek(self.start)
                text = file.read(LONGEST_LINE)
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self.start += len(whole)
        return whole.splitlines()


def _end_of_lines(path: Path) -> int:
    """First byte behind the last whole line."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            place = size
            while place > 0:
                begin = max(0, place - BLOCK)
                file.seek(begin)
                if (found := file.read(place - begin).rfind(b"\n")) >= 0:
                    return begin + found + 1
                place = begin
    except FileNotFoundError:
        pass
    return 0
