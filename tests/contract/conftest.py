"""What the contract tests share: tasks, a run that was started, and a proxy that loses replies."""

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

from common.messages import ChatMessage, Sampling, Task
from common.server import Client, connect
from common.streams import Streams

TOKEN = "1:test"


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


@pytest.fixture
def proxy(server_url: str) -> Iterator[LossyProxy]:
    proxy = LossyProxy(str(Path(server_url.removeprefix("unix://"))))
    server = threading.Thread(target=proxy.serve, daemon=True)
    server.start()
    yield proxy
    proxy.listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() alone does not
    proxy.listener.close()
    server.join(10)


@pytest.fixture
def lossy(run: Run, proxy: LossyProxy, clients: Callable[[str], Client]) -> Streams:
    """The run's streams as seen through the proxy; retries come at once."""
    return Streams(clients(proxy.url), run.streams.keys.run, sleep=lambda _: None)
