"""A server for every test that asks for one: a real one, started once a session and emptied for each test, or one in
memory. A directory's conftest says with ``backend`` which of its tests run on both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import settings

from cli.embedded import EmbeddedServer
from common.server import Client, connect, load_functions
from common.streams import Streams
from simulation.memory_client import connect_memory
from simulation.memory_server import MemoryServer

IN_MEMORY = {"appendonly": "no", "save": ""}
Backend = Literal["memory", "redis"]

settings.register_profile("shared-machine", deadline=None)  # another process may hold the core for a while
settings.load_profile("shared-machine")


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedServer(tmp_path_factory.mktemp("server"), options=IN_MEMORY) as server:
        yield server.url


@pytest.fixture
def backend() -> Backend:
    """Overridden by parametrization."""
    return "redis"


@pytest.fixture
def memory_server() -> MemoryServer:
    return MemoryServer(time.time)


@pytest.fixture
def client(request: pytest.FixtureRequest, backend: Backend, memory_server: MemoryServer) -> Iterator[Client]:
    """A client of the emptied server, with the stream functions installed."""
    if backend == "memory":
        client = connect_memory(memory_server)
    else:
        client = connect(request.getfixturevalue("server_url"))  # only now, since it starts the real server
        client.flushall()
    load_functions(client)
    yield client
    client.close()


@pytest.fixture
def streams(client: Client) -> Streams:
    """The streams of run ``test``, with their groups."""
    streams = Streams(client, "test", give_up_s=5.0, seed=0)
    streams.create_groups()
    return streams


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"
