"""Row 22: three thousand simulated actors that lose their server at once, and all come back at once."""

from __future__ import annotations

import asyncio
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from chaos.rows import CannotRun, Done, check, row
from chaos.server import ChaosServer
from common.keys import ACTORS
from common.server import connect, load_functions
from common.streams import Streams

CROWD: Final = 3000
FILES: Final = CROWD + 500
CLAIM_S: Final = 2.0
DEADLINE_S: Final = 60.0


@dataclass
class Crowd:
    """Actors reduced to their connection: each claims tasks one by one and transfers a product for each."""

    socket: str
    streams: Streams
    since: float = float("inf")
    """When the server was there again."""
    first_claim_s: dict[int, float] = field(default_factory=dict)
    done: int = 0
    retries: int = 0

    async def run(self, tasks: int) -> None:
        members = [asyncio.create_task(self._member(index)) for index in range(CROWD)]
        try:
            give_up_at = time.monotonic() + DEADLINE_S
            while self.done < tasks or len(self.first_claim_s) < CROWD:
                if time.monotonic() > give_up_at:
                    break
                await asyncio.sleep(0.05)
        finally:
            for member in members:
                member.cancel()
            await asyncio.gather(*members, return_exceptions=True)

    async def _member(self, index: int) -> None:
        jitter = np.random.default_rng(index)
        while True:
            try:
                await self._work(index)
            except (OSError, asyncio.IncompleteReadError):
                self.retries += 1
                await asyncio.sleep(float(jitter.uniform(0.05, 0.5)))

    async def _work(self, index: int) -> None:
        reader, writer = await asyncio.open_unix_connection(self.socket)
        keys, name = self.streams.keys, f"actor-{index}"
        tasks, rollouts = keys.tasks("policy"), keys.rollouts("policy")
        try:
            while True:
                writer.write(
                    _command("XREADGROUP", "GROUP", ACTORS, name, "COUNT", "1", "BLOCK", "2000", "STREAMS", tasks, ">")
                )
                answer = await _reply(reader)
                if isinstance(answer, Exception):  # it is reading its file
                    raise OSError(str(answer))
                if answer is None:
                    continue
                if time.monotonic() > self.since:
                    self.first_claim_s.setdefault(index, time.monotonic() - self.since)
                [[_, [[entry_id, [_, uid, *_]]]]] = answer
                writer.write(
                    _command(
                        "FCALL",
                        "spark_transfer",
                        "4",
                        tasks,
                        rollouts,
                        keys.ledger,
                        keys.events,
                        ACTORS,
                        "",
                        entry_id,
                        "1",
                        uid,
                        b"product",
                    )
                )
                await _reply(reader)
                self.done += 1
        finally:
            writer.close()


@row(22, f"{CROWD} actors that all reconnect at once", "none starves; p99 of the first claim below 2 s")
def crowd(folder: Path) -> Done:
    _allow_files()
    with ChaosServer(folder / "server") as server:
        client = connect(server.url)
        load_functions(client)
        streams = Streams(client, "crowd")
        streams.create_groups()
        many = Crowd(str(server.socket), streams)
        asyncio.run(_storm(many, server, streams))
        claims = list(many.first_claim_s.values())
        check(len(claims) == CROWD, f"{CROWD - len(claims)} actors never got a task again")
        p99 = float(np.percentile(claims, 99))
        check(p99 < CLAIM_S, f"p99 of the first claim is {p99:.2f} s")
        rollouts = client.xlen(streams.keys.rollouts("policy"))
        check(rollouts >= CROWD, f"{rollouts} products")
        client.close()
        note = f"first claim after the restart: p50 {np.percentile(claims, 50):.2f} s, p99 {p99:.2f} s"
        return Done(times=1, note=note, items=int(rollouts))


async def _storm(many: Crowd, server: ChaosServer, streams: Streams) -> None:
    """All wait for tasks; the server is killed and comes back; then there are tasks for everybody."""
    crowd_at_work = asyncio.create_task(many.run(CROWD))
    while streams.client.info("clients")["connected_clients"] < CROWD:
        await asyncio.sleep(0.1)
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(0.2)
    await asyncio.to_thread(server.start)
    many.since = time.monotonic()
    feeder = asyncio.create_task(asyncio.to_thread(_feed, many, streams))
    await crowd_at_work
    await feeder


def _feed(many: Crowd, streams: Streams) -> None:
    """Keep as many tasks going as there are actors, until each has had one."""
    give_up_at = time.monotonic() + DEADLINE_S
    added = 0
    while len(many.first_claim_s) < CROWD and time.monotonic() < give_up_at:
        if added - many.done > CROWD:
            time.sleep(0.005)
            continue
        with streams.client.pipeline(transaction=False) as pipe:
            for _ in range(200):
                added += 1
                pipe.xadd(streams.keys.tasks("policy"), {"uid": f"{added:032x}", "m": b"task"})
            pipe.execute()


def _allow_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < FILES:
        raise CannotRun(f"{FILES} open files are needed, the limit is {most}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _command(*parts: str | bytes) -> bytes:
    raw = [part if isinstance(part, bytes) else part.encode() for part in parts]
    return b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in raw)


async def _reply(reader: asyncio.StreamReader) -> Any:
    """One RESP2 answer; an error is returned, not raised."""
    line = await reader.readuntil(b"\r\n")
    kind, rest = line[:1], line[1:-2]
    if kind == b"*":
        return None if rest == b"-1" else [await _reply(reader) for _ in range(int(rest))]
    if kind == b"$":
        if rest == b"-1":
            return None
        data = await reader.readexactly(int(rest) + 2)
        return data[:-2]
    if kind == b"-":
        return RuntimeError(rest.decode(errors="replace"))
    return int(rest) if kind == b":" else rest.decode()
