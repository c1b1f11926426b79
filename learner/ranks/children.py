"""Ranks on this host that rank 0 starts itself, where no launcher has. They end with it, whatever way it ends.

A child learns of its parent's death twice: the kernel kills it (Linux), and its standard input closes. The settings
travel through that pipe. They hold no secret: only rank 0 talks to Redis.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import IO, Final

from common.settings import Settings
from learner.ranks.place import Place
from learner.ranks.vigil import UNKNOWN, Failure

STOP_S: Final = 10.0
"""For a rank that was told to stop; after that it is killed."""
PR_SET_PDEATHSIG: Final = 1


class Children:
    """Ranks 1 and up, each a process of ``command``."""

    command: tuple[str, ...] = (sys.executable, "-m", "learner.ranks")

    def __init__(self, settings: Settings, place: Place, environment: Mapping[str, str] = os.environ) -> None:
        """``place``: of rank 0, with the port that its store listens on."""
        payload = settings.model_dump_json(exclude={"redis"}).encode() + b"\n"
        kept = {name: value for name, value in environment.items() if not name.upper().startswith("SPARK_")}
        others = range(1, place.world_size)
        self._processes = {rank: _start(self.command, payload, kept | place.environment(rank)) for rank in others}

    def died(self) -> Failure | None:
        """The first that has ended."""
        for rank, process in self._processes.items():
            if (code := process.poll()) is not None:
                return Failure(rank=rank, exit_code=max(code, UNKNOWN), reason=f"ended with {_in_words(code)}")
        return None

    def wait(self) -> None:
        """Until all have ended, which they have been told to."""
        for process in self._processes.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _pipe(process).close()

    def kill(self) -> None:
        for process in self._processes.values():
            process.kill()
        self.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What rank 0 leads. ``place``: its own, with the port of its store."""

    place: Place
    listener: socket.socket | None = None
    """The store will serve on this socket, of the loopback. None: it has the address that a launcher gave it."""
    children: Children | None = None


def start_ranks(settings: Settings, place: Place) -> Job:
    """Start the other ranks, unless a launcher does. Imports nothing heavy, so that all do so at the same time."""
    if place.launched:
        return Job(place=place)
    listener = socket.create_server((place.address, 0), backlog=4 * place.world_size)
    bound = replace(place, port=listener.getsockname()[1])
    return Job(place=bound, listener=listener, children=Children(settings, bound))


def _start(command: tuple[str, ...], payload: bytes, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command,
        env={**environment, "TORCH_CPP_LOG_LEVEL": "ERROR"},  # a rank 0 that dies is no matter for a C++ stack trace
        stdin=subprocess.PIPE,
    )
    pipe = _pipe(process)
    pipe.write(payload)
    pipe.flush()  # and left open: it closes when this process ends
    return process


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None  # PIPE
    return process.stdin


def settings_from_parent() -> Settings:
    """For a child: what rank 0 wrote. From here on this process ends when rank 0 does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    pipe = open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)  # noqa: SIM115 - stays open as long as the process
    settings = Settings.model_validate_json(pipe.readline())
    threading.Thread(target=_end_when_closed, args=(pipe,), name="parent", daemon=True).start()
    return settings


def _end_when_closed(pipe: IO[bytes]) -> None:
    pipe.read()
    os._exit(UNKNOWN)


def _in_words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
