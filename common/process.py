"""What every process of a run does first and last."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from redis.exceptions import NoPermissionError

from common.errors import ServerAway, ServerError
from common.server import Client, address, check_server, connect, functions_loaded, load_functions
from common.settings import Settings
from common.streams import Streams

log = structlog.get_logger()

RETRY_S: Final = 0.5


def open_streams(settings: Settings, *, owner: bool = False, patience_s: float | None = None) -> Streams:
    """Connect, refuse an unfit server, create streams and groups. Raises ServerError.

    The ``owner`` (the learner, or `spark up`) installs the stream functions unless they are; the others wait for them.
    A server that does not answer may be starting: it is waited for, ``redis.give_up_s`` or as long as ``patience_s``.
    """
    client = connect(server_url(settings))
    give_up_at = time.monotonic() + (settings.redis.give_up_s if patience_s is None else patience_s)
    while True:
        try:
            return _open(client, settings, owner=owner)
        except ServerAway as error:
            if time.monotonic() > give_up_at:
                raise
            log.warning("server.away", reason=str(error))
            time.sleep(RETRY_S)


def server_url(settings: Settings) -> str:
    """Where the run's server is. Raises ServerError when nobody said so."""
    url = settings.redis.url.get_secret_value()
    if not url:
        raise ServerError("redis.url is empty; set SPARK_REDIS__URL, or use `spark up`, which starts a server")
    return url


def _open(client: Client, settings: Settings, *, owner: bool) -> Streams:
    check_server(client)
    try:
        return _prepared(client, settings, owner=owner)
    except NoPermissionError as error:
        raise ServerError(
            f"the credentials in redis.url lack a right that this process needs: {error}; "
            "give each role its own user, as docs/security.md says"
        ) from error


def _prepared(client: Client, settings: Settings, *, owner: bool) -> Streams:
    if owner:
        load_functions(client)
    else:
        _await_functions(client, settings.redis.give_up_s)
    recycles = settings.learner.judge_share > 0
    streams = Streams(client, settings.run.name, recycles=recycles, give_up_s=settings.redis.give_up_s)
    streams.create_groups()
    if owner:
        streams.remove_unused_groups()
    return streams


def _await_functions(client: Client, give_up_s: float) -> None:
    """Waits for the stream functions; unblocked by the learner, which installs them when it starts."""
    give_up_at = time.monotonic() + give_up_s
    while not functions_loaded(client):
        if time.monotonic() > give_up_at:
            raise ServerError(
                f"the server at {address(client)} has had no stream functions for {give_up_s:.0f} s: "
                "start the learner of this run, which installs them"
            )
        time.sleep(0.2)


class Stopping:
    """``stopping()``: whether this process was told to stop."""

    def __init__(self) -> None:
        self._told = False
        self._exit_code: int | None = None

    def __call__(self) -> bool:
        return self._told

    def tell(self, *_signal: object) -> None:
        """What a signal does. Raises SystemExit within ``at_once``."""
        self._told = True
        self._end_if_starting()

    @contextmanager
    def at_once(self, exit_code: int = 0) -> Iterator[None]:
        """For the start of a process, which has nothing to hand back yet: it ends with SystemExit, wherever it is.

        Waiting for a server or loading a model may take minutes. If a library swallows the exception, the process
        ends with the block.
        """
        self._exit_code = exit_code
        try:
            self._end_if_starting()
            yield
            self._end_if_starting()
        except SystemExit:
            log.info("process.stopped_in_its_start")  # not in the handler: the log may be in the middle of a line
            raise
        finally:
            self._exit_code = None

    def _end_if_starting(self) -> None:
        if self._told and self._exit_code is not None:
            raise SystemExit(self._exit_code)


@contextmanager
def until_told_to_stop() -> Iterator[Stopping]:
    """Yields ``stopping()``, which turns true at SIGTERM or SIGINT: the loop ends its round and cleans up."""
    stopping = Stopping()
    previous = {number: signal.signal(number, stopping.tell) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
