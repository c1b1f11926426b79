"""The server under attack: killed, or cut off from power, and started again on the data it left."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cli.embedded import EmbeddedServer
from common.server import connect

LOST_S: Final = 0.5
"""A power cut takes what was written in this time at most, as a server that syncs every second may lose."""
WAIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Written:
    """How far the append-only file had come."""

    at: float
    path: Path
    size: int


class ChaosServer:
    """An embedded server. ``look`` is to be called often: a power cut needs to know what was written when."""

    def __init__(
        self, folder: Path, options: Mapping[str, str] | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self._environment = dict(environment or {})
        self._embedded = EmbeddedServer(folder, options={"aof-load-truncated": "yes", **(options or {})})
        self.pid = 0
        self._started = False
        self._written: deque[Written] = deque(maxlen=200)

    @property
    def url(self) -> str:
        return self._embedded.url

    @property
    def socket(self) -> Path:
        return Path(self.url.removeprefix("unix://"))

    @property
    def exit_code(self) -> int | None:
        return self._embedded.exit_code

    def start(self) -> None:
        """Also after it died; nothing happens while it lives."""
        if self._started and self.exit_code is None:
            return
        kept = dict(os.environ)
        os.environ.update(self._environment)  # a server inherits what its owner has
        try:
            self._embedded.start()
        finally:
            os.environ.clear()
            os.environ.update(kept)
        self._started = True
        with closing(connect(self.url)) as client:
            info: Any = client.info("server")
        self.pid = int(info["process_id"])
        self.look()

    def stop(self) -> None:
        self._embedded.stop()

    def __enter__(self) -> ChaosServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def kill(self) -> None:
        """SIGKILL: what was handed to the kernel survives. Raises ConnectionError when it is dead already."""
        if self.exit_code is not None:
            raise ConnectionError("the server is down already")
        self.signal(signal.SIGKILL, self.pid)
        give_up_at = time.monotonic() + WAIT_S
        while self.exit_code is None:
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"the server has not died within {WAIT_S:.0f} s of SIGKILL")
            time.sleep(0.005)

    def cut_power(self, draw: random.Random) -> int:
        """Kill it and tear off the end of its file at any byte of the last ``LOST_S``. Returns the bytes lost."""
        self.kill()
        file = self._file()
        if file is None:
            return 0
        size = file.stat().st_size
        since = [w.size for w in self._written if w.path == file and w.at >= time.monotonic() - LOST_S]
        cut = draw.randint(min(since, default=size), size)
        os.truncate(file, cut)
        return size - cut

    def signal(self, number: int, pid: int) -> None:
        """To the server of this pid, unless it has been killed meanwhile."""
        if pid == self.pid and self.exit_code is None:
            os.kill(pid, number)

    def look(self) -> None:
        """Note the length of the file as it is now."""
        if (file := self._file()) is not None:
            self._written.append(Written(time.monotonic(), file, file.stat().st_size))

    def _file(self) -> Path | None:
        """The file that is being appended to: the newest, when it was rewritten."""
        found = sorted(self.folder.glob("appendonlydir/*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))
        return found[-1] if found else None
