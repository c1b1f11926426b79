"""`spark bootstrap` and `spark ready`: what a container platform runs before the processes, and to look after them."""

from __future__ import annotations

from contextlib import closing
from typing import Final

from common.errors import ServerError
from common.process import open_streams
from common.server import address, check_server, connect
from common.settings import Settings
from common.streams import Streams

PATIENCE_S: Final = 5.0
"""A health check that takes longer has failed; who runs it gives it more time than this."""


def bootstrap(settings: Settings) -> None:
    """Load the stream functions and make the run's streams. Harmless when repeated. Raises ServerError.

    With users of their own the roles may not load code into the server; this is run with the admin's URL.
    """
    streams = open_streams(settings, owner=True)
    with closing(streams.client):
        print(f"the server at {address(streams.client)} is ready for run {settings.run.name}")


def ready(settings: Settings, member: str) -> None:
    """Raises ServerError unless the server is fit, lets these credentials in, and has a heartbeat of ``member``.

    That heartbeat is sent by the process's own loop, or by its watchdog while the loop stands still: a stalled process
    is ready all the same, since starting it again rarely ends a wait. `spark status` names what it waits for.
    """
    url = settings.redis.url.get_secret_value()
    if not url:
        raise ServerError("redis.url is empty; set SPARK_REDIS__URL_FILE to the file that holds it")
    with closing(connect(url)) as client:
        check_server(client)
        if not Streams(client, settings.run.name, give_up_s=PATIENCE_S).lives(member):
            raise ServerError(
                f"the server at {address(client)} has no heartbeat of {member} in run {settings.run.name}: "
                "it has not started, or it died"
            )
    print(f"{member} is ready")
