"""A fence that was taken survives a power cut of the server."""

from __future__ import annotations

from common.server import load_functions
from common.streams import Streams
from simulation.memory_client import connect_memory
from simulation.memory_server import MemoryServer


def test_a_fence_is_on_disk_when_it_is_taken() -> None:
    server = MemoryServer(lambda: 1000.0)
    client = connect_memory(server)
    load_functions(client)
    streams = Streams(client, "test")
    assert streams.take_fence(1, "1:a")
    client.set("later", "x")
    server.power_cut()
    assert client.get(streams.keys.fence) == b"1:a"
    assert client.get("later") is None
    assert not streams.take_fence(1, "1:b")
