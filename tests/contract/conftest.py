"""What the contract tests share: tasks, a run that was started, and a proxy that loses replies.

The tests of streams and loops run on the real server and on the simulation's server in memory, with the same
assertions: what the simulation finds would happen, and what would happen it can find.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from common.messages import ChatMessage, Sampling, Task
from common.server import Client, connect
from common.streams import Streams
from simulation.memory_client import Intercept, Words, connect_memory
from simulation.memory_server import MemoryServer

TOKEN = "1:test"
ON_BOTH_SERVERS = ("test_streams_", "test_loop_")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames and metafunc.module.__name__.split(".")[-1].startswith(ON_BOTH_SERVERS):
        metafunc.parametrize("backend", ["memory", "redis"])


def make_task(uid: str) -> Task:
    return Task(
        uid=uid,
        objective="solve",
        messages=(ChatMessage.user("1+1"),),
        question="1+1",
        answer="2",
        verifier="exact",
        sampling=Sampling(n=2, max_new_tokens=4),
    )


@dataclass
class Run:
    """A run whose learner holds the fence."""

    streams: Streams
    token: str = TOKEN

    def __post_init__(self) -> None:
        keys = self.streams.keys
        self.tasks, self.judge_tasks = keys.tasks("policy"), keys.tasks("judge")
        self.rollouts, self.judge_rollouts = keys.rollouts("policy"), keys.rollouts("judge")

    def issue(self, *uids: str) -> None:
        cursor = self.streams.cursor() or 0
        after = self.streams.issue(self.token, cursor, [make_task(uid) for uid in uids])
        assert after == cursor + len(uids)

    def uids(self, stream: str) -> list[str]:
        """Uids of all entries of a stream, oldest first."""
        return [fields[b"uid"].decode() for _, fields in self.streams.client.xrange(stream)]

    def events(self) -> list[dict[str, str]]:
        rows = self.streams.client.xrange(self.streams.keys.events)
        return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in rows]

    def pending(self, stream: str, group: str) -> dict[str, tuple[str, int]]:
        """Id -> (owner, deliveries) of every pending entry."""
        rows = self.streams.client.xpending_range(stream, group, "-", "+", 10_000)
        return {row["message_id"].decode(): (row["consumer"].decode(), row["times_delivered"]) for row in rows}


@pytest.fixture(name="make_task")
def make_task_fixture() -> Callable[[str], Task]:
    return make_task


@pytest.fixture
def run(streams: Streams) -> Run:
    assert streams.take_fence(1, TOKEN)
    return Run(streams)


@pytest.fixture
def clients() -> Iterator[Callable[[str], Client]]:
    """Connect; everything is closed at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda url: stack.enter_context(contextlib.closing(connect(url)))


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    def wait(ready: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + 20
        while not ready():
            assert time.monotonic() < give_up_at, "waited 20 s in vain"

    return wait


@dataclass
class LossyProxy:
    """Stands between clients and the server; loses the replies to chosen commands after the server ran them."""

    server_socket: str
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    lost: int = 0
    """Replies lost so far."""
    _marker: bytes = b""
    _losses: int = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.listener.getsockname()[1]}"

    def connect(self) -> Client:
        return connect(self.url)

    def lose(self, marker: str, losses: int = 1) -> None:
        """Lose the next ``losses`` replies to requests that contain ``marker``."""
        self._marker, self._losses = marker.encode(), losses

    def serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed: the test is over
            while True:
                accepted, _ = self.listener.accept()
                threading.Thread(target=self._forward, args=(accepted,), daemon=True).start()

    def _forward(self, accepted: socket.socket) -> None:
        upstream = socket.socket(socket.AF_UNIX)
        with accepted, upstream, contextlib.suppress(ConnectionError):
            upstream.connect(self.server_socket)
            losing = False
            while True:
                for ready in select.select([accepted, upstream], [], [])[0]:
                    data = ready.recv(1 << 20)
                    if not data:
                        return
                    if ready is accepted:
                        losing = losing or (self._losses > 0 and self._marker in data)
                        upstream.sendall(data)
                    elif losing:
                        self._losses -= 1
                        self.lost += 1
                        return
                    else:
                        accepted.sendall(data)


@dataclass
class LossyMemory(Intercept):
    """The same for the server in memory, without a socket."""

    server: MemoryServer
    lost: int = 0
    _marker: bytes = b""
    _losses: int = 0

    def connect(self) -> Client:
        return connect_memory(self.server, self)

    def lose(self, marker: str, losses: int = 1) -> None:
        self._marker, self._losses = marker.encode(), losses

    def after(self, command: Words) -> None:
        if self._losses > 0 and self._marker in b" ".join(command):
            self._losses -= 1
            self.lost += 1
            raise redis.ConnectionError("the reply was lost")


@pytest.fixture
def proxy(
    request: pytest.FixtureRequest, backend: str, memory_server: MemoryServer
) -> Iterator[LossyProxy | LossyMemory]:
    if backend == "memory":
        yield LossyMemory(memory_server)
        return
    proxy = LossyProxy(str(Path(request.getfixturevalue("server_url").removeprefix("unix://"))))
    server = threading.Thread(target=proxy.serve, daemon=True)
    server.start()
    yield proxy
    proxy.listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() alone does not
    proxy.listener.close()
    server.join(10)


@pytest.fixture
def lossy(run: Run, proxy: LossyProxy | LossyMemory) -> Iterator[Streams]:
    """The run's streams as seen through the proxy; retries come at once."""
    with contextlib.closing(proxy.connect()) as client:
        yield Streams(client, run.streams.keys.run, sleep=lambda _: None)
