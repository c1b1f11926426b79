"""A proxy between members and server that loses replies, cuts connections, or turns into a black hole for a while."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class Proxy:
    """Listens on a unix socket, in a thread of its own. All methods may be called from other threads."""

    def __init__(self, listen: Path, upstream: Path) -> None:
        self._listen = listen
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self.marker = b""
        self.losses = 0
        """Replies still to be lost, to requests that hold ``marker``."""
        self.lost = 0
        self.holding = False

    @property
    def url(self) -> str:
        return f"unix://{self._listen}"

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def lose(self, marker: str, losses: int = 1) -> None:
        """Lose the next replies to requests with ``marker``: the server does the work, the client's line is closed."""

        def act() -> None:
            self.marker, self.losses = marker.encode(), losses

        self._call(act)

    def cut(self) -> None:
        """Close every connection, whatever is on its way."""
        self._call(lambda: [pair.abort() for pair in list(self._pairs)])

    def hold(self, holding: bool = True) -> None:
        """A black hole: connections stay open and nothing passes, in either direction, until ``hold(False)``."""

        def act() -> None:
            self.holding = holding
            for pair in self._pairs:
                pair.hold(holding)

        self._call(act)

    def _call(self, act: Callable[[], object]) -> None:
        done = threading.Event()

        def run() -> None:
            try:
                act()
            finally:
                done.set()

        self._loop.call_soon_threadsafe(run)
        if not done.wait(10):
            raise TimeoutError("the proxy does not react")

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Client(self), str(self._listen), backlog=4096)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for pair in list(self._pairs):
            pair.abort()
        await asyncio.sleep(0)

    def connect(self, pair: _Pair) -> None:
        self._pairs.add(pair)
        pair.task = asyncio.ensure_future(self._connect(pair))

    async def _connect(self, pair: _Pair) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_unix_connection(lambda: _Upstream(self, pair), str(self._upstream))
        except OSError:  # the server is down
            pair.abort()

    def forget(self, pair: _Pair) -> None:
        self._pairs.discard(pair)

    def swallow(self) -> None:
        self.losses -= 1
        self.lost += 1


class _Pair:
    """One client's connection and its twin to the server."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.task: asyncio.Future[None] | None = None
        self.client: Any = None
        self.upstream: Any = None
        self.early = bytearray()
        self.losing = False

    def abort(self) -> None:
        for transport in (self.client, self.upstream):
            if transport is not None:
                transport.abort()
        self.proxy.forget(self)

    def hold(self, holding: bool) -> None:
        for transport in (self.client, self.upstream):
            if transport is not None and not transport.is_closing():
                with contextlib.suppress(RuntimeError):  # it is so already
                    (transport.pause_reading if holding else transport.resume_reading)()

    def to_server(self, data: bytes) -> None:
        proxy = self.proxy
        self.losing = self.losing or (proxy.losses > 0 and proxy.marker in data)
        if self.upstream is None:
            self.early += data
        else:
            self.upstream.write(data)

    def to_client(self, data: bytes) -> None:
        if self.losing:
            self.losing = False
            if self.proxy.losses > 0:
                self.proxy.swallow()
                self.abort()
                return
        self.client.write(data)


class _Client(asyncio.Protocol):
    def __init__(self, proxy: Proxy) -> None:
        self._pair = _Pair(proxy)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pair.client = transport
        self._pair.proxy.connect(self._pair)
        if self._pair.proxy.holding:
            self._pair.hold(True)

    def data_received(self, data: bytes) -> None:
        self._pair.to_server(data)

    def connection_lost(self, exc: Exception | None) -> None:
        pair = self._pair
        pair.client = None
        if pair.upstream is not None:
            pair.upstream.close()  # after what is still to be written: a request that was sent is carried out
        pair.proxy.forget(pair)


class _Upstream(asyncio.Protocol):
    def __init__(self, proxy: Proxy, pair: _Pair) -> None:
        self._pair = pair

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        pair = self._pair
        pair.upstream = transport
        if pair.early:
            pair.upstream.write(bytes(pair.early))
            pair.early.clear()
        if pair.client is None:
            pair.upstream.close()
        elif pair.proxy.holding:
            pair.hold(True)

    def data_received(self, data: bytes) -> None:
        if self._pair.client is not None:
            self._pair.to_client(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pair.upstream = None
        if self._pair.client is not None:
            self._pair.client.close()
