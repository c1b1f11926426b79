"""Child processes of `spark up`: started, restarted with back-off when they die, stopped in order.

What dies again and again is given up with a reason. A child that lives and gets nothing done is its watchdog's matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from cli.embedded import EmbeddedServer
from cli.services import STOP_S, Service
from common.errors import Fenced, ServerError, SettingsError, SparkError, TooManyDead, WipedServer

log = structlog.get_logger()

FATAL: Final = (SettingsError.exit_code, Fenced.exit_code, WipedServer.exit_code, TooManyDead.exit_code)
"""Exit codes that a restart cannot mend."""
LONGEST_DELAY_S: Final = 30.0
STEADY_S: Final = 60.0
"""A child that lived this long starts again with the shortest delay."""
MOST_RESTARTS: Final = 5
"""Of a child that never lives long."""
MOST_IN_AN_HOUR: Final = 20
"""Of one that does, and dies all the same."""
STOPPED: Final = (0, 128 + signal.SIGTERM, -signal.SIGTERM)
"""Exit codes of a child that was told to stop."""
SERVER_LOOK_S: Final = 0.5
PR_SET_PDEATHSIG: Final = 1


@dataclass(slots=True)
class Deaths:
    """How often something died."""

    in_a_row: int = 0
    times: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_IN_AN_HOUR + 1))

    def another(self, *, lived_s: float, now: float) -> float | None:
        """Seconds to wait before it is started again; None when it is beyond help."""
        self.in_a_row = 1 if lived_s > STEADY_S else self.in_a_row + 1
        self.times.append(now)
        if self.in_a_row > MOST_RESTARTS or self.in_an_hour(now) > MOST_IN_AN_HOUR:
            return None
        return min(LONGEST_DELAY_S, 2.0 ** (self.in_a_row - 1))

    def in_an_hour(self, now: float) -> int:
        return sum(now - at < 3600.0 for at in self.times)

    def in_words(self, now: float) -> str:
        if self.in_a_row > MOST_RESTARTS:
            return f"died {self.in_a_row} times in a row"
        return f"died {self.in_an_hour(now)} times in an hour"


@dataclass(slots=True)
class Child:
    service: Service
    member: str
    process: asyncio.subprocess.Process | None = None
    deaths: Deaths = field(default_factory=Deaths)
    started_at: float = 0.0
    said_before: int = 0
    """Bytes on its standard error when this life began."""


@dataclass(slots=True)
class Supervisor:
    """Runs the services until the learner has finished, a child is beyond help, or ``stop`` is called."""

    services: Sequence[Service]
    config: Path
    logs: Path
    environment: Mapping[str, str]
    server: EmbeddedServer | None = None
    """The run's own server, which is started again as well."""
    say: Callable[[str], None] = lambda _line: None
    """A line for whoever watches: somebody died, and is started again."""
    children: list[Child] = field(default_factory=list)
    _told_to_stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, watch: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """True when the learner has finished its run, False when told to stop. ``watch`` runs beside (the display).

        Raises SparkError when a child keeps dying or its mistake cannot be mended by a restart.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._told_to_stop.set)
        self.children = [Child(service, member) for service in self.services for member in service.members()]
        tasks = [asyncio.create_task(self._keep_alive(child)) for child in self.children]
        learner, watcher = tasks[0], asyncio.create_task(watch())
        tasks.append(asyncio.create_task(self._keep_server()))
        stop = asyncio.create_task(self._told_to_stop.wait())
        try:
            done, _ = await asyncio.wait({*tasks, stop, watcher}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()  # raises what the child died of
            return learner in done
        finally:
            for task in (*tasks, watcher, stop):
                task.cancel()
            await asyncio.gather(*tasks, watcher, stop, return_exceptions=True)
            await self._stop_all()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def _keep_alive(self, child: Child) -> None:
        """Returns when the child ends well, which only the learner may."""
        while True:
            code = await self._live(child)
            if code == 0 and child.service.role == "learner":
                return
            if code in FATAL:
                raise _error_for(code)(f"{child.member} ended with {self._end_of(child, code)}")
            now = time.monotonic()
            delay_s = child.deaths.another(lived_s=now - child.started_at, now=now)
            if delay_s is None:
                raise _error_for(code)(
                    f"{child.member} {child.deaths.in_words(now)}, the last time with {self._end_of(child, code)}"
                )
            log.warning("up.child_died", member=child.member, exit_code=code, restart_in_s=delay_s)
            self.say(f"{child.member} died with {self._end_of(child, code)}; it starts again in {delay_s:.0f} s")
            await asyncio.sleep(delay_s)

    async def _live(self, child: Child) -> int:
        """Start it, and return its exit code. One that cannot be started (no memory, no process left) has died."""
        self.logs.mkdir(parents=True, exist_ok=True)
        child.started_at = time.monotonic()
        arguments = child.service.arguments(child.member, str(self.config))
        try:
            with self._stderr(child).open("ab") as stderr:
                child.said_before = stderr.tell()
                child.process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "cli",
                    *arguments,
                    env=dict(self.environment),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    start_new_session=True,  # Ctrl-C is for the supervisor, which stops the children in order
                    preexec_fn=_end_with_parent,
                )
        except OSError as error:
            log.error("up.child_not_started", member=child.member, reason=str(error))
            return 1
        code = await child.process.wait()
        _end_what_it_left(child.process.pid)
        return code

    async def _keep_server(self) -> None:
        """Never returns. The server listens where it did before it died, so that the children find it again."""
        deaths, started_at = Deaths(), time.monotonic()
        while True:
            await asyncio.sleep(SERVER_LOOK_S)
            if self.server is None or (code := self.server.exit_code) is None:
                continue
            now = time.monotonic()
            delay_s = deaths.another(lived_s=now - started_at, now=now)
            log.warning("up.server_died", exit_code=code, restart_in_s=delay_s)
            if delay_s is None:
                raise ServerError(
                    f"the embedded server {deaths.in_words(now)}, the last time {_code(code)}; "
                    f"its log is {self.server.log_file}"
                )
            self.say(f"the embedded server died with {_code(code)} and starts again; its log is {self.server.log_file}")
            await asyncio.sleep(delay_s if deaths.in_a_row > 1 else 0.0)
            await asyncio.to_thread(self.server.start)
            started_at = time.monotonic()

    def _stderr(self, child: Child) -> Path:
        return self.logs / f"{child.member}.stderr"

    def _end_of(self, child: Child, code: int) -> str:
        """Exit code, last words of this life, and where to read more."""
        return f"{_code(code)}: {self._last_words(child)}; its log is {self.logs / child.member}.log"

    def _last_words(self, child: Child) -> str:
        try:
            with self._stderr(child).open("rb") as stderr:
                stderr.seek(child.said_before)
                lines = stderr.read().decode("utf-8", errors="replace").strip().splitlines()
        except OSError as error:  # it was never opened, or cannot be now: the others go on
            return f"what it said cannot be read: {error}"
        return lines[-1].removeprefix("spark: ") if lines else "it said nothing"

    async def _stop_all(self) -> None:
        """SIGTERM in the order actors, recycler, learner; each gets STOP_S to hand back or to save, then SIGKILL."""
        for stops in sorted({child.service.stops for child in self.children}):
            mine = [child for child in self.children if child.service.stops == stops]
            await asyncio.gather(*(self._stop(child) for child in mine))

    async def _stop(self, child: Child) -> None:
        process = child.process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()
            _end_what_it_left(process.pid)
            log.warning("up.child_killed", member=child.member, after_s=STOP_S, log=f"{self.logs / child.member}.log")
            return
        if process.returncode not in STOPPED:
            log.warning(
                "up.child_failed_to_stop", member=child.member, end=self._end_of(child, process.returncode or 0)
            )


def _end_with_parent() -> None:
    """Linux: the kernel sends SIGTERM to this child when the supervisor dies without stopping it (kill -9)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_what_it_left(pid: int) -> None:
    """A child leads a process group: verifiers that outlive a killed actor would go on without a time limit."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _code(code: int) -> str:
    """An exit code as the user knows it."""
    if code >= 0:
        return f"exit code {code}"
    hint = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
    return f"{signal.Signals(-code).name}{hint}"


def _error_for(code: int) -> type[SparkError]:
    kinds: tuple[type[SparkError], ...] = (SettingsError, ServerError, Fenced, WipedServer, TooManyDead)
    return {kind.exit_code: kind for kind in kinds}.get(code, SparkError)
