"""Where log lines go. A full disk costs lines, never the process: what was lost is counted, and said later."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO


class LogFile:
    """Whole lines appended to a file. Nothing here raises OSError to who logs.

    A line that did not fit may be there in half; the next one starts on a line of its own.
    """

    def __init__(self, path: Path, bound: Mapping[str, object]) -> None:
        """``bound``: fields of every event, also of the one about lost lines. Raises OSError if it cannot be opened."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lost = 0
        """Lines lost since the last one that was written."""
        self._bound = dict(bound)
        self._torn = False
        self._file: BinaryIO = path.open("ab", buffering=0)

    def write(self, text: str) -> None:
        if self.lost and self._append(self._confession()):
            self.lost = 0
        if self.lost or not self._append(text):
            self.lost += 1

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        self._file.close()

    def _append(self, text: str) -> bool:
        """Whether the whole text is in the file."""
        data = ("\n" + text if self._torn else text).encode("utf-8", errors="backslashreplace")
        try:
            written = self._file.write(data)
        except OSError:
            return False
        if written:
            self._torn = data[written - 1 : written] != b"\n"
        return written == len(data)

    def _confession(self) -> str:
        """How many lines are missing where this one stands."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        event: dict[str, Any] = {"event": "log.lines_lost", "level": "warning", "lines": self.lost, "timestamp": at}
        return json.dumps({**self._bound, **event}, default=str) + "\n"


class Terminal:
    """The same for stderr, which may be redirected to a full disk: what does not fit is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()
