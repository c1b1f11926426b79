"""A server whose clock can really be set back: the one in memory."""

from __future__ import annotations

from common.keys import ACTORS
from common.server import load_functions
from common.streams import Streams
from simulation.memory_client import connect_memory
from simulation.memory_server import MemoryServer

HOUR, LEASE_MS = 3600.0, 60_000


def test_what_the_dead_held_is_taken_over_one_lease_after_the_clock_went_back() -> None:
    now = [1000.0 + HOUR]
    client = connect_memory(MemoryServer(lambda: now[0]))
    load_functions(client)
    streams = Streams(client, "test")
    streams.create_groups()
    tasks = streams.keys.tasks("policy")
    client.xadd(tasks, {"uid": "a", "m": b""})
    assert streams.mend_leases() == 0
    [entry] = streams.read_new(ACTORS, "dead", [tasks], 1, None)
    now[0] -= HOUR
    assert streams.mend_leases() == 1
    now[0] += LEASE_MS / 1000 - 1
    assert streams.read_expired(ACTORS, "living", tasks, LEASE_MS, 1) == []
    now[0] += 2
    assert [taken.id for taken in streams.read_expired(ACTORS, "living", tasks, LEASE_MS, 1)] == [entry.id]
