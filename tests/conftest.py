"""A real server for every test that asks for one: started once a session, emptied for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from cli.embedded import EmbeddedServer
from common.server import Client, connect, load_functions
from common.streams import Streams

IN_MEMORY = {"appendonly": "no", "save": ""}

settings.register_profile("shared-machine", deadline=None)  # another process may hold the core for a while
settings.load_profile("shared-machine")


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedServer(tmp_path_factory.mktemp("server"), options=IN_MEMORY) as server:
        yield server.url


@pytest.fixture
def client(server_url: str) -> Iterator[Client]:
    """A client of the emptied server, with the stream functions installed."""
    client = connect(server_url)
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
