"""One run under attack: its folder, server, proxies and members, and the light supervisor that restarts members."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final, TypeVar

import tomli_w

from chaos.proxy import Proxy
from chaos.server import ChaosServer
from cli.rundir import RunDirectory, child_environment
from common.errors import Fenced, ServerError
from common.server import connect
from common.settings_sources import load_settings
from common.streams import Streams
from learner.checkpoint import CheckpointStore

T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parents[2]
ROLES: Final = ("learner", "recycler", "actor")
STOPPING: Final = ("actor", "recycler", "learner")
POLL_S: Final = 0.02
DEADLINE_S: Final = 90.0
STOP_S: Final = 30.0
STOPPED: Final = (0, 143, -signal.SIGTERM)
"""Exit codes after SIGTERM; the last is of a process that was told before it was listening."""
MOST_CRASHES: Final = 10
"""Exits that nobody ordered; more of them are a loop, not a run."""
REFUSED: Final = ("no server answers", "does not take the stream functions")
"""Last words of a process that found no server when it started: it ends with 3, and is started again."""
SHORT: Final[dict[str, dict[str, Any]]] = {
    "run": {"name": "chaos", "seed": 1, "no_progress_s": 5.0, "python_path": [str(ROOT / "tests")]},
    "prompts": {"source": "python:chaos.prompts:sums", "verifier": "exact"},
    "redis": {"lease_s": 1.5, "give_up_s": 30.0, "max_deliveries": 100},
    "sampling": {"group_size": 4, "max_new_tokens": 16},
    "staleness": {"max_staleness": 2},
    "actor": {"groups_in_flight": 8},
    "learner": {
        "groups_per_step": 8,
        "checkpoint_every": 3,
        "max_steps": 1_000_000,
        "straggler_wait_s": 0.5,
    },
}
"""Settings of a chaos run: small batches, short leases, many checkpoints."""


class Member:
    """One process of the run, in its present life."""

    def __init__(self, role: str, name: str, process: subprocess.Popen[bytes], errors: Path) -> None:
        self.role = role
        self.name = name
        self.process = process
        self.errors = errors
        self.ordered = False
        """Its end is somebody's doing: the supervisor does not count it as a crash."""

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        if self.alive:
            self.process.send_signal(number)

    def kill(self) -> None:
        self.ordered = True
        self.signal(signal.SIGKILL)

    def last_words(self) -> str:
        lines = self.errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class Rig:
    """Use as a context manager; everything started here has ended when it is left."""

    def __init__(
        self,
        folder: Path,
        *overrides: str,
        actors: int = 2,
        roles: Iterable[str] = ROLES,
        server_folder: Path | None = None,
        server_options: Mapping[str, str] | None = None,
        server_environment: Mapping[str, str] | None = None,
        extra: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        """``extra``: more arguments for a member, by name. ``die_at`` holds the crash points of its coming lives."""
        self.folder = folder
        self.actors = actors
        self.members: dict[str, Member] = {}
        self.former: list[Member] = []
        """Members that were replaced while they still lived: zombies."""
        self.exits: Counter[tuple[str, int]] = Counter()
        self.crashes: list[str] = []
        self.refused = 0
        """Starts that found no server."""
        self.extra = {name: list(arguments) for name, arguments in (extra or {}).items()}
        self.die_at: dict[str, deque[str]] = {}
        self.bytes_lost = 0
        """Of the server's file, by power cuts."""
        self.paused: set[str] = set()
        """Names that are not restarted at the moment."""
        self._wanted = list(roles)
        self._overrides = overrides
        self._server_folder = server_folder
        self._server_options = server_options
        self._server_environment = server_environment
        self._stack = ExitStack()

    def __enter__(self) -> Rig:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        run_file = self.folder / "run.toml"
        run_file.write_text(tomli_w.dumps({**SHORT, "run": {**SHORT["run"], "dir": str(self.folder)}}))
        self.settings = load_settings(run_file, self._overrides)
        self.directory = RunDirectory(self.settings)
        self.directory.create()
        self.directory.logs.mkdir(exist_ok=True)
        data = self._server_folder or self.directory.server_data
        self.server = ChaosServer(data, self._server_options, self._server_environment)
        self._stack.enter_context(self.server)
        sockets = Path(tempfile.mkdtemp(prefix="chaos-"))
        self._stack.callback(shutil.rmtree, sockets)
        self.proxies = {role: Proxy(sockets / role, self.server.socket) for role in ROLES}
        for proxy in self.proxies.values():
            proxy.start()
            self._stack.callback(proxy.stop)
        self.client = self._stack.enter_context(closing(connect(f"{self.server.url}?socket_timeout=1")))
        self.streams = Streams(self.client, self.settings.run.name, give_up_s=30.0)
        self.checkpoints = CheckpointStore(
            self.settings.run.directory / "checkpoints", self.settings.learner.checkpoints_kept
        )
        self._stack.callback(self._kill_all)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _kill_all(self) -> None:
        for member in (*self.members.values(), *self.former):
            if member.alive:
                member.process.kill()
            member.process.wait()

    # -- members ----------------------------------------------------------------------------------------

    def names(self, role: str) -> list[str]:
        return [f"actor-{index}" for index in range(self.actors)] if role == "actor" else [role]

    def start(self) -> None:
        for role in self._wanted:
            for name in self.names(role):
                self.spawn(role, name)

    def spawn(self, role: str, name: str) -> Member:
        """Start a member; one of this name that still lives goes on as a zombie."""
        if name in self.members and self.members[name].alive:
            self.former.append(self.members[name])
        errors = self.directory.logs / f"{name}.stderr"
        arguments = [role, str(self.directory.config), "--name", name, *self.extra.get(name, [])]
        if self.die_at.get(name):
            arguments += ["--die-at", self.die_at[name].popleft()]
        environment = child_environment(f"{self.proxies[role].url}?socket_timeout=3")
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")])
        with errors.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "chaos.member", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.members[name] = Member(role, name, process, errors)
        return self.members[name]

    def tend(self) -> None:
        """Restart who died. Raises AssertionError when members die of something else than what was done to them."""
        self.server.look()
        for name, member in list(self.members.items()):
            if member.alive or name in self.paused:
                continue
            self._note_end(member)
            if member.process.returncode == 0 and member.role == "learner":
                self.paused.add(name)  # the run is over
                continue
            self.spawn(member.role, name)
        for zombie in [zombie for zombie in self.former if not zombie.alive]:
            self.former.remove(zombie)
            self._note_end(zombie)
        if len(self.crashes) > MOST_CRASHES:
            raise AssertionError(f"{len(self.crashes)} exits that nobody ordered, the first: {self.crashes[0]}")

    def _note_end(self, member: Member) -> None:
        code = member.process.returncode
        self.exits[member.role, code] += 1
        expected = (0, -signal.SIGKILL, *((Fenced.exit_code,) if member.role == "learner" else ()))
        words = member.last_words() if code > 0 else ""
        if code == ServerError.exit_code and any(reason in words for reason in REFUSED):
            self.refused += 1
        elif code not in expected and not member.ordered:
            self.crashes.append(f"{member.name} ended with {code}: {words}")

    def until(self, condition: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
        """Tend the members until ``condition`` holds; its value. Raises AssertionError with what was waited for."""
        give_up_at = time.monotonic() + deadline_s
        while not (value := condition()):
            self.tend()
            if time.monotonic() > give_up_at:
                raise AssertionError(f"waited {deadline_s:.0f} s for {what}; crashes: {self.crashes}")
            time.sleep(POLL_S)
        return value

    def rest(self, seconds: float) -> None:
        """Let the run go on for a while."""
        over_at = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= over_at, f"{seconds} s to pass", seconds + DEADLINE_S)

    # -- how far it is ------------------------------------------------------------------------------------

    def version(self) -> tuple[int, int]:
        """(epoch, policy version) that the learner reported last."""
        progress = self.streams.progress()
        return int(progress.get("epoch", 0)), int(progress.get("policy_version", 0))

    def steps(self, count: int, deadline_s: float = DEADLINE_S) -> None:
        """Wait until one learner has made ``count`` more steps."""
        epoch, version = self.version()

        def made() -> bool:
            nonlocal epoch, version
            now_epoch, now_version = self.version()
            if now_epoch != epoch:
                epoch, version = now_epoch, now_version
            return now_version >= version + count

        self.until(made, f"{count} optimizer steps", deadline_s)

    def finished(self) -> bool:
        """The learner has come to the end of the run by itself."""
        learner = self.members["learner"]
        return not learner.alive and learner.process.returncode == 0

    def to_the_end(self, deadline_s: float = DEADLINE_S) -> None:
        """Wait for the last step, then stop the others."""
        self.until(self.finished, "the end of the run", deadline_s)
        self.stop()

    def stop(self) -> None:
        """SIGTERM in the order of `spark up`; everything that is not done stays in flight."""
        for role in STOPPING:
            mine = [member for member in self.members.values() if member.role == role and member.alive]
            for member in mine:
                member.signal(signal.SIGCONT)
                member.signal(signal.SIGTERM)
            for member in mine:
                code = member.process.wait(STOP_S)
                if code not in STOPPED:
                    self.crashes.append(f"{member.name} ended with {code} when told to stop: {member.last_words()}")
        self.paused |= set(self.members)
