"""The training part of a run: server and processes up, until the learner is done, then down in order."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from cli.embedded import EmbeddedServer
from cli.rundir import RunDirectory, child_environment
from cli.services import services
from cli.status import in_words
from cli.supervisor import Supervisor
from common.process import open_streams
from common.records import Ledger
from common.settings import Settings
from common.streams import Streams
from common.weights_cache import default_directory, sweep

States = Callable[[], Mapping[str, str]]
Watch = Callable[[States], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    finished: bool
    """The learner reached the end; False when the run was told to stop or was drained, and can be resumed."""
    drained: bool = False
    """The learner trained all that was in flight and ended, since a user said so."""
    ledger: Ledger
    wall_s: float


def train(
    run: RunDirectory,
    watch: Watch,
    announce: Callable[[Streams], None] = lambda _streams: None,
    say: Callable[[str], None] = lambda _line: None,
) -> Trained:
    """Run all processes of ``run`` until the learner has finished. ``watch(states)`` runs beside them (a display).

    ``announce`` is called before the first of them is started, ``say`` with a line whenever one died.

    Raises SparkError when a process is beyond help; everything is stopped then, too.
    """
    started = time.monotonic()
    with server(run) as (url, embedded):
        streams = prepare(run.settings, url)
        announce(streams)

        def states() -> Mapping[str, str]:
            return {member: in_words(beat, seconds=False) for member, beat in streams.members().items()}

        supervisor = Supervisor(
            services(run.settings),
            run.config,
            run.logs,
            child_environment(url, rebuild=run.settings.redis.rebuild),
            embedded,
            say=say,
        )
        with shared_memory_freed(run.settings):
            finished = asyncio.run(supervisor.run(lambda: watch(states)))
        drained = finished and streams.steering().mode == "drained"
        return Trained(
            finished=finished and not drained,
            drained=drained,
            ledger=streams.conservation(),
            wall_s=time.monotonic() - started,
        )


@contextmanager
def server(run: RunDirectory) -> Iterator[tuple[str, EmbeddedServer | None]]:
    """URL of the configured server, or an embedded one with its data in the run directory."""
    url = run.settings.redis.url.get_secret_value()
    if url:
        yield url, None
        return
    with EmbeddedServer(run.server_data, log_file=run.logs / "server.log") as embedded:
        yield embedded.url, embedded


@contextmanager
def shared_memory_freed(settings: Settings) -> Iterator[None]:
    """Afterwards the weights in shared memory are gone: they hold RAM, and a learner publishes anew when it starts.

    So are the copies of actors that were killed.
    """
    try:
        yield
    finally:
        if settings.weights.shared_memory and settings.weights_dir.is_dir():
            shutil.rmtree(settings.weights_dir)
        sweep(settings.weights.cache_dir or default_directory())


def prepare(settings: Settings, url: str) -> Streams:
    with_url = settings.redis.model_copy(update={"url": SecretStr(url)})
    return open_streams(settings.model_copy(update={"redis": with_url}), owner=True, patience_s=0.0)
