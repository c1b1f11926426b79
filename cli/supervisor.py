"""Child processes of `spark up`: started, restarted with back-off when they die, stopped in order."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from cli.services import Service
from common.errors import Fenced, ServerError, SettingsError, SparkError, TooManyDead, WipedServer

log = structlog.get_logger()

FATAL: Final = (SettingsError.exit_code, Fenced.exit_code, WipedServer.exit_code, TooManyDead.exit_code)
"""Exit codes that a restart cannot mend."""
LONGEST_DELAY_S: Final = 30.0
STEADY_S: Final = 60.0
"""A child that lived this long starts again with the shortest delay."""
MOST_RESTARTS: Final = 5
STOP_S: Final = 20.0
PR_SET_PDEATHSIG: Final = 1


@dataclass(slots=True)
class Child:
    service: Service
    member: str
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    started_at: float = 0.0


@dataclass(slots=True)
class Supervisor:
    """Runs the services until the learner has finished, a child is beyond help, or ``stop`` is called."""

    services: Sequence[Service]
    config: Path
    logs: Path
    environment: Mapping[str, str]
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
            await self._start(child)
            assert child.process is not None
            code = await child.process.wait()
            if code == 0 and child.service.role == "learner":
                return
            if code in FATAL:
                raise _error_for(code)(f"{child.member} ended with exit code {code}: {self._last_words(child)}")
            if time.monotonic() - child.started_at > STEADY_S:
                child.restarts = 0
            child.restarts += 1
            if child.restarts > MOST_RESTARTS:
                raise _error_for(code)(
                    f"{child.member} died {child.restarts} times in a row, the last time with exit code {code}: "
                    f"{self._last_words(child)}; its log is {self.logs / child.member}.log"
                )
            delay_s = min(LONGEST_DELAY_S, 2.0 ** (child.restarts - 1))
            log.warning("up.child_died", member=child.member, exit_code=code, restart_in_s=delay_s)
            await asyncio.sleep(delay_s)

    async def _start(self, child: Child) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        arguments = child.service.arguments(child.member, str(self.config))
        with self._stderr(child).open("ab") as stderr:
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
        child.started_at = time.monotonic()

    def _stderr(self, child: Child) -> Path:
        return self.logs / f"{child.member}.stderr"

    def _last_words(self, child: Child) -> str:
        lines = self._stderr(child).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].removeprefix("spark: ") if lines else "it said nothing"

    async def _stop_all(self) -> None:
        """SIGTERM in the order actors, recycler, learner; each gets STOP_S to hand back or to save, then SIGKILL."""
        for stops in sorted({child.service.stops for child in self.children}):
            mine = [child.process for child in self.children if child.service.stops == stops]
            living = [process for process in mine if process is not None and process.returncode is None]
            for process in living:
                process.send_signal(signal.SIGTERM)
            await asyncio.gather(*(self._end(process) for process in living))

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            log.warning("up.child_killed", pid=process.pid, after_s=STOP_S)
            process.kill()
            await process.wait()


def _end_with_parent() -> None:
    """Linux: the kernel sends SIGTERM to this child when the supervisor dies without stopping it (kill -9)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _error_for(code: int) -> type[SparkError]:
    kinds: tuple[type[SparkError], ...] = (SettingsError, ServerError, Fenced, WipedServer, TooManyDead)
    return {kind.exit_code: kind for kind in kinds}.get(code, SparkError)
