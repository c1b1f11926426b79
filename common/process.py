"""What every process of a run does first and last."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.errors import ServerError
from common.server import check_server, connect
from common.settings import Settings
from common.streams import Streams


def open_streams(settings: Settings) -> Streams:
    """Connect, refuse an unfit server, create streams and groups. Raises ServerError."""
    url = settings.redis.url.get_secret_value()
    if not url:
        raise ServerError("redis.url is empty; set SPARK_REDIS__URL, or use `spark up`, which starts a server")
    client = connect(url)
    check_server(client)
    streams = Streams(client, settings.run.name, give_up_s=settings.redis.give_up_s)
    streams.create_groups()
    return streams


@contextmanager
def until_told_to_stop() -> Iterator[Callable[[], bool]]:
    """Yields ``stopping()``, which turns true at SIGTERM or SIGINT: the loop ends its round and cleans up."""
    told: list[int] = []
    previous = {
        number: signal.signal(number, lambda n, _: told.append(n)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda: bool(told)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
